//! From `culvertctl check` to `culvertctl uninstall`, on a cluster where Istio has left some of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use culvert_tests::agent::binary;
use culvert_tests::eventually;
use culvert_tests::kube::{ControlPlane, Request};
use culvert_tests::process::Process;
use serde_json::{Value, json};

use super::kubelet::Kubelet;
use super::{LIMIT, NAMESPACE, Said, cluster, ctl};

const ISTIOS: &str = "authorizationpolicies.security.istio.io";
const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: theirs, namespace: shop}
spec: {rules: [{}]}
";
/// Carries the label by which ours are found, and is not ours.
const NOT_OURS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes, namespace: shop, labels: {app.kubernetes.io/part-of: culvert}}
";
const OWN_CRDS: [&str; 3] = [
    "peerauthentications.security.istio.io",
    "serviceentries.networking.istio.io",
    "workloadentries.networking.istio.io",
];

/// Istio's own definition, as its chart labels it, with a policy, in a cluster with a namespace `shop`.
fn leave_istios(cluster: &ControlPlane) {
    let mut definition = culvert_api::crd::definitions()
        .into_iter()
        .map(|definition| serde_json::to_value(definition).unwrap())
        .find(|definition| definition["metadata"]["name"] == ISTIOS)
        .unwrap();
    definition["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "istio", "release": "istio" });
    definition.as_object_mut().unwrap().remove("status");
    cluster.crds(&definition.to_string()).unwrap();
    cluster.namespace("shop").unwrap();
    cluster.apply(POLICY).unwrap();
    cluster.apply(NOT_OURS).unwrap();
}

fn object(cluster: &ControlPlane, path: &str) -> Value {
    let answer = cluster.get(path).unwrap();
    if answer.status == 200 { answer.body } else { Value::Null }
}

fn definition(cluster: &ControlPlane, name: &str) -> Value {
    object(cluster, &format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"))
}

fn policy(cluster: &ControlPlane) -> Value {
    object(cluster, "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/theirs")
}

/// What tells that nobody has touched an object.
fn identity(object: &Value) -> (Value, Value) {
    (object["metadata"]["uid"].clone(), object["metadata"]["generation"].clone())
}

/// Lines by what they begin with.
fn outcomes(said: &Said) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for word in said.out.lines().filter_map(|line| line.split_whitespace().next()) {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

#[track_caller]
fn succeeds(kubeconfig: &Path, arguments: &[&str]) -> Said {
    let said = ctl(kubeconfig, arguments);
    assert!(said.code == 0, "culvertctl {arguments:?}: {said}");
    said
}

fn environment(cluster: &ControlPlane, variable: &str) -> Value {
    let set = object(cluster, &format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/culvert-node"));
    let variables = set["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    variables.into_iter().find(|one| one["name"] == variable).map_or(Value::Null, |one| one["value"].clone())
}

/// What a controller writes while it runs: a Lease, its key, and its roots in every namespace.
fn run_controller(cluster: &ControlPlane) {
    let mut command = Command::new(binary("culvert").unwrap());
    command.args(["controller", "--namespace", NAMESPACE, "--pod-name", "one", "--ca-addr", "127.0.0.1:0"]);
    for flag in ["--admin-addr", "--metrics-addr", "--readiness-addr"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    command.env("KUBECONFIG", cluster.kubeconfig_of(NAMESPACE, "culvert-controller").unwrap());
    let mut controller = Process::spawn("culvert controller", command).unwrap();
    let roots = "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert";
    let there = eventually(LIMIT, "the roots in shop", || (object(cluster, roots) != Value::Null).then_some(()));
    there.unwrap_or_else(|error| panic!("{error}: {}", controller.output()));
    controller.kill().unwrap();
}

#[test]
fn culvert_is_installed_changed_and_taken_away_and_nothing_else_is() {
    let (cluster, _turn) = cluster();
    let kubelet = Kubelet::start(cluster);
    let admin = cluster.kubeconfig();
    leave_istios(cluster);
    let theirs = (identity(&definition(cluster, ISTIOS)), identity(&policy(cluster)));

    let before = succeeds(&admin, &["check"]);
    let words = before.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&format!("note {ISTIOS}: is somebody else's")), "{before}");
    assert!(!words.contains("error ") && !words.contains("installed already"), "{before}");

    // Without its image nothing runs, and the pods say why.
    kubelet.has_image(false);
    let said = ctl(&admin, &["install", "--timeout", "8"]);
    assert!(said.code == 1, "{said}");
    for fact in ["not ready within 8 seconds; applied all the same", "pod culvert-node-", "ErrImagePull: no such image"]
    {
        assert!(said.err.contains(fact), "{fact}: {said}");
    }
    let created = outcomes(&said);
    assert!(created["created"] > 15 && created["waiting"] >= 2 && created["kept"] == 1, "{said}");
    for name in OWN_CRDS {
        assert!(said.out.contains(&format!("created   CustomResourceDefinition {name}\n")), "{said}");
    }

    // Once there is one, it waits until all runs.
    kubelet.has_image(true);
    let said = succeeds(&admin, &["install"]);
    assert!(said.out.contains("ready     DaemonSet culvert-system/culvert-node: 1 of 1 nodes\n"), "{said}");
    assert!(said.out.contains("ready     Deployment culvert-system/culvert-controller: 2 of 2 replicas\n"), "{said}");

    // Installing what is installed changes nothing, and says so.
    let since = cluster.audit().unwrap().len();
    let again = succeeds(&admin, &["install"]);
    let counts = outcomes(&again);
    assert_eq!(counts.get("created").or(counts.get("changed")).or(counts.get("deleted")), None, "{again}");
    assert_eq!(counts["unchanged"], created["created"], "{again}");
    let deletions = |since: usize| -> Vec<Request> {
        let all = cluster.audit().unwrap().into_iter().skip(since);
        all.filter(|one| one.user == "admin" && one.verb == "delete").collect()
    };
    let by_ctl = deletions(since).into_iter().filter(|one| !one.uri.contains("gracePeriodSeconds=0"));
    assert_eq!(by_ctl.count(), 0);

    let after = succeeds(&admin, &["check"]);
    let words = after.out.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "note DaemonSet culvert-system/culvert-node: Culvert is installed already: culvertctl upgrade";
    assert!(words.contains(expected), "{after}");

    upgrades(cluster, &admin);
    assert_eq!((identity(&definition(cluster, ISTIOS)), identity(&policy(cluster))), theirs, "touched");

    // What runs leaves traces of its own.
    run_controller(cluster);
    let dry = succeeds(&admin, &["uninstall", "--dry-run"]);
    for one in
        ["DaemonSet culvert-system/culvert-node", "ConfigMap shop/istio-ca-root-cert", "Namespace culvert-system"]
    {
        assert!(dry.out.contains(&format!("would delete {one}\n")), "{one}: {dry}");
    }
    assert!(environment(cluster, "CULVERT_CNI") == "true", "a dry run deletes nothing");
    let since = cluster.audit().unwrap().len();
    let gone = succeeds(&admin, &["uninstall"]);
    nothing_is_left(cluster);
    assert!(gone.out.contains("stopped   culvert-node: none of its pods is left\n"), "{gone}");
    // Permissions last until the agents have stopped.
    let order: Vec<String> = deletions(since).into_iter().map(|one| one.uri).collect();
    let at =
        |text: &str| order.iter().position(|uri| uri.contains(text)).unwrap_or_else(|| panic!("{text}: {order:?}"));
    assert!(at("daemonsets/culvert-node") < at("pods/culvert-node-"), "{order:?}");
    assert!(at("pods/culvert-node-") < at("clusterroles/culvert-node"), "{order:?}");
    for name in OWN_CRDS {
        assert_ne!(definition(cluster, name), Value::Null, "{name} is gone, and with it what people wrote");
    }
    let said = ctl(&admin, &["uninstall"]);
    assert!(said.code == 1 && said.err.contains("nothing of Culvert's is installed"), "{said}");

    // A namespace that was there before stays; with --crds, only Culvert's own go.
    cluster.namespace(NAMESPACE).unwrap();
    succeeds(&admin, &["install", "--set", "rootNamespace.create=true,meshConfig.trustDomain=td"]);
    let gone = succeeds(&admin, &["uninstall", "--crds"]);
    assert!(gone.out.contains("kept      Namespace culvert-system: it was there before\n"), "{gone}");
    for name in OWN_CRDS {
        eventually(LIMIT, "its end", || (definition(cluster, name) == Value::Null).then_some(())).unwrap();
    }
    assert_eq!((identity(&definition(cluster, ISTIOS)), identity(&policy(cluster))), theirs, "touched");
    cluster.kubectl(&["delete", "namespace", NAMESPACE]).unwrap();
    cluster.kubectl(&["delete", "crd", ISTIOS]).unwrap();
}

/// Values are kept from one to the next, what is no longer made goes, and what others have set is theirs.
fn upgrades(cluster: &ControlPlane, admin: &Path) {
    let quota = "ResourceQuota culvert-system/culvert";
    let set = "resourceQuota.enabled=true,node.logLevel=debug";
    let said = succeeds(admin, &["upgrade", "--set", set]);
    assert!(said.out.contains(&format!("created   {quota}")), "{said}");
    assert!(said.out.contains("changed   DaemonSet culvert-system/culvert-node\n"), "{said}");
    assert_eq!(environment(cluster, "CULVERT_LOG_LEVEL"), "debug");

    let said = succeeds(admin, &["upgrade", "--set", "resourceQuota.enabled=false,networkPolicy.enabled=false"]);
    assert!(said.out.contains(&format!("deleted   {quota}")), "{said}");
    let pruned = |name: &str| format!("deleted   NetworkPolicy culvert-system/{name}: no longer part of it\n");
    assert!(said.out.contains(&pruned("culvert-node")) && said.out.contains(&pruned("culvert-controller")), "{said}");
    assert_eq!(environment(cluster, "CULVERT_LOG_LEVEL"), "debug", "a value of the last run is lost");
    let policies = object(cluster, &format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"));
    assert_eq!(policies["items"].as_array().map(Vec::len), Some(0));
    assert_ne!(object(cluster, "/api/v1/namespaces/shop/configmaps/notes"), Value::Null, "not ours");

    let level = "CULVERT_LOG_LEVEL=trace";
    cluster.kubectl(&["-n", NAMESPACE, "set", "env", "daemonset/culvert-node", level]).unwrap();
    let said = ctl(admin, &["upgrade", "--set", "node.logLevel=warn"]);
    assert!(said.code == 1 && said.err.contains("somebody else has set some of it"), "{said}");
    assert!(
        said.err.contains("--force-conflicts") && said.err.contains("DaemonSet culvert-system/culvert-node"),
        "{said}"
    );
    assert!(said.err.contains("kubectl"), "who? {said}");
    succeeds(admin, &["upgrade", "--set", "node.logLevel=warn", "--force-conflicts"]);
    assert_eq!(environment(cluster, "CULVERT_LOG_LEVEL"), "warn");
    succeeds(admin, &["upgrade", "--reset-values"]);
    assert_eq!(environment(cluster, "CULVERT_LOG_LEVEL"), "info");
}

/// Nothing that was installed, or written by what was installed.
pub(crate) fn nothing_is_left(cluster: &ControlPlane) {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).unwrap();
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let listed = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "name", "--ignore-not-found"]).unwrap();
    let left: Vec<_> = listed
        .lines()
        .filter(|line| line.contains("culvert") || line.contains("istio-ca-"))
        .filter(|line| !line.starts_with("customresourcedefinition"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
