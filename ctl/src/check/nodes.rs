//! What the API server knows of the nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::{Finding, KERNEL, Kernel, Level, kernel};

/// How many nodes of one finding are named.
const NAMED: usize = 3;

/// Judges all nodes; what several have in common is one finding.
pub(super) fn judge(nodes: &[Node]) -> Vec<Finding> {
    let mut problems: BTreeMap<(Level, String, String), Vec<String>> = BTreeMap::new();
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        for (level, problem, cure) in problems_of(node) {
            problems.entry((level, problem, cure)).or_default().push(name.clone());
        }
    }
    let found =
        problems.into_iter().map(|((level, problem, cure), names)| Finding::new(level, list(&names), problem, cure));
    let mut found: Vec<_> = found.collect();
    if nodes.is_empty() {
        found.push(Finding::warning("nodes", "there are none: nothing will run", "add a node"));
    }
    found
}

fn problems_of(node: &Node) -> Vec<(Level, String, String)> {
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
        return vec![(Level::Warning, "says nothing of itself".to_owned(), "see whether its kubelet runs".to_owned())];
    };
    if info.operating_system != "linux" {
        let problem = format!("runs {}: its pods stay outside the mesh", info.operating_system);
        return vec![(Level::Note, problem, String::new())];
    }
    let mut problems = Vec::new();
    let (major, minor) = KERNEL;
    match kernel(&info.kernel_version) {
        Kernel::Enough => {}
        Kernel::Unknown => problems.push((
            Level::Warning,
            format!("Linux {}: the vendor adds features without changing the version", info.kernel_version),
            "the agent tells when it loads its programs; nothing is captured if it cannot".to_owned(),
        )),
        Kernel::TooOld => problems.push((
            Level::Error,
            format!("Linux {}, and {major}.{minor} is needed", info.kernel_version),
            "upgrade the node's kernel, or keep the agent away with --set node.nodeSelector".to_owned(),
        )),
    }
    if !["amd64", "arm64"].contains(&info.architecture.as_str()) {
        problems.push((
            Level::Error,
            format!("its processor is {}: there is no image for it", info.architecture),
            "keep the agent away with --set node.nodeSelector".to_owned(),
        ));
    }
    let runtime = info.container_runtime_version.split("://").next().unwrap_or_default();
    if !["containerd", "cri-o"].contains(&runtime) {
        problems.push((
            Level::Warning,
            format!("its container runtime is {}, with which nothing has been tried", info.container_runtime_version),
            "use containerd or CRI-O".to_owned(),
        ));
    }
    problems
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        1 => format!("node {shown}"),
        0..=NAMED => format!("nodes {shown}"),
        more => format!("nodes {shown} and {} more", more - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, kernel: &str, os: &str, runtime: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"nodeInfo": {
            "kernelVersion": kernel, "operatingSystem": os, "containerRuntimeVersion": runtime, "architecture": "amd64",
            "bootID": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
        }}}))
        .unwrap()
    }

    #[test]
    fn nodes_that_will_do_are_no_finding() {
        assert_eq!(judge(&[node("n1", "6.1.0", "linux", "containerd://1.7.2")]), []);
        assert_eq!(judge(&[node("n1", "6.12", "linux", "cri-o://1.30")]), []);
    }

    #[test]
    fn what_nodes_have_in_common_is_said_once() {
        let old = |name: &str| node(name, "5.4.0", "linux", "containerd://1.6");
        let found = judge(&["a", "b", "c", "d", "e"].map(old));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].level, found[0].about.as_str()), (Level::Error, "nodes a, b, c and 2 more"));
        assert!(found[0].problem.contains("5.4.0"), "{found:?}");
    }

    #[test]
    fn other_systems_and_runtimes_are_told() {
        let found =
            judge(&[node("w", "10.0.20348", "windows", "containerd://1"), node("d", "6.1", "linux", "docker://20")]);
        let levels: Vec<_> = found.iter().map(|finding| (finding.level, finding.about.as_str())).collect();
        assert_eq!(levels, [(Level::Warning, "node d"), (Level::Note, "node w")]);
        assert_eq!(judge(&[]).len(), 1);
    }
}
