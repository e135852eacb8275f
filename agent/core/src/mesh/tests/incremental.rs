//! A change reaches what depends on it, and nothing else.

use super::*;
use crate::policy::{Call, authorize};

fn cart() -> ServiceKey {
    key("shop", "cart.shop.svc.cluster.local")
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut state = mesh(SHOP);
    let before = state.snapshot();
    state.apply([Change::Remove(ObjectRef::new(Kind::Pod, "shop", "cart-1"))]);
    assert_eq!(endpoints(&before, &cart()).len(), 1);
    assert_eq!(endpoints(&state.snapshot(), &cart()).len(), 0);
    assert!(state.snapshot().version() > before.version());
}

#[test]
fn while_objects_may_be_missing_nothing_is_allowed_and_the_reason_is_given() {
    let mut state = mesh(SHOP);
    let decide = |snapshot: &Snapshot| {
        let (source_ip, destination) = ("10.0.9.9".parse().unwrap(), "10.0.1.1:8080".parse().unwrap());
        authorize(snapshot, &pod(snapshot, "cart-1"), &Call { principal: None, source_ip, destination }, None)
    };
    assert!(decide(&state.snapshot()).allowed);
    state.set_completeness(false, Some("a.yaml:3:1: not YAML".into()));
    assert!(decide(&state.snapshot()).allowed, "not before it is published");
    let decision = decide(&state.publish());
    assert!(!decision.allowed);
    assert_eq!(decision.reason.to_string(), "policies may be missing: a.yaml:3:1: not YAML");
    state.set_completeness(true, None);
    assert!(decide(&state.publish()).allowed);
}

#[test]
fn a_policy_that_was_never_read_denies_in_its_namespace_and_one_that_was_stays_as_it_was() {
    let mut state = mesh(SHOP);
    let decide = |snapshot: &Snapshot| {
        let (source_ip, destination) = ("10.0.9.9".parse().unwrap(), "10.0.1.1:8080".parse().unwrap());
        authorize(snapshot, &pod(snapshot, "cart-1"), &Call { principal: None, source_ip, destination }, None)
    };
    let report = |namespace: &str, errors: usize| {
        let object = ObjectRef::new(Kind::AuthorizationPolicy, namespace, "p");
        let finding = Finding::error(object.clone(), "spec.action", "not text");
        Change::Report(object, vec![finding; errors])
    };
    for (namespace, is_denied) in [("shop", true), ("elsewhere", false), ("istio-system", true)] {
        state.apply([report(namespace, 1)]);
        let decision = decide(&state.snapshot());
        assert_eq!(!decision.allowed, is_denied, "{namespace}");
        assert!(!is_denied || decision.reason.to_string().contains("spec.action: not text"), "{}", decision.reason);
        state.apply([report(namespace, 0)]);
        assert!(decide(&state.snapshot()).allowed);
    }
    let allow = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                 spec: {rules: [{}]}\n";
    state.apply([report("shop", 1)]);
    state.apply(objects(allow));
    assert!(decide(&state.snapshot()).allowed, "mended");
    state.apply([report("shop", 1)]);
    assert!(decide(&state.snapshot()).allowed, "it stays as it was");
}

#[test]
fn a_pod_that_comes_back_with_other_labels_leaves_its_services() {
    let mut state = mesh(SHOP);
    state.apply(objects(&SHOP.replace("app: cart, version", "app: other, version")));
    assert_eq!(endpoints(&state.snapshot(), &cart()).len(), 0);
    state.apply(objects(SHOP));
    assert_eq!(endpoints(&state.snapshot(), &cart()), ["10.0.1.1:8080*"]);
}

#[test]
fn a_namespace_that_joins_the_mesh_takes_its_pods_with_it() {
    let mut state = mesh(&SHOP.replace("ambient", "none"));
    state.apply(objects(SHOP));
    let snapshot = state.snapshot();
    assert_eq!(pod(&snapshot, "cart-1").protocol, Protocol::Hbone);
    assert_eq!(snapshot.endpoints(&cart()).next().unwrap().workload.protocol, Protocol::Hbone);
    assert_eq!(snapshot.enrolled_pods_on("n1").count(), 1);

    state.apply([Change::Remove(ObjectRef::new(Kind::Namespace, "", "shop"))]);
    assert_eq!(state.snapshot().enrolled_pods_on("n1").count(), 0);
}

#[test]
fn a_node_that_says_where_it_is_tells_its_pods() {
    let mut state = mesh(SHOP);
    state.apply(objects(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: eu-2}}\n",
    ));
    assert_eq!(&*state.snapshot().endpoints(&cart()).next().unwrap().workload.locality.zone, "eu-2");
}

#[test]
fn an_object_that_comes_again_unchanged_changes_nothing() {
    let mut state = mesh(SHOP);
    let before = state.snapshot();
    state.apply(objects(SHOP));
    let after = state.snapshot();
    assert!(Arc::ptr_eq(&pod(&before, "cart-1"), &pod(&after, "cart-1")));
    assert!(Arc::ptr_eq(before.service(&cart()).unwrap(), after.service(&cart()).unwrap()));
}

#[test]
fn a_finding_goes_with_its_cause() {
    let service = |kind: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: x}}\nspec: {{type: {kind}, externalName: a.b}}\n")
    };
    let mut state = mesh(&service("ExternalName"));
    assert_eq!(messages(&state.snapshot()).len(), 1);
    state.apply(objects(&service("ClusterIP")));
    assert_eq!(messages(&state.snapshot()).len(), 0);
}

#[test]
fn an_address_goes_to_the_pod_that_is_left() {
    let other = SHOP.replace("cart-1", "cart-2").replace("11111111-", "22222222-");
    let mut state = mesh(SHOP);
    state.apply(objects(&other));
    let owner = |state: &Mesh| state.snapshot().workload_by_address(ip("10.0.1.1")).unwrap().name.to_string();
    assert_eq!(owner(&state), "cart-1");
    state.apply([Change::Remove(ObjectRef::new(Kind::Pod, "shop", "cart-1"))]);
    assert_eq!(owner(&state), "cart-2");
    state.apply([Change::Remove(ObjectRef::new(Kind::Pod, "shop", "cart-2"))]);
    assert_eq!(state.snapshot().workload_by_address(ip("10.0.1.1")), None);
}

#[test]
fn other_options_reach_identities_names_and_policies() {
    let yaml = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
                data: {mesh: \"trustDomain: td\\nculvert: {cluster-domain: d}\"}\n";
    let mut state = mesh(SHOP);
    state.apply(objects(yaml));
    let snapshot = state.snapshot();
    assert_eq!(&*pod(&snapshot, "cart-1").identity.trust_domain, "td");
    assert_eq!(endpoints(&snapshot, &key("shop", "cart.shop.svc.d")).len(), 1);
    assert!(snapshot.service(&cart()).is_none());

    state.apply([Change::Remove(ObjectRef::new(Kind::ConfigMap, "istio-system", "culvert"))]);
    assert_eq!(&*pod(&state.snapshot(), "cart-1").identity.trust_domain, "cluster.local");
}

#[test]
fn what_is_staged_shows_only_when_it_is_published() {
    let mut state = Mesh::new();
    for object in objects(SHOP) {
        state.stage([object]);
        assert_eq!((state.snapshot().version(), state.snapshot().workloads().len()), (0, 0));
    }
    let published = state.publish();
    assert_eq!(published.version(), 1);
    let at_once = mesh(SHOP).snapshot();
    assert_eq!(published.workloads().len(), at_once.workloads().len());
}

#[test]
fn an_agent_lists_the_enrolled_pods_of_its_own_node_and_knows_all() {
    let mut elsewhere = Mesh::new().for_node("elsewhere");
    elsewhere.apply(objects(SHOP));
    let all = mesh(SHOP).snapshot();
    let enrolled = all.enrolled_pods_on("n1").next().unwrap();
    let node = enrolled.workload.node.clone();
    let mut own = Mesh::new().for_node(&node);
    own.apply(objects(SHOP));
    assert_eq!(elsewhere.snapshot().enrolled_pods_on(&node).count(), 0);
    assert!(own.snapshot().enrolled_pods_on(&node).eq(all.enrolled_pods_on(&node)));
    assert!(elsewhere.snapshot().workloads().eq(all.workloads()));
}
