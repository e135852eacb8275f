//! Values that several kinds write in the same way.

use std::sync::Arc;
use std::time::Duration;

use crate::route::fault::Share;

/// A duration as protobuf's JSON and Gateway API write it: `1.5s`, `500ms`, `1h30m`; `None` for what is none, negative,
/// or longer than ten thousand years.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 6] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    const MOST: Duration = Duration::from_secs(315_576_000_000);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > 64 {
        return None;
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        rest = next;
        let (_, nanos) = UNITS.iter().find(|(known, _)| *known == unit)?;
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let whole = u128::from(whole) * u128::from(*nanos);
        // Digits beyond the eighteenth are less than a nanosecond of any unit.
        let fraction: String = fraction.chars().take(18).collect();
        let part = match fraction.parse::<u64>() {
            Ok(part) => {
                let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
                u128::from(part) * u128::from(*nanos) / scale
            }
            Err(_) if fraction.is_empty() => 0,
            Err(_) => return None,
        };
        let all = whole.checked_add(part)?;
        let seconds = u64::try_from(all / 1_000_000_000).ok()?;
        let duration = Duration::new(seconds, u32::try_from(all % 1_000_000_000).ok()?);
        total = total.checked_add(duration).filter(|total| *total <= MOST)?;
    }
    Some(total)
}

/// A port; `None` for what is none.
pub(crate) fn port(number: impl TryInto<u16>) -> Option<u16> {
    number.try_into().ok().filter(|port| *port != 0)
}

/// The full name of the host that an object of `namespace` writes: one without a dot is a Service of that namespace.
pub(crate) fn host(text: &str, namespace: &str, cluster_domain: &str) -> Arc<str> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    if text.contains('.') || text.starts_with('*') {
        return text.into();
    }
    format!("{text}.{namespace}.svc.{cluster_domain}").into()
}

/// What is quoted of an object is bounded: messages are lines.
pub(crate) fn shown(text: &str) -> String {
    const MAX: usize = 100;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// To which namespaces an object is visible (`exportTo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExportTo {
    /// Empty for all of them.
    namespaces: Option<Vec<Arc<str>>>,
}

impl ExportTo {
    /// Reads the `exportTo` of an object of `namespace`.
    pub(crate) fn new(written: &[String], namespace: &Arc<str>) -> Self {
        if written.is_empty() || written.iter().any(|name| name == "*") {
            return Self::default();
        }
        let names = written.iter().filter(|name| *name != "~").map(|name| match name.as_str() {
            "." => namespace.clone(),
            other => other.into(),
        });
        Self { namespaces: Some(names.collect()) }
    }

    /// Whether it is visible in its own namespace only.
    pub(crate) fn is_own_only(&self) -> bool {
        self.namespaces.as_ref().is_some_and(|names| names.iter().all(|name| Some(name) == names.first()))
            && self.namespaces.as_ref().is_some_and(|names| !names.is_empty())
    }

    /// Whether it is visible in `namespace`.
    pub(crate) fn includes(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.iter().any(|name| **name == *namespace))
    }
}

/// A share in percent; `Err` with what is wrong.
pub(crate) fn percent(value: f64) -> Result<Share, String> {
    Share::percent(value).ok_or_else(|| format!("{value} is not a percentage from 0 to 100"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_protobuf_and_gateway_api_write_them() {
        for (text, millis) in [
            ("1.5s", Some(1_500)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            (".5s", Some(500)),
            ("0.000001s", Some(0)),
            ("315576000000s", Some(315_576_000_000_000)),
            ("315576000001s", None),
            ("99999999999999999999h", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("NaNs", None),
            ("", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), millis, "{text}");
        }
    }

    #[test]
    fn a_name_without_a_dot_is_a_service_of_the_namespace() {
        for (text, expected) in [
            ("cart", "cart.shop.svc.cluster.local"),
            ("cart.other", "cart.other"),
            ("API.example.com.", "api.example.com"),
            ("*.example.com", "*.example.com"),
        ] {
            assert_eq!(&*host(text, "shop", "cluster.local"), expected);
        }
    }

    #[test]
    fn an_object_is_visible_where_it_is_exported_to() {
        let own: Arc<str> = "shop".into();
        let to = |names: &[&str]| ExportTo::new(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), &own);
        assert!(to(&[]).includes("other") && to(&["*"]).includes("other"));
        assert!(to(&["."]).includes("shop") && !to(&["."]).includes("other"));
        assert!(to(&["other"]).includes("other") && !to(&["other"]).includes("shop"));
        assert!(!to(&["~"]).includes("shop"));
    }
}
