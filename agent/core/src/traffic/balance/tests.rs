//! Endpoints of three zones in two regions, and a client in one of them.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::*;
use crate::mesh::tests::mesh;
use crate::traffic::policy::{HashKey, Locality};

/// Five nodes: `a` and `b` in zones of region eu, `c` and `d` in us, `e` in asia; a pod of the cart on each of the
/// nodes, v1 but on `e`, where it is v2; and a client on `a`.
fn snapshot() -> Arc<Snapshot> {
    let node = |name: &str, region: &str, zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: {region}, \
             topology.kubernetes.io/zone: {zone}}}}}\n---\n"
        )
    };
    let pod = |name: &str, app: &str, version: &str, node: &str, ip: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}, version: {version}}}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: s, containers: [{{name: c}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: 10.0.0.{ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n---\n"
        )
    };
    let mut yaml = String::new();
    let places =
        [("a", "eu", "eu-1"), ("b", "eu", "eu-2"), ("c", "us", "us-1"), ("d", "us", "us-2"), ("e", "asia", "asia-1")];
    for (at, (name, region, zone)) in places.into_iter().enumerate() {
        yaml += &node(name, region, zone);
        yaml += &pod(&format!("cart-{name}"), "cart", if name == "e" { "v2" } else { "v1" }, name, at as u8 + 1);
    }
    yaml += &pod("client", "client", "v1", "a", 99);
    yaml += "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    mesh(&yaml).snapshot()
}

fn balancer(balancer: LoadBalancer, outliers: bool, subset: Option<&Subset>) -> Balancer {
    let snapshot = snapshot();
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    let policy = TrafficPolicy {
        load_balancer: Some(Arc::new(balancer)),
        outliers: outliers.then(Default::default),
        ..TrafficPolicy::default()
    };
    Balancer::new(&snapshot, service, 80, subset, &policy, snapshot.pod("shop", "client").unwrap())
}

fn name(candidate: &Candidate) -> String {
    candidate.workload.name.trim_start_matches("cart-").to_owned()
}

/// How often each is chosen, of a thousand times.
fn counts(balancer: &Balancer, hash: bool, state: impl Fn(&str) -> State) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    let mut rng = SmallRng::seed_from_u64(3);
    for turn in 0..1_000_u64 {
        let hash = hash.then(|| crate::traffic::hash::hash(&turn.to_le_bytes()));
        let mut choice = Choice { hash, turn, ignore_ejections: false, rng: &mut rng };
        if let Some(chosen) = balancer.choose(&mut choice, |candidate| state(&name(candidate))) {
            *counts.entry(name(chosen)).or_default() += 1;
        }
    }
    counts
}

fn only(counts: &BTreeMap<String, u32>) -> String {
    counts.keys().map(String::as_str).collect()
}

fn well(_: &str) -> State {
    State::default()
}

fn ejected(names: &'static str) -> impl Fn(&str) -> State {
    move |name| State { ejected: names.contains(name), ..State::default() }
}

fn algorithm(algorithm: Algorithm) -> LoadBalancer {
    LoadBalancer { algorithm, ..LoadBalancer::default() }
}

#[test]
fn round_robin_takes_one_after_the_other() {
    let counts = counts(&balancer(algorithm(Algorithm::RoundRobin), false, None), false, well);
    assert!(counts.values().all(|count| *count == 200), "{counts:?}");
}

#[test]
fn random_and_least_request_share_out_evenly_among_equals() {
    for kind in [Algorithm::Random, Algorithm::LeastRequest] {
        let counts = counts(&balancer(algorithm(kind), false, None), false, well);
        assert!(counts.len() == 5 && counts.values().all(|count| (120..280).contains(count)), "{counts:?}");
    }
}

#[test]
fn least_request_avoids_who_is_busy() {
    let busy = |name: &str| State { active: if name == "a" { 100 } else { 1 }, ..State::default() };
    let counts = counts(&balancer(algorithm(Algorithm::LeastRequest), false, None), false, busy);
    // It is taken only where both of the two are the same.
    assert!(counts.get("a").copied().unwrap_or(0) < 90, "{counts:?}");
}

#[test]
fn who_is_ejected_or_has_been_tried_is_passed_over() {
    let ring = Algorithm::Hash(HashKey::SourceIp, HashTable::Ring(1024));
    for (kind, hash) in
        [(Algorithm::Random, false), (Algorithm::RoundRobin, false), (Algorithm::LeastRequest, false), (ring, true)]
    {
        let balancer = balancer(algorithm(kind), false, None);
        assert_eq!(only(&counts(&balancer, hash, ejected("abd"))), "ce");
        assert_eq!(only(&counts(&balancer, hash, ejected("abcde"))), "");
        if !hash {
            let tried = |name: &str| State { tried: "abcd".contains(name), ..State::default() };
            let counts = counts(&balancer, hash, tried);
            assert!(counts["e"] > 900, "{counts:?}");
            let all = |_: &str| State { tried: true, ..State::default() };
            assert_eq!(self::counts(&balancer, hash, all).values().sum::<u32>(), 1_000, "better again than nowhere");
        }
    }
}

#[test]
fn ejections_do_not_count_once_too_many_are_ejected() {
    let balancer = balancer(LoadBalancer::default(), true, None);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut choice = Choice { hash: None, turn: 0, ignore_ejections: true, rng: &mut rng };
    assert!(balancer.choose(&mut choice, |_| State { ejected: true, ..State::default() }).is_some());
}

#[test]
fn the_same_key_goes_to_the_same_endpoint() {
    for table in [HashTable::Ring(1024), HashTable::Maglev(65_537)] {
        let balancer = balancer(algorithm(Algorithm::Hash(HashKey::SourceIp, table)), false, None);
        for key in 0..50_u64 {
            let mut rng = SmallRng::seed_from_u64(key);
            let mut choose = |turn| {
                let mut choice = Choice {
                    hash: Some(key.wrapping_mul(0x1234_5678_9abc_def1)),
                    turn,
                    ignore_ejections: false,
                    rng: &mut rng,
                };
                name(balancer.choose(&mut choice, |_| State::default()).unwrap())
            };
            assert_eq!(choose(0), choose(1));
        }
        let counts = counts(&balancer, true, well);
        assert!(counts.len() == 5, "{counts:?}");
    }
}

#[test]
fn a_subset_is_the_endpoints_of_its_labels() {
    let subset = |version: &str| Subset {
        name: "v".into(),
        labels: [("version".into(), version.into())].into(),
        policy: Default::default(),
    };
    assert_eq!(only(&counts(&balancer(LoadBalancer::default(), false, Some(&subset("v2"))), false, well)), "e");
    assert_eq!(only(&counts(&balancer(LoadBalancer::default(), false, Some(&subset("v3"))), false, well)), "");
}

#[test]
fn a_new_endpoint_gets_less() {
    let warmup = Warmup { duration: Duration::from_secs(60), minimum: 0.1, aggression: 1.0 };
    let new = |name: &str| State { age: (name == "a").then_some(Duration::from_secs(1)), ..State::default() };
    for kind in [Algorithm::RoundRobin, Algorithm::LeastRequest] {
        let settings = LoadBalancer { warmup: Some(warmup), ..algorithm(kind) };
        let counts = counts(&balancer(settings, false, None), false, new);
        assert!((5..60).contains(&counts["a"]), "{counts:?}");
    }
}

#[test]
fn localities_share_out_as_they_are_told() {
    let to = |pairs: &[(&str, u32)]| pairs.iter().map(|(to, weight)| ((*to).into(), *weight)).collect::<Vec<_>>();
    let distribute = |from: &str, shares| LoadBalancer {
        locality: Some(Locality::Distribute(vec![(from.into(), shares)])),
        ..LoadBalancer::default()
    };
    let counts = |settings| counts(&balancer(settings, false, None), false, well);
    let shared = counts(distribute("eu/eu-1/*", to(&[("eu/*", 80), ("us/us-1/*", 20)])));
    assert_eq!(only(&shared), "abc", "who is not listed gets nothing");
    assert!((140..260).contains(&shared["c"]) && (300..500).contains(&shared["a"]), "{shared:?}");
    assert_eq!(only(&counts(distribute("us/*", to(&[("us/*", 100)])))), "abcde", "for clients of elsewhere");
    assert_eq!(only(&counts(distribute("*", to(&[("asia", 100), ("eu", 0)])))), "e");
}

#[test]
fn the_nearest_are_taken_until_they_fail() {
    let failover = |regions: &[(&str, &str)]| LoadBalancer {
        locality: Some(Locality::Failover(regions.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect())),
        ..LoadBalancer::default()
    };
    let asia = failover(&[("eu", "asia")]);
    let with = |settings: &LoadBalancer, outliers, out| {
        only(&counts(&balancer(settings.clone(), outliers, None), false, ejected(out)))
    };
    assert_eq!(with(&asia, true, ""), "a");
    assert_eq!(with(&asia, true, "a"), "b");
    assert_eq!(with(&asia, true, "ab"), "e", "the region that stands in");
    assert_eq!(with(&asia, true, "abe"), "cd");
    assert_eq!(with(&asia, false, ""), "abcde", "nobody is found to fail without outlier detection");
    // Outlier detection alone makes localities count.
    assert_eq!(with(&LoadBalancer::default(), true, ""), "a");
    assert_eq!(with(&LoadBalancer::default(), true, "ab"), "cde");
    let disabled = LoadBalancer { locality: Some(Locality::Disabled), ..LoadBalancer::default() };
    assert_eq!(with(&disabled, true, ""), "abcde");
}

#[test]
fn while_nobody_is_ejected_only_those_who_may_be_chosen_are_looked_at() {
    let shares = vec![("eu/*".into(), 50), ("us/*".into(), 50)];
    let distribute = Locality::Distribute(vec![("*".into(), shares)]);
    for locality in [Locality::Failover(Vec::new()), distribute] {
        let settings = LoadBalancer { locality: Some(locality), ..algorithm(Algorithm::Random) };
        let balancer = balancer(settings, true, None);
        let (mut rng, looked) = (SmallRng::seed_from_u64(1), std::cell::Cell::new(0));
        let mut choice = Choice { hash: None, turn: 0, ignore_ejections: true, rng: &mut rng };
        let count = |_: &Candidate| {
            looked.set(looked.get() + 1);
            State::default()
        };
        assert!(balancer.choose(&mut choice, count).is_some());
        assert_eq!(looked.get(), 1);
    }
}

#[test]
fn labels_make_priorities_by_how_many_are_alike_from_the_first_on() {
    let priority = |labels: &[(&str, Option<&str>)]| LoadBalancer {
        locality: Some(Locality::Priority(labels.iter().map(|(k, v)| ((*k).into(), v.map(Into::into))).collect())),
        ..LoadBalancer::default()
    };
    let with = |labels: &[(&str, Option<&str>)], out| {
        only(&counts(&balancer(priority(labels), true, None), false, ejected(out)))
    };
    let region = "topology.kubernetes.io/region";
    let zone = "topology.kubernetes.io/zone";
    assert_eq!(with(&[(region, None), (zone, None)], ""), "a");
    assert_eq!(with(&[(region, None), (zone, None)], "a"), "b");
    assert_eq!(with(&[("version", Some("v2"))], ""), "e");
    assert_eq!(with(&[("version", None), (region, None)], "ab"), "cd", "a label that differs ends the comparison");
}

#[test]
fn some_go_elsewhere_before_all_of_the_nearest_have_failed() {
    // Of two in the region, one is out: 1.4 times a half of the requests stay.
    let region = LoadBalancer {
        locality: Some(Locality::Priority(vec![("topology.kubernetes.io/region".into(), None)])),
        ..LoadBalancer::default()
    };
    let counts = counts(&balancer(region, true, None), false, ejected("a"));
    assert!((620..780).contains(&counts["b"]), "{counts:?}");
    assert!(!counts.contains_key("a") && counts.len() == 4);
}
