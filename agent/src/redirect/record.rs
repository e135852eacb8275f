//! What is kept of a pod in the pinned map, and back.

use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use culvert_ebpf_common::{Ip, Pod, PodRecord};

use super::PodSpec;

/// The address as maps hold it.
pub(super) fn to_key(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The record of `pod`, whose sysctls for marks were `mark_sysctls`.
///
/// # Errors
///
/// What of it is too long to be kept.
pub(super) fn to_record(pod: &PodSpec, mark_sysctls: u32) -> Result<PodRecord, &'static str> {
    let mut record = PodRecord {
        uid: [0; 128],
        netns: [0; 256],
        addresses: [[0; 16]; 8],
        address_count: 0,
        flags: flags(pod),
        mark_sysctls,
    };
    fill(&mut record.uid, pod.uid.as_bytes()).ok_or("its UID is empty or longer than 128 bytes")?;
    fill(&mut record.netns, pod.netns.as_os_str().as_bytes()).ok_or("its netns path is longer than 256 bytes")?;
    if pod.addresses.is_empty() || pod.addresses.len() > record.addresses.len() {
        return Err("it has no address, or more than 8");
    }
    for (slot, ip) in record.addresses.iter_mut().zip(&pod.addresses) {
        *slot = to_key(*ip);
        record.address_count += 1;
    }
    Ok(record)
}

/// The pod that `record` was made from, without its outbound rules.
pub(super) fn to_spec(record: &PodRecord) -> PodSpec {
    let count = (record.address_count as usize).min(record.addresses.len());
    PodSpec {
        uid: String::from_utf8_lossy(trim(&record.uid)).into_owned(),
        netns: PathBuf::from(std::ffi::OsString::from_vec(trim(&record.netns).to_vec())),
        addresses: record.addresses[..count].iter().map(|ip| IpAddr::from(*ip).to_canonical()).collect(),
        bypass_inbound: record.flags & Pod::BYPASS_INBOUND != 0,
        capture_dns: record.flags & Pod::CAPTURE_DNS != 0,
        // They are in maps of their own.
        outbound_rules: None,
    }
}

/// [`Pod::flags`] of `pod`.
pub(super) fn flags(pod: &PodSpec) -> u32 {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    flag(pod.bypass_inbound, Pod::BYPASS_INBOUND)
        | flag(pod.capture_dns, Pod::CAPTURE_DNS)
        | flag(pod.outbound_rules.is_some(), Pod::RULES)
}

fn fill(to: &mut [u8], from: &[u8]) -> Option<()> {
    if from.is_empty() {
        return None;
    }
    to.get_mut(..from.len())?.copy_from_slice(from);
    Some(())
}

fn trim(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodSpec {
        PodSpec {
            uid: "0a1b".to_owned(),
            netns: "/run/netns/pod".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            bypass_inbound: true,
            capture_dns: true,
            outbound_rules: None,
        }
    }

    #[test]
    fn a_pod_survives_being_recorded() {
        let record = to_record(&pod(), 1).unwrap();
        assert_eq!(to_spec(&record), pod());
        assert_eq!(record.mark_sysctls, 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_rather_than_cut() {
        let long = |n| "x".repeat(n);
        assert!(to_record(&PodSpec { uid: long(128), ..pod() }, 0).is_ok());
        assert!(to_record(&PodSpec { uid: long(129), ..pod() }, 0).is_err());
        assert!(to_record(&PodSpec { netns: long(257).into(), ..pod() }, 0).is_err());
        assert!(to_record(&PodSpec { addresses: vec![], ..pod() }, 0).is_err());
        assert!(to_record(&PodSpec { addresses: vec![pod().addresses[0]; 9], ..pod() }, 0).is_err());
    }
}
