//! `baggage` (W3C Baggage): what a peer says about itself. It labels telemetry and decides nothing: anyone with a
//! certificate can write anything here.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::workload::WorkloadType;

/// The longest value read, which is also what W3C Baggage asks every party to carry.
pub const MAX_LEN: usize = 8192;

/// How many list members are looked at (W3C Baggage: at least 64 are to be carried).
const MAX_MEMBERS: usize = 64;

/// The longest single value kept: label values and DNS names are shorter.
const MAX_VALUE_LEN: usize = 256;

/// A workload's description of itself, with the keys that ztunnel and Envoy waypoints use. Empty values are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Arc<str>>,
    /// `k8s.deployment.name` or whichever controller owns the workload: its kind and name.
    pub workload: Option<(WorkloadType, Arc<str>)>,
    /// `service.name`: Istio's canonical name.
    pub service_name: Option<Arc<str>>,
    /// `service.version`: Istio's canonical revision.
    pub service_version: Option<Arc<str>>,
    /// `cloud.region`.
    pub region: Option<Arc<str>>,
    /// `cloud.availability_zone`.
    pub zone: Option<Arc<str>>,
}

/// Why a value is not baggage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaggageError {
    /// Longer than [`MAX_LEN`].
    #[error("baggage has {0} bytes, more than {MAX_LEN}")]
    TooLong(usize),
    /// More than 64 members.
    #[error("baggage has more than {MAX_MEMBERS} members")]
    TooManyMembers,
    /// A member that is not `key=value`, a key that comes twice, a value with bad percent-encoding or too long.
    #[error("baggage member {0:?} is malformed")]
    Member(String),
}

impl fmt::Display for Baggage {
    /// The header's value, in ztunnel's order; empty if nothing is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload_key = self.workload.as_ref().map_or("", |(kind, _)| workload_key(*kind));
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (workload_key, &self.workload.as_ref().map(|(_, name)| name.clone())),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let present =
            members.iter().filter_map(|(key, value)| Some((key, value.as_deref().filter(|v| !v.is_empty())?)));
        for (i, (key, value)) in present.enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{key}={}", Encoded(value))?;
        }
        Ok(())
    }
}

impl FromStr for Baggage {
    type Err = BaggageError;

    /// Members with other keys, and properties after `;`, are skipped.
    fn from_str(s: &str) -> Result<Self, BaggageError> {
        if s.len() > MAX_LEN {
            return Err(BaggageError::TooLong(s.len()));
        }
        let mut baggage = Self::default();
        for (i, member) in s.split(',').map(trim).filter(|m| !m.is_empty()).enumerate() {
            if i == MAX_MEMBERS {
                return Err(BaggageError::TooManyMembers);
            }
            baggage.set(member).ok_or_else(|| BaggageError::Member(member.chars().take(64).collect()))?;
        }
        Ok(baggage)
    }
}

impl Baggage {
    /// Takes in one member; `None` if it is malformed or its place is taken.
    fn set(&mut self, member: &str) -> Option<()> {
        let (key, value) = member.split(';').next()?.split_once('=')?;
        let key = trim(key);
        if key.is_empty() || !key.bytes().all(is_token) {
            return None;
        }
        let value = decode(trim(value))?;
        if value.is_empty() {
            return Some(());
        }
        if let Some(kind) = WORKLOAD_TYPES.into_iter().find(|kind| workload_key(*kind) == key) {
            return match self.workload.replace((kind, value.into())) {
                None => Some(()),
                Some(_) => None,
            };
        }
        let place = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => return Some(()),
        };
        match place.replace(value.into()) {
            None => Some(()),
            Some(_) => None,
        }
    }
}

const WORKLOAD_TYPES: [WorkloadType; 4] =
    [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Job, WorkloadType::Pod];

fn workload_key(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Job => "k8s.job.name",
        WorkloadType::Pod => "k8s.pod.name",
    }
}

/// Optional white space is space and tab, nothing else.
fn trim(s: &str) -> &str {
    s.trim_matches([' ', '\t'])
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// `baggage-octet` of W3C Baggage, without `%`.
fn is_plain(b: u8) -> bool {
    matches!(b, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e) && b != b'%'
}

fn decode(s: &str) -> Option<String> {
    let mut bytes = s.bytes();
    let mut out = Vec::with_capacity(s.len().min(MAX_VALUE_LEN));
    while let Some(b) = bytes.next() {
        let hex = |b: u8| char::from(b).to_digit(16);
        out.push(match b {
            b'%' => u8::try_from(hex(bytes.next()?)? * 16 + hex(bytes.next()?)?).ok()?,
            _ if is_plain(b) => b,
            _ => return None,
        });
        if out.len() > MAX_VALUE_LEN {
            return None;
        }
    }
    // A value goes into logs and metric labels.
    let text = String::from_utf8(out).ok()?;
    (!text.contains(char::is_control)).then_some(text)
}

/// Writes a value with everything but `baggage-octet` percent-encoded.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.bytes().all(is_plain) {
            return f.write_str(self.0);
        }
        self.0.bytes().try_for_each(|b| match is_plain(b) {
            true => write!(f, "{}", char::from(b)),
            false => write!(f, "%{b:02X}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cart() -> Baggage {
        Baggage {
            cluster: Some("Kubernetes".into()),
            namespace: Some("shop".into()),
            workload: Some((WorkloadType::Deployment, "cart".into())),
            service_name: Some("cart".into()),
            service_version: Some("v1".into()),
            region: None,
            zone: Some("eu 1,a".into()),
        }
    }

    #[test]
    fn it_is_written_as_ztunnel_writes_it() {
        assert_eq!(
            cart().to_string(),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
             service.version=v1,cloud.availability_zone=eu%201%2Ca"
        );
        assert_eq!(Baggage::default().to_string(), "");
    }

    #[test]
    fn unknown_keys_properties_and_white_space_are_skipped() {
        let text = " other=1 ,, k8s.namespace.name = shop ;p=1;q , service.name=";
        assert_eq!(text.parse(), Ok(Baggage { namespace: Some("shop".into()), ..Baggage::default() }));
    }

    #[test]
    fn malformed_members_are_refused() {
        for bad in [
            "a",
            "=b",
            "a b=c",
            "service.name=%",
            "service.name=%4",
            "service.name=%zz",
            "service.name=%ff",
            "service.name=a%0Ab",
            "service.name=a\"b",
            "service.name=a,service.name=b",
            "k8s.pod.name=a,k8s.job.name=b",
        ] {
            assert!(bad.parse::<Baggage>().is_err(), "{bad}");
        }
    }

    #[test]
    fn size_and_count_are_bounded() {
        assert_eq!("a=b,".repeat(3000).parse::<Baggage>(), Err(BaggageError::TooLong(12000)));
        assert_eq!("a=b,".repeat(65).parse::<Baggage>(), Err(BaggageError::TooManyMembers));
        assert!(format!("service.name={}", "x".repeat(257)).parse::<Baggage>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(
            values in prop::array::uniform6(prop::option::of("[^\\p{Cc}]{1,20}")),
            kind in 0usize..4,
            name in "[a-z0-9-]{1,20}",
        ) {
            let [cluster, namespace, service_name, service_version, region, zone] = values.map(|v| v.map(Arc::from));
            let workload = Some((WORKLOAD_TYPES[kind], name.into()));
            let baggage = Baggage { cluster, namespace, workload, service_name, service_version, region, zone };
            prop_assert_eq!(baggage.to_string().parse::<Baggage>(), Ok(baggage));
        }

        #[test]
        fn whatever_parses_prints_to_the_same_value(text in "((k8s.pod.name|service.name|x)=[ -~]{0,8}[,;]?){0,4}") {
            if let Ok(baggage) = text.parse::<Baggage>() {
                prop_assert_eq!(baggage.to_string().parse::<Baggage>(), Ok(baggage));
            }
        }
    }
}
