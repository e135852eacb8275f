//! The same objects give the same mesh, in whatever order and batches they came.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Objects that depend on each other in every way there is, some of them twice with different contents.
const OBJECTS: &str = include_str!("order.yaml");

/// Everything that readers can see, but for the version.
fn visible(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for workload in snapshot.workloads() {
        seen.insert(format!("workload {}", workload.uid), format!("{workload:?}"));
        for address in &workload.addresses {
            let owner = snapshot.workload_by_address(*address).map(|owner| owner.uid.to_string());
            seen.insert(format!("address {address}"), format!("{owner:?}"));
        }
        let policies: Vec<_> = snapshot.policies_for(workload).iter().map(|p| p.name.to_string()).collect();
        let mode = snapshot.peer_authentication_for(workload);
        seen.insert(format!("policies {}", workload.uid), format!("{policies:?} {mode:?}"));
    }
    for service in snapshot.services() {
        seen.insert(format!("service {}", service.key), format!("{service:?}"));
        seen.insert(format!("endpoints {}", service.key), format!("{:?}", endpoints(snapshot, &service.key)));
        for vip in &service.vips {
            let owner = snapshot.service_by_address(vip.addr(), "nowhere").map(|owner| owner.key.to_string());
            seen.insert(format!("vip {vip}"), format!("{owner:?}"));
        }
        let named: Vec<_> =
            snapshot.services_by_hostname(&service.key.hostname).map(|service| service.key.to_string()).collect();
        seen.insert(format!("hostname {}", service.key.hostname), format!("{named:?}"));
    }
    for node in ["n1", "n2"] {
        seen.insert(format!("node {node}"), format!("{:?}", snapshot.enrolled_pods_on(node).collect::<Vec<_>>()));
    }
    for waypoint in snapshot.waypoints() {
        seen.insert(format!("waypoint {}", waypoint.gateway), format!("{waypoint:?}"));
    }
    seen.insert("findings".to_owned(), format!("{:?}", snapshot.findings().collect::<Vec<_>>()));
    seen.insert("options".to_owned(), format!("{:?}", snapshot.options()));
    seen
}

fn all() -> Vec<Object> {
    let parsed = culvert_api::yaml::parse(OBJECTS.as_bytes());
    assert!(!parsed.is_broken(), "{:?}", parsed.mistakes);
    parsed.objects.into_iter().map(|(object, _)| object).collect()
}

#[test]
fn the_fixture_has_every_kind() {
    let snapshot = mesh(OBJECTS).snapshot();
    assert!(snapshot.workloads().len() >= 8 && snapshot.services().len() >= 5);
    assert!(snapshot.enrolled_pods_on("n1").count() > 0);
}

#[test]
fn nothing_is_left_when_every_object_is_gone() {
    let mut state = mesh(OBJECTS);
    for object in all() {
        state.apply([Change::Remove(object.reference())]);
    }
    let empty = visible(&Mesh::new().snapshot());
    assert_eq!(visible(&state.snapshot()), empty);
    assert!(state.workloads.shards().all(HashMap::is_empty), "{:?}", state.workloads);
    assert_eq!(format!("{:?}", state.services), format!("{:?}", ServiceStore::default()));
    assert_eq!(format!("{:?}", state.indexes), format!("{:?}", WorkloadIndexes::default()));
    assert_eq!(format!("{:?}", state.namespaces), format!("{:?}", Namespaces::default()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_order_of_changes_does_not_matter(
        order in Just((0..all().len()).collect::<Vec<_>>()).prop_shuffle(),
        batch in 1_usize..8,
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let objects = all();
        let expected = visible(&mesh(OBJECTS).snapshot());
        let mut state = Mesh::new();
        for batch in order.chunks(batch) {
            state.apply(batch.iter().map(|at| Change::Upsert(objects[*at].clone())));
            state.snapshot();
        }
        prop_assert_eq!(&visible(&state.snapshot()), &expected);

        // What goes and comes back leaves no trace, and while it is away the mesh is as if it had never come.
        let gone: Vec<usize> = removed.iter().map(|index| index.index(objects.len())).collect();
        for at in &gone {
            state.apply([Change::Remove(objects[*at].reference())]);
        }
        let mut fresh = Mesh::new();
        let kept = (0..objects.len()).filter(|at| !gone.contains(at));
        fresh.apply(kept.map(|at| Change::Upsert(objects[at].clone())));
        prop_assert_eq!(visible(&state.snapshot()), visible(&fresh.snapshot()));

        for at in &gone {
            state.apply([Change::Upsert(objects[*at].clone())]);
        }
        prop_assert_eq!(visible(&state.snapshot()), expected);
    }
}
