//! `culvertctl` and Helm make the same objects of the chart, and refuse the same values.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use culvert_tests::Scope;
use culvert_tests::process::{Finished, Process};
use serde_json::Value;

use super::helm::helm;
use super::{CHART, LIMIT, NAMESPACE, Said, ctl, tool};

/// Every switch and list of the chart, and strings that YAML might take for something else.
const MUCH: &str = r##"
image: {repository: registry.example.com/a/culvert, tag: "1.10", pullPolicy: Always, pullSecrets: [one, two]}
meshConfig:
  trustDomain: "123"
  trustDomainAliases: ["yes", 'null', "1e3", "0x10", "~", "- a", "a: b", "#c", ""]
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  culvert:
    outboundBypass: {cidrs: [192.0.2.0/24], ports: [3306, 5432], namespaces: []}
    note: |
      two lines,
      the second "quoted": with \ in it
rootNamespace: {create: true}
node:
  logLevel: "info,culvert::proxy=debug"
  logFormat: json
  accessLog: false
  workers: 4
  caAddress: istiod.istio-system.svc:15012
  drainSeconds: 0
  cgroup: "/sys/fs/cgroup/unified/kubepods"
  resources: {limits: {memory: 128Mi, cpu: 1.5}, requests: {cpu: 1}}
  nodeSelector: {mesh: "true", kubernetes.io/os: null}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
          - matchExpressions: [{key: a, operator: In, values: ["1", b]}]
  tolerations: [{key: dedicated, operator: Equal, value: mesh, effect: NoSchedule}]
  priorityClassName: mine
  seccompProfile: {type: Localhost, localhostProfile: profiles/culvert.json}
  appArmorProfile: localhost/culvert
  seLinuxOptions: {type: spc_t, level: "s0:c123"}
  podAnnotations: {a: "true", b: "{\"c\": 1}", d: "é\ttab"}
  podLabels: {team: "007"}
  env: {NUMBER: 7, FLAG: false, TEXT: "a \"quoted\" $(VALUE)", EMPTY: ""}
cni:
  binDir: /home/kubernetes/bin
  confDir: /etc/cni/net.d/multus
  excludeNamespaces: [culvert-system, "1"]
  enablementSelectors:
    - podSelector: {matchLabels: {mesh: "on"}}
      namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: ["<&>", c]}]}
controller:
  replicas: 3
  logFormat: json
  resources: {}
  affinity: {podAntiAffinity: {}}
  tolerations: [{operator: Exists}]
  trustedNodeAccounts: [istio-system/ztunnel, other/agent]
  caDnsNames: [istiod.istio-system.svc, ca.example.com]
  podAnnotations: {a: "1"}
  podLabels: {b: c}
  env: {A: 1}
podMonitor: {enabled: true, interval: 1m, labels: {release: prometheus}}
resourceQuota: {enabled: true, pods: 100}
global: {imageRegistry: not-read}
"##;

const LITTLE: &str = "
rbac: {create: false}
node: {tolerations: [], nodeSelector: {kubernetes.io/os: null}, appArmorProfile: '', resources: {requests: null}}
cni: {enabled: false, excludeNamespaces: []}
controller: {replicas: 1, podDisruptionBudget: {enabled: false}, nodeSelector: {kubernetes.io/os: null}}
networkPolicy: {enabled: false}
";

type Objects = BTreeMap<(String, String, String), Value>;

/// The objects of a YAML stream by kind, namespace and name.
fn objects(stream: &str) -> Objects {
    let mut found = Objects::new();
    for document in format!("\n{stream}").split("\n---") {
        let mut object = culvert_api::yaml::value(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        if object.is_null() {
            continue;
        }
        // YAML in YAML, which may be quoted in more than one way.
        if let Some(mesh) = object["data"]["mesh"].as_str() {
            object["data"]["mesh"] = culvert_api::yaml::value(mesh).unwrap();
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let key = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        assert!(found.insert(key.clone(), object).is_none(), "{key:?} is there twice");
    }
    found
}

/// As `helm install` would apply them; hooks are Helm's own affair.
fn by_helm(version: &str, values: &Path, flags: &[&str]) -> Objects {
    let values = values.to_str().unwrap();
    let mut arguments = vec!["template", "culvert", CHART, "--namespace", NAMESPACE, "--no-hooks"];
    arguments.extend(["--kube-version", version, "--values", values]);
    arguments.extend(flags);
    objects(&helm(None, &arguments).success().unwrap())
}

fn by_culvertctl(version: &str, values: &Path, flags: &[&str]) -> Objects {
    let values = values.to_str().unwrap();
    let mut arguments = vec!["install", "--dry-run", "--kube-version", version, "--values", values];
    arguments.extend(flags);
    let said = ctl(Path::new("/nonexistent"), &arguments);
    assert!(said.code == 0, "{said}");
    objects(&said.out)
}

#[test]
fn culvertctl_makes_of_the_chart_what_helm_makes_of_it() {
    let scope = Scope::new().unwrap();
    for (name, values) in [("default", ""), ("much", MUCH), ("little", LITTLE)] {
        let file = scope.directory().join(format!("{name}.yaml"));
        std::fs::write(&file, values).unwrap();
        for version in ["v1.20.2", "v1.34.0"] {
            let theirs = by_helm(version, &file, &["--include-crds"]);
            let mut ours = by_culvertctl(version, &file, &[]);
            // Helm makes it by --create-namespace.
            ours.remove(&("Namespace".to_owned(), String::new(), NAMESPACE.to_owned())).expect("the namespace");
            for (key, object) in &theirs {
                let ours = ours.get(key).unwrap_or_else(|| panic!("{name}, {version}: culvertctl makes no {key:?}"));
                assert_eq!(ours, object, "{name}, {version}: {key:?}");
            }
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}, {version}");
        }
    }
}

/// Of two CAs each would put back what the other has written.
#[test]
fn the_roots_are_left_to_the_ca_that_signs() {
    let scope = Scope::new().unwrap();
    let file = scope.directory().join("none.yaml");
    std::fs::write(&file, "").unwrap();
    let said = |set: &[&str]| {
        let made = by_culvertctl("v1.34.0", &file, set);
        let key = ("Deployment".to_owned(), NAMESPACE.to_owned(), "culvert-controller".to_owned());
        let variables = made[&key]["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        variables.into_iter().find(|one| one["name"] == "CULVERT_DISTRIBUTE_ROOTS").map(|mut one| one["value"].take())
    };
    assert_eq!(said(&[]), None, "which is true");
    assert_eq!(said(&["--set", "node.caAddress=istiod.istio-system.svc:15012"]), Some("false".into()));
}

#[test]
fn what_is_made_is_what_the_schemas_of_kubernetes_allow() {
    let scope = Scope::new().unwrap();
    for (name, values) in [("default", ""), ("much", MUCH), ("little", LITTLE)] {
        let file = scope.directory().join(format!("{name}-values.yaml"));
        std::fs::write(&file, values).unwrap();
        let mut made = by_culvertctl("v1.34.0", &file, &["--skip-crds"]);
        // The Prometheus operator's.
        made.retain(|(kind, ..), _| kind != "PodMonitor");
        let list: Vec<_> = made.into_values().map(|object| object.to_string()).collect();
        let manifests = scope.directory().join(format!("{name}.yaml"));
        std::fs::write(&manifests, list.join("\n---\n")).unwrap();
        let mut command = Command::new("python3");
        command.arg(tool("kubernetes-validate/bin/kubernetes-validate")).args(["--strict", "--version", "1.34"]);
        command.arg(&manifests).env("PYTHONPATH", tool("kubernetes-validate"));
        let finished: Finished = Process::spawn("kubernetes-validate", command).unwrap().finish(LIMIT).unwrap();
        let said = Said::from(finished);
        assert!(said.code == 0 && !said.out.contains("ERROR"), "{name}: {said}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_both_and_culvertctl_says_what_can() {
    for (bad, cure) in [
        ("node.wrokers=1", "value node.wrokers: unknown field `wrokers`, expected one of `logLevel`"),
        ("nod.workers=1", "`culvertctl install --print-values` prints all with comments"),
        ("node.workers=600", "512 at the most"),
        ("node.workers=-1", "value node.workers: invalid value: integer `-1`, expected u16"),
        ("node.workers=many", "value node.workers: invalid type: string \"many\", expected u16"),
        ("node.logFormat=xml", "unknown variant `xml`, expected `text` or `json`"),
        ("image.pullPolicy=Sometimes", "expected one of `Always`, `IfNotPresent`, `Never`"),
        ("image.repository=", "empty; name the image"),
        ("cni.binDir=opt/cni", "not an absolute path"),
        ("cni.enabled=maybe", "expected a boolean"),
        ("controller.replicas=0", "1 at the least"),
        ("node.env.A.B=1", "value node.env.A"),
        ("rbac=null", "missing field `rbac`"),
    ] {
        let refused = helm(None, &["template", "culvert", CHART, "--set", bad]);
        assert!(!refused.status.success(), "Helm takes {bad}");
        let said = ctl(Path::new("/nonexistent"), &["install", "--dry-run", "--set", bad]);
        assert!(said.code == 1 && said.out.is_empty() && said.err.contains(cure), "{bad}: {said}");
        assert_eq!(said.err.lines().count(), 1, "{bad}: {said}");
    }
}
