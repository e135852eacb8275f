//! Writing a status: a merge patch of what differs, refused when the object has changed meanwhile.

use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

/// The patch that makes the status of `object` what is `wanted`; none when it says that already.
pub(in crate::controller) fn merge(object: &DynamicObject, wanted: Value) -> Option<Value> {
    let known = &object.data["status"];
    let Value::Object(fields) = &wanted else { return None };
    let differs = |(field, wanted): (&String, &Value)| {
        // An empty list and none are the same.
        let nothing = known[field].is_null() && wanted.as_array().is_some_and(Vec::is_empty);
        known[field] != *wanted && !nothing
    };
    if !fields.iter().any(differs) {
        return None;
    }
    let version = object.metadata.resource_version.as_deref();
    Some(json!({"metadata": {"resourceVersion": version}, "status": wanted}))
}

/// Writes it; `resource` is what people call it by.
pub(in crate::controller) async fn patch(
    api: &Api<DynamicObject>,
    name: &str,
    patch: &Value,
    resource: &str,
) -> Result<(), String> {
    let params = PatchParams { field_manager: Some(super::super::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // It has changed, and its newer state comes by the watch; or it is gone.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(super::super::explain(&error, "patch", resource)),
    }
}
