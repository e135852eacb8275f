//! Inheritance, and what STRICT does.

use super::*;
use crate::workload::Protocol;
use crate::workload::*;

fn workload() -> Workload {
    Workload {
        uid: WorkloadUid("Kubernetes//Pod/shop/cart".into()),
        name: "cart".into(),
        addresses: ["10.0.1.1".parse().unwrap()].into_iter().collect(),
        node: "n1".into(),
        health: Health::Healthy,
        locality: Arc::default(),
        template: Arc::new(Template {
            namespace: "shop".into(),
            identity: Arc::new(Identity::new("cluster.local", "shop", "cart")),
            hostname: None,
            protocol: Protocol::Hbone,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            labels: Arc::new([("app".into(), "cart".into())].into()),
            workload_name: "cart".into(),
            workload_type: WorkloadType::Deployment,
            canonical_name: "cart".into(),
            canonical_revision: "latest".into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
            capacity: 1,
            outbound_rules: None,
            pod_name: None,
        }),
    }
}

/// `namespace/name@created spec`.
fn objects(written: &[&str]) -> Vec<PeerAuthentication> {
    let parse = |text: &&str| {
        let (name, spec) = text.split_once(' ').unwrap();
        let (name, created) = name.split_once('@').unwrap_or((name, "0"));
        let (namespace, name) = name.split_once('/').unwrap();
        let mut object = security::PeerAuthentication::new(name, serde_yaml::from_str(spec).unwrap());
        object.metadata.namespace = Some(namespace.to_owned());
        let mut parsed = translate::peer_authentication(&object, ROOT, &mut Vec::new())?;
        parsed.created = created.parse().ok();
        Some(parsed)
    };
    written.iter().filter_map(parse).collect()
}

fn effective(written: &[&str]) -> EffectivePeerAuthentication {
    EffectivePeerAuthentication::resolve(&objects(written), &workload())
}

#[test]
fn modes_are_inherited() {
    use MtlsMode::{Permissive, Strict};
    let rows: &[(&str, &[&str], MtlsMode, Option<&str>)] = &[
        ("nothing is permissive", &[], Permissive, None),
        ("the mesh's", &["istio-system/m {mtls: {mode: STRICT}}"], Strict, Some("istio-system/m")),
        (
            "the namespace's before the mesh's",
            &["istio-system/m {mtls: {mode: STRICT}}", "shop/n {mtls: {mode: PERMISSIVE}}"],
            Permissive,
            Some("shop/n"),
        ),
        ("another namespace's is not ours", &["other/n {mtls: {mode: STRICT}}"], Permissive, None),
        (
            "the pod's before the namespace's",
            &[
                "shop/n {mtls: {mode: PERMISSIVE}}",
                "shop/w {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}",
            ],
            Strict,
            Some("shop/w"),
        ),
        (
            "another pod's is not ours",
            &["shop/w {selector: {matchLabels: {app: pay}}, mtls: {mode: STRICT}}"],
            Permissive,
            None,
        ),
        (
            "unset inherits",
            &[
                "istio-system/m {mtls: {mode: STRICT}}",
                "shop/n {mtls: {mode: UNSET}}",
                "shop/w {selector: {matchLabels: {app: cart}}}",
            ],
            Strict,
            Some("istio-system/m"),
        ),
        (
            "DISABLE is PERMISSIVE",
            &["istio-system/m {mtls: {mode: STRICT}}", "shop/n {mtls: {mode: DISABLE}}"],
            Permissive,
            Some("shop/n"),
        ),
        (
            "the oldest wins",
            &["shop/a@20 {mtls: {mode: PERMISSIVE}}", "shop/b@10 {mtls: {mode: STRICT}}"],
            Strict,
            Some("shop/b"),
        ),
        (
            "then the first by name",
            &["shop/b@10 {mtls: {mode: PERMISSIVE}}", "shop/a@10 {mtls: {mode: STRICT}}"],
            Strict,
            Some("shop/a"),
        ),
        (
            "the oldest wins even if unset",
            &["istio-system/m {mtls: {mode: STRICT}}", "shop/a@20 {mtls: {mode: PERMISSIVE}}", "shop/b@10 {}"],
            Strict,
            Some("istio-system/m"),
        ),
        (
            "one without a time is the youngest",
            &["shop/a@? {mtls: {mode: PERMISSIVE}}", "shop/b@10 {mtls: {mode: STRICT}}"],
            Strict,
            Some("shop/b"),
        ),
        (
            "a selector in the root namespace is ignored",
            &["istio-system/m {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}"],
            Permissive,
            None,
        ),
        (
            "an empty selector is the namespace",
            &["shop/n {selector: {matchLabels: {}}, mtls: {mode: STRICT}}"],
            Strict,
            Some("shop/n"),
        ),
    ];
    for (fact, written, mode, source) in rows {
        let found = effective(written);
        assert_eq!((found.mode, found.source.map(|s| s.to_string()).as_deref()), (*mode, *source), "{fact}");
    }
}

#[test]
fn ports_have_their_own_modes() {
    let found = effective(&[
        "istio-system/m {mtls: {mode: STRICT}}",
        "shop/w {selector: {matchLabels: {app: cart}}, portLevelMtls: {'8080': {mode: PERMISSIVE}, '9090': {mode: UNSET}}}",
    ]);
    let of = |port| (found.port(port).0, found.port(port).1.map(ToString::to_string));
    assert_eq!(of(8080), (MtlsMode::Permissive, Some("shop/w".into())));
    assert_eq!(of(9090), (MtlsMode::Strict, Some("shop/w".into())));
    assert_eq!(of(1), (MtlsMode::Strict, Some("istio-system/m".into())));
}

#[test]
fn ports_without_a_selector_are_ignored() {
    let found = effective(&["shop/n {mtls: {mode: STRICT}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}"]);
    assert_eq!(found.port(8080).0, MtlsMode::Strict);
}

#[test]
fn plaintext_is_refused_when_strict() {
    let strict = effective(&["shop/n {mtls: {mode: STRICT}}"]);
    let allow_all = policies(&["{rules: [{}]}"]);
    let plain = decide(settings(&[]), &strict, &allow_all, &Caller::new("plaintext").call(), None);
    assert!(!plain.allowed);
    assert_eq!(
        plain.reason.to_string(),
        "PeerAuthentication shop/n requires mTLS on port 8080, and the call came in plaintext"
    );
    let tunnelled = decide(settings(&[]), &strict, &allow_all, &Caller::new("cluster.local/ns/a/sa/b").call(), None);
    assert!(tunnelled.allowed);
}

#[test]
fn a_permissive_port_takes_plaintext_under_strict() {
    let found = effective(&[
        "shop/w {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}",
    ]);
    let mut caller = Caller::new("plaintext");
    assert!(decide(settings(&[]), &found, &[], &caller.call(), None).allowed);
    caller.destination.set_port(8081);
    assert!(!decide(settings(&[]), &found, &[], &caller.call(), None).allowed);
}
