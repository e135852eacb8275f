//! The CRDs of the chart are those that the types generate. `cargo xtask crds` writes them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that meets the unexpected should stop where it stands")]

use std::path::PathBuf;

use culvert_api::crd;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/culvert/crds"))
}

fn text(definition: &CustomResourceDefinition) -> String {
    let mut value = serde_json::to_value(definition).unwrap();
    value.as_object_mut().unwrap().remove("status");
    format!("# Generated from agent/api by `cargo xtask crds`.\n{}", serde_yaml::to_string(&value).unwrap())
}

#[test]
fn the_charts_crds_are_what_the_types_generate() {
    let bless = std::env::var_os("CULVERT_BLESS").is_some();
    let mut names = Vec::new();
    for definition in crd::definitions() {
        let name = format!("{}.yaml", definition.metadata.name.as_deref().unwrap());
        let path = directory().join(&name);
        let expected = text(&definition);
        if bless {
            std::fs::create_dir_all(directory()).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == expected, "{} is not what the types generate: run `cargo xtask crds`", path.display());
        names.push(name);
    }
    let mut there: Vec<_> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    names.sort();
    assert_eq!(there, names, "a file that nothing generates");
}

#[test]
fn every_version_that_is_read_is_served_and_one_is_stored() {
    for definition in crd::definitions() {
        let (spec, kind) = (&definition.spec, &definition.spec.names.kind);
        for version in &spec.versions {
            let api_version = format!("{}/{}", spec.group, version.name);
            assert!(culvert_api::Kind::of(&api_version, kind).is_some(), "{kind} of {api_version} is not read");
            assert!(version.served && version.subresources.as_ref().unwrap().status.is_some(), "{api_version} {kind}");
        }
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let read = culvert_api::Kind::of(&format!("{}/{version}", spec.group), kind).is_some();
            assert_eq!(read, spec.versions.iter().any(|served| served.name == version), "{kind} {version}");
        }
        let stored: Vec<_> = spec.versions.iter().filter(|version| version.storage).map(|v| &v.name).collect();
        assert_eq!(stored, ["v1"], "{kind}");
    }
}

/// The rules of "structural schemas" (Kubernetes, CustomResourceDefinitions) that a generator can break, and ours: no
/// level loses a field, none adds one.
#[test]
fn schemas_are_structural_lossless_and_without_defaults() {
    fn check(path: &str, schema: &JSONSchemaProps) {
        assert!(schema.default.is_none(), "{path}: a default would change what the user wrote");
        assert!(schema.ref_path.is_none() && schema.x_kubernetes_validations.is_none(), "{path}");
        let int_or_string = schema.x_kubernetes_int_or_string == Some(true);
        assert!(schema.type_.is_some() != int_or_string, "{path}: a type, or int-or-string");
        for composed in [&schema.one_of, &schema.any_of, &schema.all_of].into_iter().flatten().flatten() {
            assert!(composed.type_.is_none() || int_or_string, "{path}: a type below a logical junctor");
            assert!(composed.description.is_none(), "{path}: a description below a logical junctor");
        }
        match schema.type_.as_deref() {
            Some("object") => {
                let open = schema.x_kubernetes_preserve_unknown_fields == Some(true);
                assert!(open || schema.additional_properties.is_some() || path.ends_with("metadata"), "{path} prunes");
                assert!(schema.properties.is_none() || schema.additional_properties.is_none(), "{path}: both");
            }
            Some("array") => assert!(schema.items.is_some(), "{path}: no items"),
            _ => {}
        }
        for (name, field) in schema.properties.iter().flatten() {
            check(&format!("{path}.{name}"), field);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            check(&format!("{path}[]"), items);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
            check(&format!("{path}{{}}"), values);
        }
    }
    for definition in crd::definitions() {
        for version in &definition.spec.versions {
            let root = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            for (name, field) in root.properties.iter().flatten() {
                check(&format!("{} {name}", definition.spec.names.kind), field);
            }
        }
    }
}
