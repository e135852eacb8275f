//! Virtual addresses for ServiceEntries that have none, the same on every node without anyone being asked.
//!
//! Where istiod runs, it writes them into the status; nobody does here. An address is made from the service's name by a
//! hash. Two names that want the same IPv4 address are told apart by their age: the older keeps it, the younger gets one
//! from the next of four ranges, so that a new object never moves the address of another. For IPv6 there is room enough.
//!
//! The ranges are beside those that istiod allocates from (`240.240.0.0/16`, `2001:2::/48` from its start).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::service::ServiceKey;
use crate::workload::Created;

/// How many ranges there are, and the bits of each: `240.248.0.0/15` and the three that follow.
const RANGES: u32 = 4;
const BITS: u32 = 17;
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(240, 248, 0, 0);
/// `2001:2:0:c417::/64`.
const FIRST_V6: u128 = 0x2001_0002_0000_c417 << 64;

/// The older comes first.
type Claim = (Created, ServiceKey);

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    created: HashMap<ServiceKey, Created>,
    /// Who wants an address, by its range and place; the first has it, the others look in the next range.
    wanted: HashMap<(u32, u32), BTreeSet<Claim>>,
}

impl Allocator {
    /// Gives `key` addresses, or with `None` takes them back. Returns the other keys whose addresses have changed by it.
    pub(super) fn set(&mut self, key: &ServiceKey, created: Option<Created>) -> Vec<ServiceKey> {
        let mut moved = Vec::new();
        if self.created.get(key).copied() == created {
            return moved;
        }
        if let Some(before) = self.created.remove(key) {
            self.remove(0, &(before, key.clone()), &mut moved);
        }
        if let Some(created) = created {
            self.created.insert(key.clone(), created);
            self.insert(0, (created, key.clone()), &mut moved);
        }
        moved.retain(|other| other != key);
        moved
    }

    /// The addresses of `key`. An IPv4 address is missing only where it is the youngest of five names that hash alike
    /// four times.
    pub(super) fn addresses(&self, key: &ServiceKey) -> Vec<IpNet> {
        let Some(created) = self.created.get(key) else { return Vec::new() };
        let claim = (*created, key.clone());
        let place = (0..RANGES).map(|range| (range, place(range, key)));
        let v4 = place.into_iter().find(|place| self.wanted.get(place).and_then(BTreeSet::first) == Some(&claim));
        let v4 = v4.map(|(range, place)| IpAddr::V4(Ipv4Addr::from_bits(FIRST_V4.to_bits() + (range << BITS) + place)));
        let v6 = IpAddr::V6(Ipv6Addr::from_bits(FIRST_V6 | u128::from(hash(RANGES, key))));
        v4.into_iter().chain([v6]).map(IpNet::from).collect()
    }

    fn insert(&mut self, range: u32, claim: Claim, moved: &mut Vec<ServiceKey>) {
        if range == RANGES {
            return;
        }
        let wanted = self.wanted.entry((range, place(range, &claim.1))).or_default();
        let before = wanted.first().cloned();
        wanted.insert(claim.clone());
        match before {
            None => {}
            Some(first) if first < claim => self.insert(range + 1, claim, moved),
            Some(first) => {
                moved.push(first.1.clone());
                self.insert(range + 1, first, moved);
            }
        }
    }

    fn remove(&mut self, range: u32, claim: &Claim, moved: &mut Vec<ServiceKey>) {
        let at = (range, place(range, &claim.1));
        let Some(wanted) = self.wanted.get_mut(&at) else { return };
        let had = wanted.first() == Some(claim);
        wanted.remove(claim);
        let next = wanted.first().cloned();
        if wanted.is_empty() {
            self.wanted.remove(&at);
        }
        match next {
            _ if !had => self.remove(range + 1, claim, moved),
            Some(next) => {
                moved.push(next.1.clone());
                self.remove(range + 1, &next, moved);
            }
            None => {}
        }
    }
}

fn place(range: u32, key: &ServiceKey) -> u32 {
    // The upper bits of FNV are mixed best.
    (hash(range, key) >> (64 - BITS)) as u32
}

/// FNV-1a: the same on every machine and in every version.
fn hash(range: u32, key: &ServiceKey) -> u64 {
    let bytes = key.namespace.bytes().chain([b'/']).chain(key.hostname.bytes()).chain(range.to_be_bytes());
    let sum = bytes
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // FNV leaves names that differ in their last letters close together; this spreads them (the finalizer of MurmurHash3).
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    sum ^ (sum >> 33)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn key(n: u32) -> ServiceKey {
        ServiceKey { namespace: "n".into(), hostname: format!("host-{n}.example.com").into() }
    }

    /// Names of which many want the same place of the first range.
    fn crowded() -> Vec<ServiceKey> {
        static CROWDED: LazyLock<Vec<ServiceKey>> = LazyLock::new(find_crowded);
        CROWDED.clone()
    }

    fn find_crowded() -> Vec<ServiceKey> {
        let mut by_place: HashMap<u32, Vec<ServiceKey>> = HashMap::new();
        for n in 0..20_000 {
            by_place.entry(place(0, &key(n))).or_default().push(key(n));
        }
        let mut crowds: Vec<_> = by_place.into_values().filter(|keys| keys.len() > 1).collect();
        crowds.sort();
        let mut crowds: Vec<ServiceKey> = crowds.into_iter().flatten().collect();
        crowds.truncate(40);
        crowds
    }

    fn addresses(allocator: &Allocator, keys: &[ServiceKey]) -> Vec<Vec<IpNet>> {
        keys.iter().map(|key| allocator.addresses(key)).collect()
    }

    #[test]
    fn addresses_are_the_same_everywhere_and_for_ever() {
        let mut allocator = Allocator::default();
        allocator.set(&key(1), Some(Created::at(Some(1))));
        let text: Vec<_> = allocator.addresses(&key(1)).iter().map(ToString::to_string).collect();
        assert_eq!(text, EXPECTED);
    }

    const EXPECTED: [&str; 2] = ["240.249.191.129/32", "2001:2:0:c417:812e:2267:6446:ef1b/128"];

    #[test]
    fn no_two_names_share_an_address_and_the_older_keeps_its_own() {
        let keys = crowded();
        let mut allocator = Allocator::default();
        for (age, key) in keys.iter().enumerate() {
            let before = addresses(&allocator, &keys[..age]);
            assert_eq!(allocator.set(key, Some(Created::at(Some(age as i64)))), [], "nobody older moves");
            assert_eq!(addresses(&allocator, &keys[..age]), before);
        }
        let all: Vec<IpNet> = addresses(&allocator, &keys).concat();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (2 * keys.len(), 2 * keys.len()));
        assert!(all.iter().any(|net| net.addr() >= IpAddr::from([240, 250, 0, 0]) && net.addr().is_ipv4()), "{all:?}");
    }

    proptest! {
        #[test]
        fn addresses_do_not_depend_on_what_happened_before(
            steps in proptest::collection::vec((0usize..40, proptest::option::of(0i64..5)), 1..200),
        ) {
            let keys = crowded();
            let mut allocator = Allocator::default();
            for (at, created) in &steps {
                let at = at % keys.len();
                let before = addresses(&allocator, &keys);
                let moved = allocator.set(&keys[at], created.map(|age| Created::at(Some(age))));
                for (index, (before, now)) in before.iter().zip(addresses(&allocator, &keys)).enumerate() {
                    prop_assert!(index == at || *before == now || moved.contains(&keys[index]), "moved and not said");
                }
            }
            let mut anew = Allocator::default();
            for key in keys.iter().rev() {
                anew.set(key, allocator.created.get(key).copied());
            }
            prop_assert_eq!(addresses(&allocator, &keys), addresses(&anew, &keys));
            for key in &keys {
                allocator.set(key, None);
            }
            prop_assert!(allocator.wanted.is_empty() && allocator.created.is_empty());
        }
    }
}
