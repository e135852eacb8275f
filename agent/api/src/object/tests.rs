use serde_json::json;

use super::*;

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
           "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

#[test]
fn an_unknown_field_is_reported_by_path() {
    let spec = json!({"rules": [{"from": [{"sourc": {}}]}], "acton": "DENY"});
    let (_, unknown) = Object::from_value(policy(spec)).unwrap();
    let mut paths: Vec<_> = unknown.iter().map(|u| u.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["spec.acton", "spec.rules[0].from[0].sourc"]);
}

#[test]
fn an_unknown_field_of_a_core_object_is_reported_by_path() {
    let (_, unknown) = Object::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "imagee": "x"}], "nodename": "n"}}))
    .unwrap();
    let paths: Vec<_> = unknown.iter().map(|u| u.path.as_str()).collect();
    assert_eq!(paths, ["spec.containers[0].imagee", "spec.nodename"]);
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let spec = json!({"rules": [{"from": [{"source": {"principals": "a"}}]}]});
    let error = Object::from_value(policy(spec)).unwrap_err();
    assert_eq!(error.path(), "spec.rules[0].from[0].source.principals");
}

#[test]
fn an_unknown_enum_value_is_refused_and_named() {
    let error = Object::from_value(policy(json!({"action": "PERMIT"}))).unwrap_err();
    assert_eq!(error.path(), "spec.action");
}

#[test]
fn an_unknown_kind_is_named() {
    let error = Object::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}))
        .unwrap_err();
    assert!(error.to_string().contains("Deployment of apps/v1"), "{error}");
}

#[test]
fn every_served_version_is_read() {
    for (version, kind) in [
        ("security.istio.io/v1", "AuthorizationPolicy"),
        ("security.istio.io/v1beta1", "AuthorizationPolicy"),
        ("security.istio.io/v1beta1", "PeerAuthentication"),
        ("networking.istio.io/v1", "ServiceEntry"),
        ("networking.istio.io/v1beta1", "ServiceEntry"),
        ("networking.istio.io/v1alpha3", "ServiceEntry"),
        ("networking.istio.io/v1alpha3", "WorkloadEntry"),
    ] {
        let value = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": {}});
        let (object, unknown) = Object::from_value(value).unwrap();
        assert_eq!((object.kind().as_str(), unknown), (kind, vec![]));
    }
}

#[test]
fn a_gateway_of_istio_is_not_a_gateway_of_gateway_api() {
    let value = json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "g"}});
    assert!(matches!(Object::from_value(value), Err(ObjectError::UnknownKind { .. })));
}

#[test]
fn an_object_without_a_namespace_is_in_default() {
    let (object, _) =
        Object::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}})).unwrap();
    assert_eq!(object.reference().to_string(), "Pod default/p");
}

#[test]
fn names_that_kubernetes_refuses_are_refused() {
    for name in ["", "a/b", "../x", "A", "a b", "-a", &"a".repeat(254)] {
        let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        assert!(matches!(Object::from_value(value), Err(ObjectError::BadName { .. })), "{name}");
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    for value in [json!(null), json!([1]), json!("x"), json!({}), json!({"apiVersion": "v1", "kind": 3})] {
        assert!(Object::from_value(value).is_err());
    }
}

#[test]
fn a_status_is_read() {
    let mut value = policy(json!({}));
    value["status"] = json!({"observedGeneration": "3", "validationMessages": [{"type": {"code": "IST0001"}}]});
    assert_eq!(Object::from_value(value).unwrap().1, []);
}

#[test]
fn the_crds_can_be_generated_and_hold_every_field() {
    use kube::CustomResourceExt as _;
    let fields = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let spec = &schema.properties.as_ref().unwrap()["spec"];
        spec.properties.as_ref().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(fields(AuthorizationPolicy::crd()), "action provider rules selector targetRef targetRefs");
    assert_eq!(fields(PeerAuthentication::crd()), "mtls portLevelMtls selector");
    assert_eq!(
        fields(ServiceEntry::crd()),
        "addresses endpoints exportTo hosts location ports resolution subjectAltNames workloadSelector"
    );
    assert_eq!(fields(WorkloadEntry::crd()), "address labels locality network ports serviceAccount weight");
}
