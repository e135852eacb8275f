//! Whoever may not install is told so, before and while he tries.

use std::path::PathBuf;

use culvert_tests::kube::ControlPlane;

use super::{NAMESPACE, cluster, ctl};

/// The kubeconfig of a service account with these rules.
fn with_rules(cluster: &ControlPlane, name: &str, rules: &str) -> PathBuf {
    cluster.namespace("people").unwrap();
    cluster.service_account("people", name).unwrap();
    if !rules.is_empty() {
        let role = format!(
            "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {name}}}
rules:
{rules}---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}
subjects: [{{kind: ServiceAccount, name: {name}, namespace: people}}]
"
        );
        cluster.apply(&role).unwrap();
    }
    cluster.kubeconfig_of("people", name).unwrap()
}

/// Everything that [`NAMESPACE`] and the cluster hold of the chart.
fn anything_installed(cluster: &ControlPlane) -> bool {
    let kinds = "namespaces,clusterroles,clusterrolebindings,serviceaccounts,daemonsets,deployments";
    let found = cluster.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=culvert", "-o", "name"]);
    found.unwrap().lines().any(|line| line != "namespace/istio-system")
}

#[test]
fn nobody_learns_all_that_is_lacking_and_installs_nothing() {
    let (cluster, _turn) = cluster();
    let nobody = with_rules(cluster, "nobody", "");
    let said = ctl(&nobody, &["check"]);
    assert_eq!(said.code, 2, "{said}");
    for fact in [
        "may not create namespaces, patch namespaces, delete namespaces",
        "delete daemonsets",
        "create customresourcedefinitions",
        "install as a cluster administrator (ClusterRole cluster-admin)",
        "cannot list nodes",
        "cannot list customresourcedefinitions",
    ] {
        let words = said.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(fact), "{fact}: {said}");
    }
    let said = ctl(&nobody, &["install", "--timeout", "1"]);
    assert!(said.code == 1 && said.out.is_empty(), "{said}");
    assert!(said.err.contains("not allowed; installing needs a cluster administrator"), "{said}");
    assert_eq!(said.err.lines().count(), 1, "{said}");
    let said = ctl(&nobody, &["uninstall"]);
    assert!(said.code == 1 && said.err.contains("not allowed"), "{said}");
    assert!(!anything_installed(cluster));
}

#[test]
fn one_who_may_all_but_grant_is_told_exactly_that() {
    let (cluster, _turn) = cluster();
    let groups = ["''", "apps", "networking.k8s.io", "policy", "apiextensions.k8s.io", "batch"];
    let mut rules: String =
        groups.iter().map(|group| format!("- {{apiGroups: [{group}], resources: ['*'], verbs: ['*']}}\n")).collect();
    rules += "- {apiGroups: [rbac.authorization.k8s.io], resources: [roles, rolebindings, clusterrolebindings], \
              verbs: ['*']}\n";
    let some = with_rules(cluster, "some", &rules);
    let said = ctl(&some, &["check"]);
    let words = said.out.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "you: may not create clusterroles, patch clusterroles, delete clusterroles: install as a cluster \
                    administrator (ClusterRole cluster-admin)";
    assert!(said.code == 2 && words.contains(expected), "{said}");
    assert_eq!(words.matches("error ").count(), 1, "{said}");
    // What is refused in the middle can be taken away again, or gone on with.
    let said = ctl(&some, &["install", "--no-wait"]);
    assert!(said.code == 1 && said.err.contains("ClusterRole culvert-"), "{said}");
    let said = ctl(&cluster.kubeconfig(), &["uninstall", "--crds"]);
    assert!(said.code == 0, "{said}");
    assert!(!anything_installed(cluster), "{said}");
    let there = cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}")).unwrap();
    assert_eq!(there.status, 404);
}
