//! What authors are told; what the modes mean is tested with the policies.

use super::*;

fn read(namespace: &str, spec: &str) -> (bool, String) {
    let mut object = security::PeerAuthentication::new("p", serde_yaml::from_str(spec).unwrap());
    object.metadata.namespace = Some(namespace.to_owned());
    let mut findings = Vec::new();
    let kept = peer_authentication(&object, "istio-system", &mut findings).is_some();
    (kept, findings.iter().map(|finding| format!("{finding}\n")).collect())
}

#[test]
fn a_sound_object_has_no_findings() {
    let spec = "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: PERMISSIVE}}}";
    assert_eq!(read("shop", spec), (true, String::new()));
}

#[test]
fn each_finding_names_its_field() {
    insta::assert_snapshot!(read("shop", "{mtls: {mode: DISABLE}, portLevelMtls: {'80': {}}}").1, @r#"
error: PeerAuthentication shop/p: spec.portLevelMtls: is ignored without a selector: select the pods
warning: PeerAuthentication shop/p: spec.mtls.mode: DISABLE is treated as PERMISSIVE: between pods of the mesh, mTLS is always used
"#);
    insta::assert_snapshot!(
        read("shop", "{selector: {matchLabels: {app: a}}, portLevelMtls: {'http': {}, '0': {}, '80': {mode: DISABLE}}}").1,
        @r#"
error: PeerAuthentication shop/p: spec.portLevelMtls[0]: "0" is not a port from 1 to 65535, and is ignored
error: PeerAuthentication shop/p: spec.portLevelMtls[http]: "http" is not a port from 1 to 65535, and is ignored
warning: PeerAuthentication shop/p: spec.portLevelMtls[80]: DISABLE is treated as PERMISSIVE: between pods of the mesh, mTLS is always used
"#
    );
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored() {
    let (kept, findings) = read("istio-system", "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}");
    assert!(!kept);
    insta::assert_snapshot!(findings, @"error: PeerAuthentication istio-system/p: spec.selector: a selector in the root namespace is ignored: put the object in the namespace of the pods");
}

#[test]
fn a_selector_that_cannot_match_never_relaxes() {
    assert!(!read("shop", "{selector: {matchLabels: {app: '*'}}, mtls: {mode: PERMISSIVE}}").0);
    assert!(read("shop", "{selector: {matchLabels: {app: '*'}}, mtls: {mode: STRICT}}").0);
}
