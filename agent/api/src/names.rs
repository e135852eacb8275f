//! The labels and annotations that are honoured, by Istio's names and ours (istio/api `label/labels.yaml`,
//! `annotation/annotations.yaml`).

/// Labels.
pub mod label {
    /// On namespaces and pods: `ambient` enrols, `none` opts out.
    pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
    /// The waypoint's name, or `none`.
    pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
    /// The waypoint's namespace, where it is not the object's own.
    pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
    /// On a waypoint: `service`, `workload`, `all` or `none`.
    pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
    /// The waypoint that takes a share of the connections to a service.
    pub const USE_WAYPOINT_CANARY: &str = "istio.io/use-waypoint-canary";
    /// Its namespace, where it is not the object's own.
    pub const USE_WAYPOINT_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
    /// On a ServiceEntry: `false` keeps it from being given virtual addresses.
    pub const ENABLE_AUTOALLOCATE_IP: &str = "networking.istio.io/enable-autoallocate-ip";
    /// The name by which traffic is accounted.
    pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
    /// The version by which traffic is accounted.
    pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
    /// The workload's name, in place of its owner's.
    pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
    /// The network of a workload or namespace.
    pub const NETWORK: &str = "topology.istio.io/network";
    /// The subzone of a node.
    pub const SUBZONE: &str = "topology.istio.io/subzone";
    /// On a WorkloadEntry: `http` says that it speaks HBONE.
    pub const TUNNEL: &str = "networking.istio.io/tunnel";
    /// A node's region.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// A node's zone.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// The name of [`REGION`] before Kubernetes 1.17.
    pub const REGION_BETA: &str = "failure-domain.beta.kubernetes.io/region";
    /// The name of [`ZONE`] before Kubernetes 1.17.
    pub const ZONE_BETA: &str = "failure-domain.beta.kubernetes.io/zone";
    /// On an EndpointSlice: the Service it belongs to.
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
    /// On a pod of a waypoint or gateway: the Gateway it serves.
    pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
}

/// Annotations.
pub mod annotation {
    /// `enabled` once a pod or WorkloadEntry speaks HBONE.
    pub const REDIRECTION: &str = "ambient.istio.io/redirection";
    /// `true` leaves inbound connections of the pod alone.
    pub const BYPASS_INBOUND_CAPTURE: &str = "ambient.istio.io/bypass-inbound-capture";
    /// `true` or `false`, per pod.
    pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
    /// On a pod: interfaces whose traffic is to be captured as if the pod sent it. Not supported.
    pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
    /// The share of the waypoint that [`label::USE_WAYPOINT_CANARY`](super::label::USE_WAYPOINT_CANARY) names, 0 to 100.
    pub const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
    /// Present on pods that have a sidecar.
    pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`, on a Service, ServiceEntry or namespace.
    pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
    /// `true` logs what an AuthorizationPolicy would do, and does nothing.
    pub const DRY_RUN: &str = "istio.io/dry-run";
    /// Ours, on a pod: the path of its network namespace, in place of a container runtime. With Kubernetes it has no
    /// effect.
    pub const NETNS: &str = "culvert.dev/netns";
    /// On the mirror of a static pod, by the kubelet: the UID that the pod has on its node.
    pub const MIRROR: &str = "kubernetes.io/config.mirror";
    /// Ours, on a pod: addresses and networks outside the mesh that it reaches without capture, separated by commas.
    pub const BYPASS_OUTBOUND_CIDRS: &str = "culvert.dev/bypass-outbound-cidrs";
    /// Ours, on a pod: ports outside the mesh that it reaches without capture, separated by commas.
    pub const BYPASS_OUTBOUND_PORTS: &str = "culvert.dev/bypass-outbound-ports";
    /// Istio's, for sidecars: as [`BYPASS_OUTBOUND_CIDRS`], which counts where both are there.
    pub const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    /// Istio's, for sidecars: the only networks that are captured; `*` for all.
    pub const INCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    /// Istio's, for sidecars: as [`BYPASS_OUTBOUND_PORTS`], which counts where both are there.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    /// Istio's, for sidecars: ports that are captured all the same; not supported.
    pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    /// Ours, on a namespace: `bypass` lets traffic through when a bound waypoint is missing.
    pub const MISSING_WAYPOINT: &str = "culvert.dev/missing-waypoint";
    /// Ours, on a Service, a pod or their namespace: `true` has the node of a workload refuse what does not come
    /// through its waypoint.
    pub const REQUIRE_WAYPOINT: &str = "culvert.dev/require-waypoint";
    /// On a waypoint's Gateway: `true` has it say in `x-forwarded-client-cert` whom a request is from.
    pub const XFCC_CLIENT_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";
}

/// The class of Gateways that are waypoints.
pub const WAYPOINT_GATEWAY_CLASS: &str = "istio-waypoint";
/// The protocol of a waypoint's listener.
pub const WAYPOINT_PROTOCOL: &str = "HBONE";
