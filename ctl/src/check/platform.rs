//! What the platform, its CNI plugin and other meshes ask for: docs/platforms.md in code.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Finding;

/// What is known of the platform.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The API server's version, `v1.30.4+k3s1`.
    pub(super) version: String,
    /// Labels and provider IDs of the nodes.
    pub(super) node_marks: Vec<String>,
    /// The names of DaemonSets and Deployments, with their namespaces and environment variables.
    pub(super) workloads: BTreeMap<String, Workload>,
    /// ConfigMap `kube-system/cilium-config`.
    pub(super) cilium: Option<BTreeMap<String, String>>,
    /// The `spec` of Calico's FelixConfiguration `default`.
    pub(super) felix: Option<Value>,
    /// API groups that are served.
    pub(super) groups: Vec<String>,
    /// Whether the namespace has a ResourceQuota.
    pub(super) has_quota: bool,
}

/// A DaemonSet or Deployment.
#[derive(Debug, Default)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) environment: BTreeMap<String, String>,
}

/// Judges it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(meshes(facts));
    found.extend(cni_plugins(facts));
    found.extend(distribution(facts));
    found
}

fn meshes(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(ztunnel) = facts.workloads.get("ztunnel") {
        found.push(Finding::error(
            format!("Istio's ztunnel in {}", ztunnel.namespace),
            "two meshes would capture the pods of one namespace label",
            "remove ztunnel and istio-cni first; policies, labels and istiod may stay",
        ));
    } else if let Some(cni) = facts.workloads.get("istio-cni-node") {
        found.push(Finding::warning(
            format!("Istio's istio-cni-node in {}", cni.namespace),
            "it makes pods wait for a ztunnel if its ambient mode is on",
            "remove it, or install it with ambient.enabled=false",
        ));
    }
    if let Some(istiod) = facts.workloads.get("istiod") {
        found.push(beside_istiod(istiod, facts.workloads.get("culvert-node")));
    }
    for mesh in ["linkerd-destination", "kmesh"] {
        if let Some(other) = facts.workloads.get(mesh) {
            found.push(Finding::warning(
                format!("{mesh} in {}", other.namespace),
                "a pod must not be in two meshes",
                "label only namespaces that are not in the other one",
            ));
        }
    }
    found
}

/// There can be one CA: of two, each would put back what the other has written.
fn beside_istiod(istiod: &Workload, agents: Option<&Workload>) -> Finding {
    const TRUSTED: &str = "CA_TRUSTED_NODE_ACCOUNTS";
    let about = format!("istiod in {}", istiod.namespace);
    let account = format!("{}/culvert-node", agents.map_or(crate::chart::NAMESPACE, |agents| &agents.namespace));
    let ca = agents.and_then(|agents| agents.environment.get("CULVERT_CA_ADDRESS"));
    if !ca.is_some_and(|ca| ca.starts_with("istiod")) {
        return Finding::warning(
            about,
            "it and Culvert's controller both write the ConfigMap istio-ca-root-cert of every namespace; its CRDs, its \
             policies and its ConfigMap istio are no matter: they are kept, and read",
            format!(
                "have one CA: --set node.caAddress=istiod.{}.svc:15012, and {account} in istiod's variable {TRUSTED}; or \
                 remove istiod",
                istiod.namespace
            ),
        );
    }
    let trusted = istiod.environment.get(TRUSTED).map(String::as_str).unwrap_or_default();
    if !trusted.split(',').any(|one| one.trim() == account) {
        return Finding::error(
            about,
            "it does not know Culvert's agents as node agents, and will sign nothing for the pods of their nodes",
            format!("add {account} to its variable {TRUSTED} (Istio's Helm value env.{TRUSTED})"),
        );
    }
    Finding::note(about, "it signs; its CRDs are kept, its policies and its ConfigMap istio are read", "")
}

fn cni_plugins(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(cilium) = &facts.cilium {
        let is = |key: &str, value: &str| cilium.get(key).is_some_and(|set| set == value);
        if !is("cni-exclusive", "false") {
            found.push(Finding::error(
                "Cilium",
                "it removes what others chain behind it (cni-exclusive)",
                "set its Helm value cni.exclusive=false",
            ));
        }
        let translates =
            is("bpf-lb-sock", "true") || is("kube-proxy-replacement", "true") || is("kube-proxy-replacement", "strict");
        if translates && !is("bpf-lb-sock-hostns-only", "true") {
            found.push(Finding::warning(
                "Cilium",
                "it replaces the addresses of Services in connect(), so the mesh never sees which Service was meant",
                "set its Helm value socketLB.hostNamespaceOnly=true",
            ));
        }
    }
    if let Some(felix) = facts.felix.as_ref().filter(|felix| felix["bpfEnabled"] == true)
        && felix["bpfConnectTimeLoadBalancing"] != "Disabled"
    {
        found.push(Finding::warning(
            "Calico",
            "its eBPF data plane replaces the addresses of Services in connect(), so the mesh never sees which Service \
             was meant",
            "set bpfConnectTimeLoadBalancing: Disabled in the FelixConfiguration default",
        ));
    }
    if let Some(aws) = facts.workloads.get("aws-node") {
        let is = |key: &str, value: &str| aws.environment.get(key).is_some_and(|set| set == value);
        if is("ENABLE_POD_ENI", "true") && !is("POD_SECURITY_GROUP_ENFORCING_MODE", "standard") {
            found.push(Finding::warning(
                "the VPC CNI plugin of EKS",
                "security groups for pods in strict mode drop the kubelet's probes of them",
                "set POD_SECURITY_GROUP_ENFORCING_MODE=standard on the DaemonSet aws-node",
            ));
        }
    }
    found
}

fn distribution(facts: &Facts) -> Vec<Finding> {
    let has_mark = |mark: &str| facts.node_marks.iter().any(|known| known.starts_with(mark));
    let values = |about: &str, problem: &str, sets: &str| Finding::warning(about, problem, format!("--set {sets}"));
    let mut found = Vec::new();
    if facts.version.contains("k3s") {
        found.push(values(
            "k3s",
            "CNI plugins are not where they are elsewhere",
            "cni.binDir=/var/lib/rancher/k3s/data/cni,cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
        ));
    }
    if has_mark("microk8s.io/") {
        found.push(values(
            "MicroK8s",
            "CNI plugins are not where they are elsewhere",
            "cni.binDir=/var/snap/microk8s/current/opt/cni/bin,cni.confDir=/var/snap/microk8s/current/args/cni-network",
        ));
    }
    if has_mark("cloud.google.com/gke") || facts.version.contains("-gke") {
        found.push(values("GKE", "CNI plugins are not where they are elsewhere", "cni.binDir=/home/kubernetes/bin"));
        if !facts.has_quota {
            found.push(values(
                "GKE",
                "pods of system priority classes need a quota outside kube-system",
                "resourceQuota.enabled=true",
            ));
        }
    }
    if facts.groups.iter().any(|group| group == "security.openshift.io") {
        found.push(values(
            "OpenShift",
            "CNI plugins are not where they are elsewhere, and SELinux confines the agent",
            "cni.binDir=/var/lib/cni/bin,cni.confDir=/etc/cni/multus/net.d,node.seLinuxOptions.type=spc_t",
        ));
        found.push(Finding::warning(
            "OpenShift",
            "a SecurityContextConstraint must allow the agent's hostPID, hostPath and capabilities",
            "oc adm policy add-scc-to-user privileged --namespace culvert-system --serviceaccount culvert-node",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    fn about(facts: &Facts) -> Vec<String> {
        judge(facts).into_iter().map(|finding| finding.about).collect()
    }

    fn workload(name: &str, environment: &[(&str, &str)]) -> BTreeMap<String, Workload> {
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        [(name.to_owned(), Workload { namespace: "ns".to_owned(), environment })].into()
    }

    fn cilium(settings: &[(&str, &str)]) -> Facts {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Facts { cilium: Some(settings), ..Facts::default() }
    }

    #[test]
    fn a_plain_cluster_is_no_finding() {
        let facts = Facts {
            version: "v1.34.0".to_owned(),
            node_marks: vec!["kubernetes.io/hostname".to_owned(), "kind://docker/kind/n".to_owned()],
            workloads: workload("kindnet", &[]),
            felix: Some(json!({"bpfEnabled": false})),
            ..Facts::default()
        };
        assert_eq!(judge(&facts), []);
    }

    #[test]
    fn cilium_must_share_and_must_leave_services_to_the_mesh() {
        assert_eq!(about(&cilium(&[])), ["Cilium"]);
        assert_eq!(about(&cilium(&[("cni-exclusive", "false")])), [""; 0]);
        let replaces = [("cni-exclusive", "false"), ("kube-proxy-replacement", "true")];
        assert!(judge(&cilium(&replaces))[0].cure.contains("socketLB.hostNamespaceOnly"));
        let host_only = [replaces[0], replaces[1], ("bpf-lb-sock-hostns-only", "true")];
        assert_eq!(about(&cilium(&host_only)), [""; 0]);
    }

    #[test]
    fn other_meshes_are_told() {
        let both = |name| about(&Facts { workloads: workload(name, &[]), ..Facts::default() });
        assert_eq!(both("ztunnel"), ["Istio's ztunnel in ns"]);
        assert_eq!(both("istiod"), ["istiod in ns"]);
        assert_eq!(both("istio-cni-node"), ["Istio's istio-cni-node in ns"]);
    }

    #[test]
    fn beside_istiod_one_of_two_has_to_be_the_ca() {
        let judge = |ca: Option<&str>, trusted: &str| {
            let mut workloads = workload("istiod", &[("CA_TRUSTED_NODE_ACCOUNTS", trusted)]);
            workloads.extend(ca.into_iter().flat_map(|ca| workload("culvert-node", &[("CULVERT_CA_ADDRESS", ca)])));
            judge(&Facts { workloads, ..Facts::default() }).remove(0)
        };
        let own = "culvert-controller.ns.svc:15012";
        for before in [judge(None, ""), judge(Some(own), "istio-system/ztunnel")] {
            assert!(before.level == Level::Warning && before.problem.contains("istio-ca-root-cert"), "{before:?}");
            assert!(before.cure.contains("node.caAddress=istiod.ns.svc:15012"), "{before:?}");
        }
        let istiods = Some("istiod.ns.svc:15012");
        let unknown = judge(istiods, "istio-system/ztunnel,ns/culvert-node2");
        assert!(unknown.level == Level::Error && unknown.cure.contains("add ns/culvert-node to"), "{unknown:?}");
        assert_eq!(judge(istiods, "istio-system/ztunnel, ns/culvert-node").level, Level::Note);
    }

    #[test]
    fn distributions_get_the_values_that_they_need() {
        let cure = |facts: Facts| judge(&facts).into_iter().map(|finding| finding.cure).collect::<Vec<_>>().join("; ");
        let version = |version: &str| Facts { version: version.to_owned(), ..Facts::default() };
        assert!(cure(version("v1.30.4+k3s1")).contains("cni.binDir=/var/lib/rancher"));
        assert!(cure(version("v1.30.4-gke.1")).contains("resourceQuota.enabled=true"));
        assert!(!cure(Facts { has_quota: true, ..version("v1.30.4-gke.1") }).contains("resourceQuota"));
        let openshift = Facts { groups: vec!["security.openshift.io".to_owned()], ..Facts::default() };
        assert!(cure(openshift).contains("spc_t"));
        let strict = Facts { workloads: workload("aws-node", &[("ENABLE_POD_ENI", "true")]), ..Facts::default() };
        assert!(cure(strict).contains("ENFORCING_MODE=standard"));
        let calico = Facts { felix: Some(json!({"bpfEnabled": true})), ..Facts::default() };
        assert!(cure(calico).contains("bpfConnectTimeLoadBalancing: Disabled"));
    }
}
