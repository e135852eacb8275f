//! What one object says about the mesh, before anything is known of the others. Independent of the mesh options, so
//! that a change of options needs no object again.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use culvert_api::ObjectRef;
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::bypass::Rules;
use crate::enrolment::PodTraits;
use crate::service::{Resolution, ServicePort};
use crate::waypoint::{AllowedRoutes, Canary};
use crate::workload::{Created, Health, Labels, Locality, NamespacedName, PodName, WorkloadType};

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NamespaceFacts {
    pub(crate) labels: Arc<Labels>,
    pub(crate) waypoint: WaypointWords,
    pub(crate) bypass_missing_waypoint: bool,
    pub(crate) traffic_distribution: Option<TrafficDistribution>,
}

/// What an object says about its waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct WaypointWords {
    pub(crate) label: WaypointLabel,
    /// Whether what does not come through it is refused; `None` for as the namespace says.
    pub(crate) required: Option<bool>,
}

impl From<WaypointLabel> for WaypointWords {
    fn from(label: WaypointLabel) -> Self {
        Self { label, required: None }
    }
}

/// What the labels of an object say about its waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum WaypointLabel {
    /// Nothing: the namespace decides.
    #[default]
    Unset,
    /// None.
    None,
    /// This Gateway; and that beside it, for a share of the connections.
    Gateway(NamespacedName, Option<Arc<Canary>>),
}

/// Which endpoints of a service are near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrafficDistribution {
    Any,
    PreferSameZone,
    PreferSameNode,
}

/// A workload, whatever it was made from. Reads as if what its template says were its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkloadFacts {
    pub(crate) name: Arc<str>,
    pub(crate) created: Created,
    pub(crate) addresses: SmallVec<[IpAddr; 2]>,
    pub(crate) node: Arc<str>,
    pub(crate) terminating: bool,
    pub(crate) health: Health,
    pub(crate) template: Arc<TemplateFacts>,
}

impl Deref for WorkloadFacts {
    type Target = TemplateFacts;

    fn deref(&self) -> &TemplateFacts {
        &self.template
    }
}

/// What the workloads of one controller have in common, kept once for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TemplateFacts {
    pub(crate) source: WorkloadSource,
    pub(crate) namespace: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) hostname: Option<Arc<str>>,
    pub(crate) host_network: bool,
    pub(crate) labels: Arc<Labels>,
    pub(crate) workload_name: Arc<str>,
    pub(crate) workload_type: WorkloadType,
    pub(crate) canonical_name: Arc<str>,
    pub(crate) canonical_revision: Arc<str>,
    /// `None` for the cluster's own.
    pub(crate) network: Option<Arc<str>>,
    /// `None` for the node's.
    pub(crate) locality: Option<Arc<Locality>>,
    pub(crate) capacity: u32,
    pub(crate) waypoint: WaypointWords,
    /// A pod's container ports, or an entry's ports, by name.
    pub(crate) named_ports: Arc<[(Arc<str>, u16)]>,
}

/// What a workload was made from, and what only such an object says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WorkloadSource {
    Pod(PodFacts),
    /// `hbone`: it says that it speaks HBONE.
    WorkloadEntry {
        hbone: bool,
    },
    /// An inline endpoint of the ServiceEntry `name`; `suffix` tells it from its siblings.
    ServiceEntry {
        suffix: Arc<str>,
    },
    /// An address of the EndpointSlice `name` that is no pod's.
    EndpointSlice {
        suffix: Arc<str>,
    },
}

/// What only a pod says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodFacts {
    /// `None` for a pod of another node, as `netns`: what is only of use where the pod is enrolled.
    pub(crate) uid: Option<Arc<str>>,
    /// What the kubelet and the container runtime call it, where that is not `uid`: a static pod.
    pub(crate) node_uid: Option<Arc<str>>,
    pub(crate) netns: Option<Arc<str>>,
    pub(crate) outbound_rules: Option<Arc<Rules>>,
    /// What it says of its enrolment, beside its labels.
    pub(crate) traits: PodTraits,
    /// `spec.runtimeClassName`.
    pub(crate) runtime_class: Option<Arc<str>>,
    /// `spec.hostname` and `spec.subdomain`.
    pub(crate) pod_name: Option<Arc<PodName>>,
}

/// A service, whatever it was made from; one for each host of a ServiceEntry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceFacts {
    pub(crate) object: ObjectRef,
    /// `None` for a Kubernetes Service, whose host follows from its name.
    pub(crate) host: Option<Arc<str>>,
    pub(crate) created: Created,
    pub(crate) vips: Vec<IpNet>,
    /// Whether it is to be given virtual addresses.
    pub(crate) auto_vips: bool,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) resolution: Resolution,
    pub(crate) node_local: bool,
    pub(crate) traffic_distribution: Option<TrafficDistribution>,
    pub(crate) allow_unhealthy: bool,
    pub(crate) waypoint: WaypointWords,
    /// Whether it fronts a waypoint or gateway itself, to which the namespace's waypoint does not apply.
    pub(crate) is_gateway: bool,
    pub(crate) subject_alt_names: Vec<Arc<str>>,
    /// Never empty.
    pub(crate) selector: Option<Arc<Labels>>,
}

/// A ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServiceEntryFacts {
    pub(crate) services: Vec<Arc<ServiceFacts>>,
    pub(crate) endpoints: Vec<WorkloadFacts>,
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SliceFacts {
    pub(crate) service: Arc<str>,
    /// Ports by the service port's name.
    pub(crate) ports: Vec<(Arc<str>, u16)>,
    /// Pods by name, and whether each is ready.
    pub(crate) pods: Vec<(Arc<str>, bool)>,
    /// Addresses that are no pod's.
    pub(crate) others: Vec<WorkloadFacts>,
}

/// A Gateway that is a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WaypointFacts {
    pub(crate) gateway: NamespacedName,
    pub(crate) serves: crate::waypoint::WaypointFor,
    pub(crate) port: u16,
    pub(crate) allowed_routes: AllowedRoutes,
    pub(crate) tells_client: bool,
}
