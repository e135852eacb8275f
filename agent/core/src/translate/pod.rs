//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use culvert_api::names::{annotation, label};
use smallvec::SmallVec;

use super::facts::{PodFacts, TemplateFacts, WorkloadFacts, WorkloadSource};
use super::{Findings, Interner, metadata};
use crate::bypass;
use crate::enrolment::PodTraits;
use crate::workload::{Health, Labels, PodName, WorkloadType};

/// A pod as a workload; without an address while it starts on its node. `None` before that, and once it has ended.
/// `own_node` is the node whose pods are enrolled; `None` for every node.
pub(crate) fn translate(
    pod: &Pod,
    own_node: Option<&str>,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<WorkloadFacts> {
    let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
    if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return None;
    }
    let addresses = addresses(status, findings);
    if addresses.is_empty() {
        // Usual for a pod that is starting; in a file nothing will ever fill it in.
        if metadata::annotation(meta, annotation::NETNS).is_some() {
            findings.error("status.podIPs", "missing: the pod is not in the mesh until it has an address");
        }
        // Only its own node knows what its sandbox has: elsewhere there is nothing to be known of it yet.
        let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if node.is_empty() || own_node.is_some_and(|own| own != node) {
            return None;
        }
    }
    let (namespace, name) = (findings.object.namespace.clone(), findings.object.name.clone());
    let labels = interner.labels(meta.labels.as_ref());
    let (owner, workload_type) = owner(meta, &labels, &name);
    let workload_name = labels.get(label::WORKLOAD_NAME).cloned().unwrap_or_else(|| interner.string(&owner));
    let (canonical_name, canonical_revision) = canonical(&labels, &workload_name, interner);
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let terminating = meta.deletion_timestamp.is_some();
    let text = |value: Option<&String>, interner: &mut Interner| {
        interner.string(value.map(String::as_str).filter(|text| !text.is_empty()).unwrap_or("default"))
    };
    let node = interner.string(spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default());
    let is_own = own_node.is_none_or(|own| *own == *node);
    let template = TemplateFacts {
        source: WorkloadSource::Pod(PodFacts {
            uid: meta.uid.as_deref().filter(|_| is_own).map(Arc::from),
            node_uid: metadata::annotation(meta, annotation::MIRROR).filter(|_| is_own).map(Arc::from),
            netns: metadata::annotation(meta, annotation::NETNS).filter(|_| is_own).map(Arc::from),
            outbound_rules: bypass::of_pod(meta, findings).filter(|_| is_own),
            traits: traits(meta, host_network, findings),
            runtime_class: spec.and_then(|spec| spec.runtime_class_name.as_deref()).map(|name| interner.string(name)),
            pod_name: pod_name(spec, interner),
        }),
        service_account: text(spec.and_then(|spec| spec.service_account_name.as_ref()), interner),
        hostname: None,
        host_network,
        workload_name,
        workload_type,
        canonical_name,
        canonical_revision,
        network: labels.get(label::NETWORK).cloned(),
        locality: None,
        capacity: 1,
        waypoint: metadata::waypoint(meta, &namespace, interner, findings),
        named_ports: named_ports(spec, interner),
        labels,
        namespace,
    };
    Some(WorkloadFacts {
        name,
        created: metadata::created(meta),
        addresses,
        node,
        terminating,
        health: if terminating || !is_ready(status) { Health::Unhealthy } else { Health::Healthy },
        template: interner.template_facts(template),
    })
}

fn addresses(status: Option<&PodStatus>, findings: &mut Findings<'_>) -> SmallVec<[IpAddr; 2]> {
    let mut addresses: SmallVec<[IpAddr; 2]> = SmallVec::new();
    let Some(status) = status else { return addresses };
    let mut add = |field: String, text: &str| match text.parse::<IpAddr>() {
        Ok(ip) if addresses.contains(&ip.to_canonical()) => {}
        Ok(ip) => addresses.push(ip.to_canonical()),
        Err(_) => findings.error(field, format!("{text:?} is not an IP address: ignored")),
    };
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    for (at, ip) in listed.iter().enumerate() {
        add(format!("status.podIPs[{at}].ip"), &ip.ip);
    }
    if listed.is_empty()
        && let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())
    {
        add("status.podIP".to_owned(), ip);
    }
    addresses
}

/// Without a subdomain there is no such name; names of DNS are the same in whatever case they are asked for.
fn pod_name(spec: Option<&PodSpec>, interner: &mut Interner) -> Option<Arc<PodName>> {
    let label = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_ascii_lowercase);
    let (hostname, subdomain) = (label(&spec?.hostname)?, label(&spec?.subdomain)?);
    Some(Arc::new(PodName { hostname: interner.string(&hostname), subdomain: interner.string(&subdomain) }))
}

/// A pod of a file may leave its conditions out; the kubelet never does for a pod that has an address.
fn is_ready(status: Option<&PodStatus>) -> bool {
    let Some(status) = status else { return true };
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) => condition.status == "True",
        None => matches!(status.phase.as_deref(), None | Some("" | "Running")),
    }
}

/// What the pod says about its enrolment.
fn traits(meta: &ObjectMeta, host_network: bool, findings: &mut Findings<'_>) -> PodTraits {
    if metadata::annotation(meta, annotation::REROUTE_VIRTUAL_INTERFACES).is_some() {
        findings.warning(
            format!("metadata.annotations[{}]", annotation::REROUTE_VIRTUAL_INTERFACES),
            "is not supported: what comes from virtual machines or containers inside the pod is not captured as sent \
             by the pod",
        );
    }
    let dns = metadata::annotation(meta, annotation::DNS_CAPTURE);
    if let Some(value) = dns.filter(|value| !matches!(*value, "true" | "false")) {
        let value: String = value.chars().take(100).collect();
        findings.error(
            format!("metadata.annotations[{}]", annotation::DNS_CAPTURE),
            format!("{value:?} is neither \"true\" nor \"false\": the mesh options decide"),
        );
    }
    PodTraits::read(&meta.annotations, host_network)
}

/// The name and kind by which a pod's traffic is labelled (Istio `pkg/kube/controllers` workload metadata).
fn owner(meta: &ObjectMeta, labels: &Labels, pod: &str) -> (String, WorkloadType) {
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let Some(owner) = controller else { return (pod.to_owned(), WorkloadType::Pod) };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
            match hash.and_then(|hash| owner.name.strip_suffix(hash.as_str()).map(str::to_owned)) {
                Some(deployment) => (deployment, WorkloadType::Deployment),
                None => (owner.name.clone(), WorkloadType::Pod),
            }
        }
        "Job" => match owner.name.rsplit_once('-') {
            // A CronJob names its Jobs after the minute of their schedule.
            Some((cron_job, minute))
                if (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (cron_job.to_owned(), WorkloadType::CronJob)
            }
            _ => (owner.name.clone(), WorkloadType::Job),
        },
        "Deployment" => (owner.name.clone(), WorkloadType::Deployment),
        "CronJob" => (owner.name.clone(), WorkloadType::CronJob),
        _ => (owner.name.clone(), WorkloadType::Pod),
    }
}

/// `source_canonical_service` and `source_canonical_revision`.
pub(crate) fn canonical(labels: &Labels, workload_name: &Arc<str>, interner: &mut Interner) -> (Arc<str>, Arc<str>) {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).filter(|value| !value.is_empty());
    let name = first([label::CANONICAL_NAME, "app.kubernetes.io/name", "app"]).unwrap_or(workload_name).clone();
    let revision = first([label::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]).cloned();
    (name, revision.unwrap_or_else(|| interner.string("latest")))
}

fn named_ports(spec: Option<&PodSpec>, interner: &mut Interner) -> Arc<[(Arc<str>, u16)]> {
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let sidecars = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let mut ports: SmallVec<[(Arc<str>, u16); 4]> = SmallVec::new();
    for port in containers.iter().chain(sidecars.iter().filter(is_sidecar)).flat_map(|c| c.ports.iter().flatten()) {
        let (Some(name), Ok(number)) = (port.name.as_deref(), u16::try_from(port.container_port)) else { continue };
        let is_tcp = matches!(port.protocol.as_deref(), None | Some("" | "TCP"));
        if is_tcp && number != 0 && !ports.iter().any(|(known, _)| **known == *name) {
            ports.push((interner.string(name), number));
        }
    }
    interner.ports(&ports)
}
