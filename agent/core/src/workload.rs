//! What runs in the mesh: pods, WorkloadEntries and the inline endpoints of ServiceEntries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::SerializeStruct as _;
use smallvec::SmallVec;

use crate::bypass::Rules;
use crate::identity::Identity;
use crate::waypoint::WaypointBinding;

/// Labels as Kubernetes keeps them.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// `namespace/name` of a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A workload's unique name across clusters: `cluster/group/kind/namespace/name`, as in Istio's workload API
/// (`Kubernetes//Pod/shop/cart-1`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct WorkloadUid(pub Arc<str>);

impl WorkloadUid {
    /// The UID of a pod.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }
}

impl std::fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// When an object was made: the older is less, and an object without a time is the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Created(i64);

impl Created {
    /// `seconds` since 1970, where known.
    pub fn at(seconds: Option<i64>) -> Self {
        Self(seconds.unwrap_or(i64::MAX))
    }
}

impl Default for Created {
    fn default() -> Self {
        Self::at(None)
    }
}

/// How a workload is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Through a tunnel to its port 15008.
    Hbone,
    /// Plain TCP: not in the mesh.
    Tcp,
}

/// Whose network namespace the workload lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Its own.
    Standard,
    /// The node's: its address is the node's, so it can only be told apart when reached through a service.
    HostNetwork,
}

/// Whether a workload takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Known, but not ready: used only by services that publish such addresses.
    Unhealthy,
}

/// The kind of controller that owns a workload, by which its traffic is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment (through its ReplicaSet).
    Deployment,
    /// A CronJob (through its Job).
    CronJob,
    /// A Job.
    Job,
    /// Anything else: the pod itself.
    Pod,
}

impl WorkloadType {
    /// The name used in the `baggage` key `k8s.<type>.name`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Job => "job",
            Self::Pod => "pod",
        }
    }
}

/// Where a workload runs, from the node's `topology.kubernetes.io` labels; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// A workload. Reads as if what its template says were its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The unique name.
    pub uid: WorkloadUid,
    /// The pod's, or entry's, name.
    pub name: Arc<str>,
    /// Every address, the primary one first; empty where only a hostname is known.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// The node it runs on; empty for what is not a pod.
    pub node: Arc<str>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Everything else.
    pub template: Arc<Template>,
}

/// What the workloads of one controller have in common, kept once for all of them: a mesh has many more workloads
/// than controllers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// The namespace.
    pub namespace: Arc<str>,
    /// Who they are.
    pub identity: Arc<Identity>,
    /// The name to resolve where the endpoint is a DNS name rather than an address.
    pub hostname: Option<Arc<str>>,
    /// How they are spoken to.
    pub protocol: Protocol,
    /// Own network namespace, or the node's.
    pub network_mode: NetworkMode,
    /// The waypoint for traffic addressed to the workload itself.
    pub waypoint: Option<WaypointBinding>,
    /// Their labels, for selectors.
    pub labels: Arc<Labels>,
    /// The owner's name, `source_workload` in metrics.
    pub workload_name: Arc<str>,
    /// The owner's kind.
    pub workload_type: WorkloadType,
    /// `source_canonical_service`.
    pub canonical_name: Arc<str>,
    /// `source_canonical_revision`.
    pub canonical_revision: Arc<str>,
    /// The cluster's id.
    pub cluster: Arc<str>,
    /// The network's id; empty for the only one.
    pub network: Arc<str>,
    /// The share of the load relative to siblings; 1 for a pod.
    pub capacity: u32,
    /// The destinations that its connections are not captured to, from its annotations.
    pub outbound_rules: Option<Arc<Rules>>,
    /// The name of its own that a pod asks for below a headless Service, as those of a StatefulSet do.
    pub pod_name: Option<Arc<PodName>>,
}

/// A pod's name in DNS: `HOSTNAME.SUBDOMAIN.NAMESPACE.svc`, where a headless Service of the subdomain's name selects it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    /// `spec.hostname`.
    pub hostname: Arc<str>,
    /// `spec.subdomain`.
    pub subdomain: Arc<str>,
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

impl Serialize for Workload {
    /// One object: what is shared is of no interest outside.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Workload", 20)?;
        fields.serialize_field("uid", &self.uid)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("namespace", &self.namespace)?;
        fields.serialize_field("identity", &self.identity.to_string())?;
        fields.serialize_field("addresses", &self.addresses)?;
        fields.serialize_field("hostname", &self.hostname)?;
        fields.serialize_field("node", &self.node)?;
        fields.serialize_field("protocol", &self.protocol)?;
        fields.serialize_field("network_mode", &self.network_mode)?;
        fields.serialize_field("waypoint", &self.waypoint)?;
        fields.serialize_field("health", &self.health)?;
        fields.serialize_field("labels", &self.labels)?;
        fields.serialize_field("workload_name", &self.workload_name)?;
        fields.serialize_field("workload_type", &self.workload_type)?;
        fields.serialize_field("canonical_name", &self.canonical_name)?;
        fields.serialize_field("canonical_revision", &self.canonical_revision)?;
        fields.serialize_field("cluster", &self.cluster)?;
        fields.serialize_field("network", &self.network)?;
        fields.serialize_field("locality", &self.locality)?;
        fields.serialize_field("capacity", &self.capacity)?;
        fields.end()
    }
}

impl Workload {
    /// Where the object is found: `namespace/name`.
    pub fn namespaced_name(&self) -> NamespacedName {
        NamespacedName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}
