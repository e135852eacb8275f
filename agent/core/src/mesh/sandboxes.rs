//! What the CNI plugin says of a pod's sandbox. It comes before the API server knows the pod's addresses, and names the
//! network namespace, which no object does.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Mesh;
use super::workloads::WorkloadState;
use crate::enrolment::Why;
use crate::translate::facts::{WorkloadFacts, WorkloadSource};
use crate::workload::{NamespacedName, WorkloadUid};

/// A pod's sandbox on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's UID, where the runtime tells it: a pod of another UID but the same name has another sandbox.
    pub uid: Option<Arc<str>>,
    /// Its network namespace; `None` once it has been taken down, so that its pod is not enrolled any more.
    pub netns: Option<Arc<str>>,
    /// Its addresses, which hold until the API server knows them.
    pub addresses: SmallVec<[IpAddr; 2]>,
}

/// Whether the pod of a sandbox belongs to the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxVerdict {
    /// The pod is not known yet.
    NoPod,
    /// The labels of its namespace are not known yet.
    NoNamespace,
    /// It does: its enrolment has this UID.
    In(Arc<str>),
    /// It does not.
    Out(Why),
}

/// A sandbox, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct SandboxState {
    pod: NamespacedName,
    sandbox: Sandbox,
}

impl Mesh {
    /// Takes in what the CNI plugin says of the sandbox of `pod`; `None` forgets what it said. Readers see it with the
    /// next step.
    pub fn set_sandbox(&mut self, pod: NamespacedName, sandbox: Option<Sandbox>) {
        let uid = WorkloadUid::pod(&self.current.options.cluster, &pod.namespace, &pod.name);
        match sandbox {
            Some(sandbox) => {
                self.current.sandboxes.insert(uid.clone(), SandboxVerdict::NoPod);
                self.sandboxes.insert(uid.clone(), SandboxState { pod, sandbox });
            }
            None => {
                self.current.sandboxes.remove(&uid);
                self.sandboxes.remove(&uid);
            }
        }
        self.dirty.workloads.entry(uid).or_insert(true);
    }

    /// The sandbox of a pod, if it is of this very pod.
    pub(super) fn sandbox(&self, uid: &WorkloadUid, facts: &WorkloadFacts) -> Option<&Sandbox> {
        let WorkloadSource::Pod(pod) = &facts.source else { return None };
        let sandbox = &self.sandboxes.get(uid)?.sandbox;
        // One of its name that has come to another node is another pod.
        if self.own_node.as_ref().is_some_and(|own| *own != facts.node) {
            return None;
        }
        match (&sandbox.uid, pod.node_uid.as_ref().or(pod.uid.as_ref())) {
            (Some(sandbox), Some(pod)) if sandbox != pod => None,
            _ => Some(sandbox),
        }
    }

    /// The addresses of a workload: those that its object has, or else its sandbox.
    pub(super) fn addresses(&self, uid: &WorkloadUid, facts: &WorkloadFacts) -> SmallVec<[IpAddr; 2]> {
        match &facts.source {
            WorkloadSource::Pod(_) if facts.addresses.is_empty() => {
                self.sandbox(uid, facts).map(|sandbox| sandbox.addresses.clone()).unwrap_or_default()
            }
            _ => facts.addresses.clone(),
        }
    }

    /// Says whether the pod of a sandbox belongs to the mesh, if there is one of this name.
    pub(super) fn judge_sandbox(&mut self, uid: &WorkloadUid, state: Option<&WorkloadState>) {
        if !self.sandboxes.contains_key(uid) {
            return;
        }
        let facts = state.and_then(|state| state.facts.as_deref());
        let verdict = facts.map_or(SandboxVerdict::NoPod, |facts| self.verdict(uid, facts));
        if self.current.sandboxes.get(uid) != Some(&verdict) {
            self.current.sandboxes.insert(uid.clone(), verdict);
        }
    }

    fn verdict(&self, uid: &WorkloadUid, facts: &WorkloadFacts) -> SandboxVerdict {
        let WorkloadSource::Pod(pod) = &facts.source else { return SandboxVerdict::NoPod };
        if self.sandbox(uid, facts).is_none() {
            return SandboxVerdict::NoPod;
        }
        match self.eligibility(facts, pod) {
            Err(why @ (Why::HostNetwork | Why::Agent | Why::ExcludedNamespace)) => SandboxVerdict::Out(why),
            _ if self.namespaces.facts(&facts.namespace).is_none() => SandboxVerdict::NoNamespace,
            Err(why) => SandboxVerdict::Out(why),
            Ok(_) => SandboxVerdict::In(pod.uid.clone().unwrap_or_else(|| uid.0.clone())),
        }
    }

    /// Keeps the sandboxes when everything else is worked out again.
    pub(super) fn keep_sandboxes(&mut self, old: std::collections::HashMap<WorkloadUid, SandboxState>) {
        for SandboxState { pod, sandbox } in old.into_values() {
            self.set_sandbox(pod, Some(sandbox));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{mesh, objects};
    use crate::mesh::{Change, Snapshot};

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\n\
                             metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";

    fn pod(uid: &str, status: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: cart, namespace: shop, uid: {uid}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {status}\n"
        )
    }

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "cart")
    }

    fn sandbox(uid: &str, addresses: &[&str]) -> Sandbox {
        Sandbox {
            uid: Some(uid.into()),
            netns: Some("/run/netns/cni-1".into()),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn step(mesh: &mut Mesh, yaml: &str) -> Arc<Snapshot> {
        mesh.apply(objects(yaml));
        mesh.snapshot()
    }

    fn verdict(snapshot: &Snapshot) -> SandboxVerdict {
        snapshot.sandbox(&name()).unwrap().clone()
    }

    #[test]
    fn a_pod_is_enrolled_with_its_sandboxs_addresses_until_the_api_server_knows_them() {
        let mut mesh = mesh(NAMESPACE);
        mesh.set_sandbox(name(), Some(sandbox("u1", &["10.0.0.9", "fd00::9"])));
        assert_eq!(verdict(&step(&mut mesh, "")), SandboxVerdict::NoPod);
        let before = step(&mut mesh, &pod("u1", "{phase: Pending}"));
        assert_eq!(verdict(&before), SandboxVerdict::In("u1".into()));
        let enrolled = before.enrolled_pods_on("n1").next().unwrap();
        assert_eq!(enrolled.netns.as_deref(), Some("/run/netns/cni-1"));
        assert_eq!(enrolled.workload.addresses.len(), 2);
        assert!(before.workload_by_address("10.0.0.9".parse().unwrap()).is_some());

        let after = step(&mut mesh, &pod("u1", "{phase: Running, podIPs: [{ip: 10.0.0.9}, {ip: 'fd00::9'}]}"));
        let still = after.enrolled_pods_on("n1").next().unwrap();
        assert_eq!((&still.netns, &still.workload.addresses), (&enrolled.netns, &enrolled.workload.addresses));
    }

    #[test]
    fn a_sandbox_of_another_pod_of_the_same_name_is_not_the_pods() {
        let mut mesh = mesh(NAMESPACE);
        mesh.set_sandbox(name(), Some(sandbox("u2", &["10.0.0.9"])));
        let snapshot = step(&mut mesh, &pod("u1", "{podIPs: [{ip: 10.0.0.8}]}"));
        assert_eq!(verdict(&snapshot), SandboxVerdict::NoPod);
        assert_eq!(snapshot.enrolled_pods_on("n1").next().unwrap().netns, None);
        assert!(snapshot.workload_by_address("10.0.0.9".parse().unwrap()).is_none());
    }

    #[test]
    fn a_static_pods_sandbox_has_the_uid_of_the_node_and_not_its_mirrors() {
        let mut mesh = mesh(NAMESPACE);
        mesh.set_sandbox(name(), Some(sandbox("hash", &["10.0.0.9"])));
        let mirror = pod("u1", "{phase: Pending}")
            .replace("uid: u1", "uid: u1, annotations: {kubernetes.io/config.mirror: hash}");
        let snapshot = step(&mut mesh, &mirror);
        assert_eq!(verdict(&snapshot), SandboxVerdict::In("u1".into()));
        let enrolled = snapshot.enrolled_pods_on("n1").next().unwrap();
        assert_eq!((&*enrolled.uid, enrolled.node_uid.as_deref()), ("u1", Some("hash")));
    }

    #[test]
    fn a_sandbox_that_was_taken_down_enrols_nobody_and_a_new_one_does() {
        let mut mesh = mesh(NAMESPACE);
        mesh.apply(objects(&pod("u1", "{podIPs: [{ip: 10.0.0.9}]}")));
        let stopped = Sandbox { netns: None, ..sandbox("u1", &[]) };
        mesh.set_sandbox(name(), Some(stopped));
        assert_eq!(step(&mut mesh, "").enrolled_pods_on("n1").count(), 0);
        mesh.set_sandbox(name(), Some(sandbox("u1", &["10.0.0.10"])));
        assert_eq!(step(&mut mesh, "").enrolled_pods_on("n1").count(), 1);
        mesh.set_sandbox(name(), None);
        let snapshot = step(&mut mesh, "");
        assert_eq!(snapshot.sandbox(&name()), None);
        assert_eq!(snapshot.enrolled_pods_on("n1").next().unwrap().netns, None);
    }

    #[test]
    fn the_labels_decide_also_after_the_fact() {
        let mut mesh = mesh("");
        mesh.set_sandbox(name(), Some(sandbox("u1", &["10.0.0.9"])));
        assert_eq!(verdict(&step(&mut mesh, &pod("u1", "{}"))), SandboxVerdict::NoNamespace);
        let unlabelled = NAMESPACE.replace("ambient", "none");
        assert_eq!(verdict(&step(&mut mesh, &unlabelled)), SandboxVerdict::Out(Why::NotLabelled));
        assert_eq!(verdict(&step(&mut mesh, NAMESPACE)), SandboxVerdict::In("u1".into()));
        mesh.apply([Change::Remove(culvert_api::ObjectRef::new(culvert_api::Kind::Pod, "shop", "cart"))]);
        assert_eq!(verdict(&mesh.snapshot()), SandboxVerdict::NoPod);
        assert_eq!(mesh.snapshot().enrolled_pods_on("n1").count(), 0);
    }

    #[test]
    fn sandboxes_survive_a_change_of_options() {
        let mut mesh = mesh(NAMESPACE);
        mesh.set_sandbox(name(), Some(sandbox("u1", &["10.0.0.9"])));
        mesh.apply(objects(&pod("u1", "{}")));
        let options = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
                       data: {mesh: 'culvert: {cluster: other}'}\n";
        let snapshot = step(&mut mesh, options);
        assert_eq!(verdict(&snapshot), SandboxVerdict::In("u1".into()));
        assert_eq!(snapshot.enrolled_pods_on("n1").count(), 1);
    }
}
