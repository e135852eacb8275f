//! The same endpoint for the same key, and the same for most keys when endpoints come and go.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::policy::{Cookie, HashKey};
use crate::route::request::{Origin, RequestHead};

/// The most points of a ring, and places of a table.
pub const MAX_TABLE: usize = 5_000_011;
/// The fewest points of a host for each unit of its weight, and how many of all hosts are no reason to have fewer.
const MIN_POINTS: usize = 128;
const COMMON_RING: u64 = 1 << 18;

/// A hash that is the same everywhere and always (FNV-1a, then the finalizer of SplitMix64): proxies agree on it.
pub fn hash(bytes: &[u8]) -> u64 {
    let folded =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    mix(folded)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash of what `key` names of a request; `None` if it has none, and goes anywhere.
pub fn of_request(key: &HashKey, origin: &Origin<'_>, request: &RequestHead<'_>) -> Option<u64> {
    match key {
        HashKey::Header(name) => request.header(name).map(|value| hash(&value)),
        HashKey::Cookie(cookie) => cookie.value(request.headers).map(|value| hash(value.as_bytes())),
        HashKey::SourceIp => Some(of_source(origin)),
        HashKey::Parameter(name) => request.parameter(name).map(|value| hash(value.as_bytes())),
    }
}

/// The hash of the client's address.
pub fn of_source(origin: &Origin<'_>) -> u64 {
    hash(origin.client_address.ip().to_canonical().to_string().as_bytes())
}

impl Cookie {
    /// What a request has under this name.
    pub fn value<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.filter(|(name, value)| **name == *self.name && !value.is_empty()).map(|(_, value)| value).next()
    }

    /// The `Set-Cookie` that gives a client without one the value that `hash` is written as; `None` if clients are not
    /// given any. Its next request has to be hashed to the same: the value is hashed, not `hash` itself.
    pub fn issue(&self, hash: u64) -> Option<(u64, HeaderValue)> {
        let ttl = self.ttl?;
        let value = format!("{hash:016x}");
        let mut text = format!("{}=\"{value}\"", self.name);
        if !ttl.is_zero() {
            text += &format!("; Max-Age={}", ttl.as_secs());
        }
        if !self.path.is_empty() {
            text += &format!("; Path={}", self.path);
        }
        for (name, value) in &self.attributes {
            text += &format!("; {name}");
            if !value.is_empty() {
                text += &format!("={value}");
            }
        }
        text += "; HttpOnly";
        // Clients send the quotes back (RFC 6265, 4.1.1).
        Some((self::hash(format!("\"{value}\"").as_bytes()), HeaderValue::from_str(&text).ok()?))
    }
}

/// A place for every hash.
#[derive(Clone, Debug)]
pub enum Table {
    /// Points on a ring, sorted, and whose they are.
    Ring(Vec<(u64, u32)>),
    /// Places, and whose they are.
    Maglev(Vec<u32>),
}

impl Table {
    /// A ring on which each of `hosts` has `points` points for each unit of its weight, or fewer where there would be
    /// too many: how many does not depend on how many hosts there are, so that one that goes disturbs nobody else.
    pub fn ring(hosts: &[(&[u8], u32)], points: usize) -> Self {
        let total: u64 = hosts.iter().map(|(_, weight)| u64::from((*weight).max(1))).sum();
        let mut each = points.clamp(MIN_POINTS, MAX_TABLE) as u64;
        while each > MIN_POINTS as u64 && each.saturating_mul(total) > COMMON_RING {
            each /= 2;
        }
        let mut ring = Vec::new();
        for (index, (name, weight)) in hosts.iter().enumerate() {
            let own = u128::from(each) * u128::from((*weight).max(1));
            let most = own * MAX_TABLE as u128 / (u128::from(each) * u128::from(total.max(1)));
            let seed = hash(name);
            ring.extend((0..own.min(most.max(1)) as u64).map(|point| (mix(seed ^ mix(point + 1)), index as u32)));
        }
        ring.sort_unstable();
        Self::Ring(ring)
    }

    /// A table of `size` places, a prime, which hosts take in turn, each in an order of its own, as often as their
    /// weights say ("Maglev: A Fast and Reliable Software Network Load Balancer", 3.4).
    pub fn maglev(hosts: &[(&[u8], u32)], size: usize) -> Self {
        let size = size.clamp(2, MAX_TABLE) as u64;
        let heaviest = hosts.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1);
        struct Turn {
            at: u64,
            skip: u64,
            weight: u32,
            credit: u64,
        }
        let mut turns: Vec<Turn> = hosts
            .iter()
            .map(|(name, weight)| {
                let first = hash(name);
                Turn { at: first % size, skip: mix(first) % (size - 1) + 1, weight: (*weight).max(1), credit: 0 }
            })
            .collect();
        let mut table = vec![u32::MAX; if turns.is_empty() { 0 } else { size as usize }];
        let mut free = table.len();
        while free > 0 {
            for (index, turn) in turns.iter_mut().enumerate() {
                turn.credit += u64::from(turn.weight);
                if turn.credit < u64::from(heaviest) {
                    continue;
                }
                turn.credit -= u64::from(heaviest);
                while table[turn.at as usize] != u32::MAX {
                    turn.at = (turn.at + turn.skip) % size;
                }
                table[turn.at as usize] = index as u32;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self::Maglev(table)
    }

    /// Whose `hash` is: the first that may be taken, from its place on.
    pub fn find(&self, hash: u64, may_be: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(ring) => {
                let start = ring.partition_point(|(point, _)| *point < hash);
                let (before, after) = ring.split_at(start);
                after.iter().chain(before).map(|(_, index)| *index as usize).find(|index| may_be(*index))
            }
            Self::Maglev(table) => {
                let start = hash.checked_rem(table.len() as u64)? as usize;
                let (before, after) = table.split_at(start);
                after.iter().chain(before).map(|index| *index as usize).find(|index| may_be(*index))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn tables(names: &[String], weights: &[u32]) -> [Table; 2] {
        let hosts: Vec<_> = names.iter().zip(weights).map(|(name, weight)| (name.as_bytes(), *weight)).collect();
        [Table::ring(&hosts, 4096), Table::maglev(&hosts, 65_537)]
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("Kubernetes//Pod/shop/cart-{at}")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Who loses an endpoint finds another, and of the others (almost) nobody changes.
        #[test]
        fn an_endpoint_that_goes_disturbs_few_others(count in 3_usize..30, gone in 0_usize..30) {
            let all = names(count);
            let gone = gone % count;
            let rest: Vec<_> = all.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, n)| n.clone()).collect();
            for (before, after) in tables(&all, &vec![1; count]).into_iter().zip(tables(&rest, &vec![1; count])) {
                let is_ring = matches!(before, Table::Ring(_));
                let mut moved = 0;
                for key in 0..4_000_u64 {
                    let key = mix(key);
                    let old = &all[before.find(key, |_| true).unwrap()];
                    let new = &rest[after.find(key, |_| true).unwrap()];
                    prop_assert!(*new != all[gone]);
                    moved += u32::from(*old != all[gone] && old != new);
                }
                // On a ring nobody else moves but by the rounding of shares; Maglev moves a few percent.
                prop_assert!(f64::from(moved) <= 4_000.0 * if is_ring { 0.02 } else { 0.06 }, "{moved} {is_ring}");
            }
        }

        /// Leaving an endpoint out, as one that is ejected, moves nobody else's keys at all.
        #[test]
        fn an_endpoint_that_is_left_out_moves_only_its_own_keys(count in 2_usize..20, out in 0_usize..20) {
            for table in tables(&names(count), &vec![1; count]) {
                for key in 0..500_u64 {
                    let key = mix(key);
                    let whole = table.find(key, |_| true);
                    let without = table.find(key, |index| index != out % count);
                    prop_assert!(whole == without || whole == Some(out % count));
                }
            }
        }

        /// Each has its share of the keys.
        #[test]
        fn keys_are_shared_out_by_weight(weights in proptest::collection::vec(1_u32..5, 2..8)) {
            let total: u32 = weights.iter().sum();
            for table in tables(&names(weights.len()), &weights) {
                let mut counts = vec![0_u32; weights.len()];
                for key in 0..20_000_u64 {
                    counts[table.find(mix(key), |_| true).unwrap()] += 1;
                }
                for (count, weight) in counts.iter().zip(&weights) {
                    let (share, expected) = (f64::from(*count) / 20_000.0, f64::from(*weight) / f64::from(total));
                    prop_assert!((share - expected).abs() < expected * 0.25 + 0.01, "{counts:?} of {weights:?}");
                }
            }
        }
    }

    #[test]
    fn without_endpoints_nobody_is_found() {
        for table in tables(&[], &[]).into_iter().chain(tables(&names(1), &[1])) {
            assert_eq!(table.find(7, |_| false), None);
        }
    }

    #[test]
    fn a_client_comes_back_with_the_cookie_that_it_was_given() {
        let cookie = Cookie {
            name: "session".into(),
            path: "/".into(),
            ttl: Some(Duration::from_secs(60)),
            attributes: vec![("SameSite".into(), "Strict".into()), ("Secure".into(), "".into())],
        };
        let (hash, header) = cookie.issue(7).unwrap();
        assert_eq!(header, "session=\"0000000000000007\"; Max-Age=60; Path=/; SameSite=Strict; Secure; HttpOnly");
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, "a=b; session=\"0000000000000007\"; c=d".parse().unwrap());
        assert_eq!(self::hash(cookie.value(&headers).unwrap().as_bytes()), hash);
        assert_eq!(Cookie { ttl: None, ..cookie }.issue(7), None);
    }
}
