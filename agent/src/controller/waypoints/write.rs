//! Doing what is due, by server-side apply. What somebody else has made is not touched, and what somebody else has set
//! in it is not taken over: both are told.

use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};

use super::objects::CONTROLLER;
use super::part::Part;
use super::state::{Act, owner, tell};
use super::{BINDING, CLASS, ROLE};
use crate::controller::{FIELD_MANAGER, explain};

/// Does it: the object as it is now, where there is one.
///
/// # Errors
/// One line that names the object.
pub(super) async fn perform(client: &kube::Client, act: &Act) -> Result<Option<DynamicObject>, String> {
    match act {
        Act::MakeClass => {
            let class = json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "GatewayClass",
                "metadata": {"name": CLASS_NAME},
                "spec": {"controllerName": CONTROLLER, "description": "Waypoints of the mesh, run by Culvert"},
            });
            apply(&Api::all_with(client.clone(), &CLASS.at("v1")), &class, &format!("GatewayClass {CLASS_NAME}")).await
        }
        Act::Bind(accounts) => {
            let subject = |account: &culvert_core::workload::NamespacedName| json!({"kind": "ServiceAccount", "namespace": account.namespace, "name": account.name});
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": BINDING.kind,
                "metadata": {"name": ROLE},
                "subjects": accounts.iter().map(subject).collect::<Vec<_>>(),
            });
            apply(&Api::all_with(client.clone(), &BINDING.at("v1")), &binding, &format!("{} {ROLE}", BINDING.kind))
                .await
        }
        Act::Apply { gateway, part, object } => {
            let api = api(client, *part, &gateway.namespace, object["apiVersion"].as_str().unwrap_or_default());
            let told = tell(*part, gateway);
            refuse_foreign(client, *part, object, &told).await?;
            apply(&api, object, &told).await
        }
        Act::Delete { gateway, part, uid } => {
            let version = match part.resource().served(client).await {
                Ok(Some(version)) => version,
                Ok(None) => return Ok(None),
                Err(error) => return Err(explain(&error, "get", part.resource().group)),
            };
            let parameters = DeleteParams {
                preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                ..DeleteParams::background()
            };
            match api(client, *part, &gateway.namespace, &version).delete(&gateway.name, &parameters).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                Err(error) => Err(explain(&error, "delete", &tell(*part, gateway))),
            }
        }
    }
}

const CLASS_NAME: &str = culvert_api::names::WAYPOINT_GATEWAY_CLASS;

fn api(client: &kube::Client, part: Part, namespace: &str, version: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &part.resource().at(version))
}

/// Refuses an object that is there and belongs to somebody else.
async fn refuse_foreign(client: &kube::Client, part: Part, object: &Value, told: &str) -> Result<(), String> {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at = part.resource().at(&text(&object["apiVersion"]));
    let api =
        Api::<PartialObjectMeta<DynamicObject>>::namespaced_with(client.clone(), &text(&metadata["namespace"]), &at);
    let there = match api.get_metadata_opt(&text(&metadata["name"])).await {
        Ok(Some(there)) => there,
        Ok(None) => return Ok(()),
        Err(error) => return Err(explain(&error, "get", told)),
    };
    let there = DynamicObject { types: None, metadata: there.metadata, data: Value::Null };
    let own = metadata.pointer("/ownerReferences/0/uid").and_then(Value::as_str);
    if owner(&there).as_deref() == own {
        return Ok(());
    }
    let name = text(&metadata["name"]);
    Err(format!(
        "{told} is there and does not belong to this Gateway: it is not touched; delete it, or give the Gateway another \
         name than {name}"
    ))
}

async fn apply(api: &Api<DynamicObject>, object: &Value, told: &str) -> Result<Option<DynamicObject>, String> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match api.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(object)).await {
        Ok(applied) => Ok(Some(applied)),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let why = status.message.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(format!("{told}: somebody else has set some of it, which is not taken over: {}", shorten(&why)))
        }
        Err(error) => Err(explain(&error, "patch", told)),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}
