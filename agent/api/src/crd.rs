//! The CustomResourceDefinitions of the Istio kinds that Culvert reads, generated from the types.
//!
//! For clusters that Istio was never on. They are what Istio's own users may rely on (names, served versions, status
//! subresource, columns of `kubectl get`), and refuse nothing that Istio's would take:
//!
//! - No defaults: an object reads back as it was written.
//! - Every level keeps fields that it does not know. A field newer than this version of Culvert survives; a misspelled
//!   one is still there to be refused with its path, where pruning would have turned `form:` into "from anyone".
//! - The status is whoever's writes it.
//! - No CEL rules, which API servers before 1.25 refuse: what they would check across fields, `translate` checks.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps,
    JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

use crate::networking::{DestinationRule, ServiceEntry, VirtualService, WorkloadEntry};
use crate::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};

/// The label by which a definition is known as Culvert's; one without it is somebody else's, Istio's as a rule, and
/// is left alone.
pub const OWNER_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "culvert");

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

/// A column of `kubectl get`: its name, its path and its type.
type Column = (&'static str, &'static str, &'static str);

const AGE: Column = ("Age", ".metadata.creationTimestamp", "date");

/// All of them, in the order of their names.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        complete(AuthorizationPolicy::crd(), SECURITY, &[("Action", ".spec.action", "string"), AGE]),
        complete(DestinationRule::crd(), NETWORKING, &[("Host", ".spec.host", "string"), AGE]),
        complete(PeerAuthentication::crd(), SECURITY, &[("Mode", ".spec.mtls.mode", "string"), AGE]),
        complete(RequestAuthentication::crd(), SECURITY, &[AGE]),
        complete(
            ServiceEntry::crd(),
            NETWORKING,
            &[
                ("Hosts", ".spec.hosts", "string"),
                ("Location", ".spec.location", "string"),
                ("Resolution", ".spec.resolution", "string"),
                AGE,
            ],
        ),
        complete(
            VirtualService::crd(),
            NETWORKING,
            &[("Gateways", ".spec.gateways", "string"), ("Hosts", ".spec.hosts", "string"), AGE],
        ),
        complete(WorkloadEntry::crd(), NETWORKING, &[AGE, ("Address", ".spec.address", "string")]),
    ]
}

/// Makes of a derived definition the one that is installed: each of `versions` is served, the first is stored.
fn complete(mut crd: CustomResourceDefinition, versions: &[&str], columns: &[Column]) -> CustomResourceDefinition {
    let (key, value) = OWNER_LABEL;
    crd.metadata.labels = Some([(key.to_owned(), value.to_owned())].into());
    // `helm uninstall` would delete every policy with it.
    crd.metadata.annotations = Some([("helm.sh/resource-policy".to_owned(), "keep".to_owned())].into());
    let derived = crd.spec.versions.remove(0);
    crd.spec.versions = versions.iter().map(|name| version(&derived, name, *name == versions[0], columns)).collect();
    crd
}

fn version(
    derived: &CustomResourceDefinitionVersion,
    name: &str,
    storage: bool,
    columns: &[Column],
) -> CustomResourceDefinitionVersion {
    let mut version = derived.clone();
    name.clone_into(&mut version.name);
    version.storage = storage;
    version.additional_printer_columns = Some(
        columns
            .iter()
            .map(|(name, path, kind)| CustomResourceColumnDefinition {
                name: (*name).to_owned(),
                json_path: (*path).to_owned(),
                type_: (*kind).to_owned(),
                ..Default::default()
            })
            .collect(),
    );
    if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
        schema.required = None;
        // Of the root the derive says nothing but that it was derived.
        (schema.title, schema.description) = (None, None);
        for (field, schema) in schema.properties.iter_mut().flatten() {
            if field == "status" {
                *schema = untouched();
            } else {
                relax(schema);
            }
        }
    }
    version
}

/// An object of any fields.
fn untouched() -> JSONSchemaProps {
    JSONSchemaProps {
        type_: Some("object".to_owned()),
        x_kubernetes_preserve_unknown_fields: Some(true),
        ..Default::default()
    }
}

/// Drops defaults, and keeps unknown fields, on every level.
fn relax(schema: &mut JSONSchemaProps) {
    schema.default = None;
    if schema.properties.is_some() {
        schema.x_kubernetes_preserve_unknown_fields = Some(true);
    }
    schema.properties.iter_mut().flatten().for_each(|(_, field)| relax(field));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        relax(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        relax(values);
    }
}
