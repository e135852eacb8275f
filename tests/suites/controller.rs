//! `culvert controller` against a real API server: who is given a certificate and who is not, two replicas and what
//! becomes of one when the other dies, keys that are plugged in and exchanged, roots in every namespace, statuses.
//!
//! The replicas run as their service account, with the permissions of [`RBAC`] and no others.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

#[path = "controller/replica.rs"]
mod replica;

#[path = "controller/certificates.rs"]
mod certificates;
#[path = "controller/keys.rs"]
mod keys;
#[path = "controller/plugged.rs"]
mod plugged;
#[path = "controller/statuses.rs"]
mod statuses;
#[path = "controller/waypoints.rs"]
mod waypoints;

/// What the controller needs, and has here: without one of these a test fails.
const RBAC: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: culvert-controller}
rules:
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [''], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [namespaces, services], verbs: [list, watch]}
- {apiGroups: [''], resources: [configmaps], verbs: [list, watch]}
- {apiGroups: [''], resources: [configmaps], verbs: [create]}
- {apiGroups: [''], resources: [configmaps], resourceNames: [istio-ca-root-cert, istio-ca-crl], verbs: [patch]}
- {apiGroups: [''], resources: [configmaps], resourceNames: [istio-ca-crl], verbs: [delete]}
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies, peerauthentications, requestauthentications]
  verbs: [list, watch]
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies/status, peerauthentications/status, requestauthentications/status]
  verbs: [patch]
- {apiGroups: [''], resources: [services/status], verbs: [patch]}
- {apiGroups: [networking.istio.io], resources: [serviceentries], verbs: [list, watch]}
- {apiGroups: [networking.istio.io], resources: [serviceentries/status], verbs: [patch]}
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways, httproutes, grpcroutes, tcproutes, tlsroutes, referencegrants]
  verbs: [list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes/status, grpcroutes/status, tcproutes/status, tlsroutes/status]
  verbs: [patch]
- {apiGroups: [''], resources: [services, serviceaccounts], verbs: [get, list, watch, create, patch]}
- {apiGroups: [apps], resources: [deployments], verbs: [get, list, watch, create, patch]}
- apiGroups: [autoscaling, policy]
  resources: [horizontalpodautoscalers, poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gatewayclasses]
  resourceNames: [istio-waypoint]
  verbs: [list, watch, patch]
- {apiGroups: [gateway.networking.k8s.io], resources: [gatewayclasses], verbs: [create]}
- {apiGroups: [gateway.networking.k8s.io], resources: [gateways/status, gatewayclasses/status], verbs: [patch]}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterrolebindings]
  resourceNames: [culvert-waypoint]
  verbs: [list, watch, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [culvert-waypoint]
  verbs: [bind]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: culvert-controller-NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: culvert-controller}
subjects:
- {kind: ServiceAccount, name: culvert-controller, namespace: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: culvert-controller, namespace: NAMESPACE}
rules:
- {apiGroups: [''], resources: [secrets], resourceNames: [cacerts, culvert-ca-secret], verbs: [list, watch]}
- {apiGroups: [''], resources: [secrets], resourceNames: [culvert-ca-secret], verbs: [update]}
- {apiGroups: [''], resources: [secrets], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [culvert-controller], verbs: [get, update]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: culvert-controller, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: culvert-controller}
subjects:
- {kind: ServiceAccount, name: culvert-controller, namespace: NAMESPACE}
";
