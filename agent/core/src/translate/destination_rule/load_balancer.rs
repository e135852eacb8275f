//! `loadBalancer`.

use std::collections::BTreeMap;

use culvert_api::networking::destination_rule::{
    ConsistentHashLb, HttpCookie, LoadBalancerSettings, LocalityLbSetting, SimpleLb, WarmupConfiguration,
};
use http::HeaderName;

use super::super::Findings;
use super::super::values::{duration, shown};
use crate::traffic::policy::{Algorithm, Cookie, HashKey, HashTable, LoadBalancer, Locality, Warmup};

/// The places of a table of Maglev's, and the points of a ring, where nothing is said.
const MAGLEV: u64 = 65_537;
const RING: u64 = 1024;
/// The most points of a ring: 16 bytes each.
const MAX_RING: u64 = 1 << 20;
/// The most places of a table, by Envoy.
const MAX_MAGLEV: u64 = 5_000_011;
/// The most rules about localities.
const MAX_LOCALITIES: usize = 1024;

pub(super) fn read(field: &str, written: &LoadBalancerSettings, findings: &mut Findings<'_>) -> LoadBalancer {
    if written.simple.is_some() && written.consistent_hash.is_some() {
        findings.error(field, "has both simple and consistentHash: consistentHash counts");
    }
    let algorithm = match (&written.consistent_hash, written.simple) {
        (Some(hash), _) => self::hash(&format!("{field}.consistentHash"), hash, findings).unwrap_or_default(),
        (None, Some(SimpleLb::Random)) => Algorithm::Random,
        (None, Some(SimpleLb::Passthrough)) => Algorithm::Passthrough,
        (None, Some(SimpleLb::RoundRobin)) => Algorithm::RoundRobin,
        (None, Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest) | None) => {
            Algorithm::LeastRequest
        }
    };
    if written.zone_aware_lb_setting.is_some() {
        let message = "is for sidecars only, and has no effect: use localityLbSetting";
        findings.warning(format!("{field}.zoneAwareLbSetting"), message);
    }
    let locality = written.locality_lb_setting.as_ref();
    let locality = locality.and_then(|setting| locality_of(&format!("{field}.localityLbSetting"), setting, findings));
    if matches!(algorithm, Algorithm::Hash(..)) && matches!(locality, Some(Locality::Distribute(_))) {
        findings
            .warning(format!("{field}.consistentHash"), "the same key may go to another locality: avoid distribute");
    }
    let warmup = match (&written.warmup, &written.warmup_duration_secs) {
        (Some(warmup), _) => self::warmup(&format!("{field}.warmup"), warmup, findings),
        (None, Some(text)) => {
            let warmup = WarmupConfiguration { duration: text.clone(), ..WarmupConfiguration::default() };
            self::warmup(&format!("{field}.warmupDurationSecs"), &warmup, findings)
        }
        (None, None) => None,
    };
    if warmup.is_some() && !matches!(algorithm, Algorithm::RoundRobin | Algorithm::LeastRequest) {
        findings.warning(format!("{field}.warmup"), "has effect with ROUND_ROBIN and LEAST_REQUEST only");
    }
    LoadBalancer { algorithm, locality, warmup }
}

/// Whether it prefers some endpoints only as long as they do not fail.
pub(super) fn fails_over(balancer: &LoadBalancer) -> bool {
    matches!(balancer.locality, Some(Locality::Failover(_) | Locality::Priority(_)))
}

fn hash(field: &str, written: &ConsistentHashLb, findings: &mut Findings<'_>) -> Option<Algorithm> {
    let ConsistentHashLb { http_header_name, http_cookie, use_source_ip, http_query_parameter_name, .. } = written;
    let source_ip = use_source_ip.unwrap_or(false);
    let keys = [http_header_name.is_some(), http_cookie.is_some(), source_ip, http_query_parameter_name.is_some()];
    if keys.iter().filter(|there| **there).count() > 1 {
        findings.error(field, "has more than one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName");
    }
    let key = if let Some(name) = http_header_name {
        HeaderName::from_bytes(name.as_bytes()).ok().map(HashKey::Header)
    } else if let Some(written) = http_cookie {
        cookie(&format!("{field}.httpCookie"), written, findings).map(HashKey::Cookie)
    } else if source_ip {
        Some(HashKey::SourceIp)
    } else {
        http_query_parameter_name
            .as_ref()
            .filter(|n| !n.is_empty())
            .map(|name| HashKey::Parameter(name.as_str().into()))
    };
    let Some(key) = key else {
        findings.error(field, "names nothing that can be hashed: read as LEAST_REQUEST; set one of its keys");
        return None;
    };
    let bounded = |name: &str, size: u64, most: u64, findings: &mut Findings<'_>| {
        if size > most {
            findings.error(format!("{field}.{name}"), format!("{size} is more than {most}: read as that"));
        }
        size.min(most)
    };
    let table = match (&written.ring_hash, &written.maglev) {
        (None, Some(maglev)) => {
            let size = bounded("maglev.tableSize", maglev.table_size.unwrap_or(MAGLEV), MAX_MAGLEV, findings);
            if is_prime(size) {
                HashTable::Maglev(usize::try_from(size).ok()?)
            } else {
                let message = format!("{size} is no prime: read as {MAGLEV}");
                findings.error(format!("{field}.maglev.tableSize"), message);
                HashTable::Maglev(usize::try_from(MAGLEV).ok()?)
            }
        }
        (ring, maglev) => {
            if maglev.is_some() {
                findings.error(field, "has both ringHash and maglev: ringHash counts");
            }
            let asked = ring.as_ref().and_then(|ring| ring.minimum_ring_size).or(written.minimum_ring_size);
            // Envoy's ring has 1024 points at least, and 0 says nothing.
            let asked = asked.filter(|size| *size > 0).unwrap_or(RING);
            HashTable::Ring(usize::try_from(bounded("ringHash.minimumRingSize", asked, MAX_RING, findings)).ok()?)
        }
    };
    Some(Algorithm::Hash(key, table))
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn cookie(field: &str, written: &HttpCookie, findings: &mut Findings<'_>) -> Option<Cookie> {
    // RFC 6265, 4.1.1.
    let is_token = |text: &str| HeaderName::from_bytes(text.as_bytes()).is_ok();
    let is_value = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b';');
    if !is_token(&written.name) {
        findings.error(format!("{field}.name"), format!("{} is no name of a cookie", shown(&written.name)));
        return None;
    }
    let ttl = written.ttl.as_deref().map(|text| (text, duration(text)));
    if let Some((text, None)) = ttl {
        let message = format!("{} is no duration: clients without the cookie are not given one", shown(text));
        findings.error(format!("{field}.ttl"), message);
    }
    let mut path = written.path.as_str();
    if !is_value(path) {
        findings.error(format!("{field}.path"), format!("{} cannot be in a cookie: left out", shown(path)));
        path = "";
    }
    let mut attributes = Vec::new();
    for (at, attribute) in written.attributes.iter().enumerate() {
        if is_token(&attribute.name) && is_value(&attribute.value) {
            attributes.push((attribute.name.as_str().into(), attribute.value.as_str().into()));
        } else {
            findings.error(format!("{field}.attributes[{at}]"), "cannot be in a cookie: left out");
        }
    }
    Some(Cookie {
        name: written.name.as_str().into(),
        path: path.into(),
        ttl: ttl.and_then(|(_, ttl)| ttl),
        attributes,
    })
}

fn locality_of(field: &str, written: &LocalityLbSetting, findings: &mut Findings<'_>) -> Option<Locality> {
    let LocalityLbSetting { distribute, failover, failover_priority, enabled } = written;
    if *enabled == Some(false) {
        return Some(Locality::Disabled);
    }
    let several = [!distribute.is_empty(), !failover.is_empty(), !failover_priority.is_empty()];
    if several.iter().filter(|there| **there).count() > 1 {
        findings.error(field, "has more than one of distribute, failover and failoverPriority: the first counts");
    }
    if distribute.len().max(failover.len()).max(failover_priority.len()) > MAX_LOCALITIES {
        findings.error(field, format!("more than {MAX_LOCALITIES} entries: the rest has no effect"));
    }
    if !distribute.is_empty() {
        let mut rules = Vec::new();
        for (at, rule) in distribute.iter().take(MAX_LOCALITIES).enumerate() {
            let total: u64 = rule.to.values().map(|weight| u64::from(*weight)).sum();
            if total != 100 {
                let message = format!("adds up to {total}, not to 100: taken as shares of that");
                findings.error(format!("{field}.distribute[{at}].to"), message);
            }
            let to: &BTreeMap<String, u32> = &rule.to;
            rules.push((rule.from.as_str().into(), to.iter().map(|(to, w)| (to.as_str().into(), *w)).collect()));
        }
        return Some(Locality::Distribute(rules));
    }
    if !failover_priority.is_empty() {
        let labels = failover_priority.iter().take(MAX_LOCALITIES).map(|text| match text.split_once('=') {
            Some((key, value)) => (key.into(), Some(value.into())),
            None => (text.as_str().into(), None),
        });
        return Some(Locality::Priority(labels.collect()));
    }
    for (at, rule) in failover.iter().enumerate().filter(|(_, rule)| rule.from == rule.to) {
        let message = format!("{} stands in for itself: it has no effect", shown(&rule.from));
        findings.error(format!("{field}.failover[{at}]"), message);
    }
    // With nothing in it, it still says that localities count.
    let regions = failover.iter().take(MAX_LOCALITIES);
    Some(Locality::Failover(regions.map(|rule| (rule.from.as_str().into(), rule.to.as_str().into())).collect()))
}

fn warmup(field: &str, written: &WarmupConfiguration, findings: &mut Findings<'_>) -> Option<Warmup> {
    let Some(duration) = duration(&written.duration).filter(|duration| !duration.is_zero()) else {
        let message = format!("{} is no duration, such as 60s: nothing warms up", shown(&written.duration));
        findings.error(format!("{field}.duration"), message);
        return None;
    };
    let mut number = |name: &str, value: Option<f64>, default: f64, range: std::ops::RangeInclusive<f64>| {
        let value = value.unwrap_or(default);
        if range.contains(&value) {
            return value;
        }
        let message = format!("is not from {} to {}: read as {default}", range.start(), range.end());
        findings.error(format!("{field}.{name}"), message);
        default
    };
    let minimum = number("minimumPercent", written.minimum_percent, 10.0, 0.0..=100.0) / 100.0;
    let aggression = number("aggression", written.aggression, 1.0, 0.01..=100.0);
    Some(Warmup { duration, minimum, aggression })
}
