//! Waypoints: from a Gateway to what runs one, and what is said of it.

use std::sync::OnceLock;

use culvert_tests::eventually;
use culvert_tests::kube::{ControlPlane, Request};
use serde_json::{Value, json};

use super::replica::{Installation, LIMIT, Replica};

const GROUP: &str = "gateway.networking.k8s.io";

/// What the chart makes besides: who is a waypoint is said in the binding.
const ROLE: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: culvert-waypoint}
rules: [{apiGroups: [''], resources: [pods], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: culvert-waypoint}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: culvert-waypoint}
";

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: NAMESPACE}
spec:
  gatewayClassName: istio-waypoint
  infrastructure:
    labels: {team: a}
    parametersRef: {group: '', kind: ConfigMap, name: p}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

const PARAMETERS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: p, namespace: NAMESPACE}
data:
  deployment: |
    spec: {template: {spec: {containers: [{name: istio-proxy, resources: {limits: {memory: 99Mi}}}]}}}
  horizontalPodAutoscaler: |
    spec: {minReplicas: 2, maxReplicas: 3}
";

/// The kinds of a waypoint's objects, as this API server has them.
const KINDS: [&str; 5] = [
    "/api/v1/namespaces/NAMESPACE/serviceaccounts/wp",
    "/api/v1/namespaces/NAMESPACE/services/wp",
    "/apis/apps/v1/namespaces/NAMESPACE/deployments/wp",
    "/apis/autoscaling/VERSION/namespaces/NAMESPACE/horizontalpodautoscalers/wp",
    "/apis/policy/VERSION/namespaces/NAMESPACE/poddisruptionbudgets/wp",
];

/// A cluster in which a controller runs waypoints in one namespace.
struct World {
    installation: Installation,
    namespace: &'static str,
    replica: Replica,
}

impl World {
    fn new(installation: Installation, namespace: &'static str) -> Self {
        let cluster = installation.cluster;
        cluster.cluster_crd_without_schema(GROUP, "gatewayclasses", "GatewayClass").unwrap();
        cluster.crd_without_schema(GROUP, "gateways", "Gateway").unwrap();
        cluster.apply(ROLE).unwrap();
        cluster.namespace(namespace).unwrap();
        let replica = Self::start(&installation, "one");
        Self { installation, namespace, replica }
    }

    fn start(installation: &Installation, name: &str) -> Replica {
        installation.start(name, &["--waypoint-image", "localhost/culvert:test"])
    }

    fn apply(&self, yaml: &str) {
        self.installation.cluster.apply(&yaml.replace("NAMESPACE", self.namespace)).unwrap();
    }

    /// An object of the waypoint; null where it is not there.
    fn object(&self, path: &str) -> Value {
        let path = path.replace("NAMESPACE", self.namespace);
        let versions: &[&str] = if path.contains("autoscaling") { &["v2", "v2beta2"] } else { &["v1", "v1beta1"] };
        let found = versions.iter().map(|version| self.installation.object(&path.replace("VERSION", version)));
        found.into_iter().find(|object| object["metadata"]["name"] == "wp").unwrap_or_default()
    }

    fn gateway(&self) -> Value {
        self.installation.object(&format!("/apis/{GROUP}/v1/namespaces/{}/gateways/wp", self.namespace))
    }

    fn await_object(&self, path: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        eventually(LIMIT, what, || Some(self.object(path)).filter(|object| is_it(object)))
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.object(path), self.replica.log()))
    }

    /// A condition of the Gateway that speaks of its generation.
    fn await_condition(&self, kind: &str, status: &str, reason: &str) -> String {
        let found = eventually(LIMIT, &format!("{kind}={status} {reason}"), || {
            let gateway = self.gateway();
            let found = gateway["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)?.clone();
            let is_current = found["observedGeneration"] == gateway["metadata"]["generation"];
            (is_current && found["status"] == status && found["reason"] == reason).then_some(found)
        });
        let found =
            found.unwrap_or_else(|error| panic!("{error}: {} {}", self.gateway()["status"], self.replica.log()));
        found["message"].as_str().unwrap().to_owned()
    }

    /// What the controllers have written of waypoints since then.
    fn writes(&self, since: usize) -> Vec<Request> {
        let user = format!("system:serviceaccount:{}:culvert-controller", self.installation.namespace);
        let is_write = |one: &Request| {
            let of_waypoints =
                one.uri.contains(&format!("/{}/", self.namespace)) || one.resource.starts_with("gatewayclasses");
            matches!(&*one.verb, "patch" | "create" | "delete") && of_waypoints && !one.uri.contains("istio-ca-")
        };
        let mut requests = self.installation.cluster.requests_of(&user, since).unwrap();
        requests.retain(is_write);
        requests
    }
}

#[test]
fn a_gateway_is_given_what_it_asks_for_and_told_what_became_of_it_and_only_the_leader_writes() {
    let world = World::new(Installation::new("ca-waypoints"), "waypoints");
    let second = World::start(&world.installation, "two");
    let cluster = world.installation.cluster;
    let since = cluster.audit().unwrap().len();
    world.apply(GATEWAY);
    assert!(world.await_condition("Accepted", "False", "InvalidParameters").contains("ConfigMap waypoints/p"));
    world.apply(PARAMETERS);

    let owner = world.gateway()["metadata"]["uid"].clone();
    for path in KINDS {
        let object = world.await_object(path, path, |object| !object.is_null());
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], owner, "{object}");
        assert_eq!(object["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"], "wp");
        assert_eq!(object["metadata"]["labels"]["team"], "a");
    }
    let [_, service, deployment, autoscaler, _] = KINDS;
    let pod = world.object(deployment)["spec"]["template"].clone();
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["waypoint", "--gateway", "waypoints/wp"]));
    assert_eq!(container["image"], "localhost/culvert:test");
    assert_eq!(container["resources"]["limits"]["memory"], "99Mi", "by the ConfigMap");
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(pod["spec"]["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    assert_eq!(world.object(autoscaler)["spec"]["maxReplicas"], 3);

    // Its account may read what waypoints read.
    let account = json!({"kind": "ServiceAccount", "name": "wp", "namespace": "waypoints"});
    let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/culvert-waypoint";
    eventually(LIMIT, "the binding", || {
        let subjects = world.installation.object(binding)["subjects"].clone();
        subjects.as_array().is_some_and(|subjects| subjects.contains(&account)).then_some(())
    })
    .unwrap();
    let may = cluster.kubectl(&["auth", "can-i", "list", "pods", "--as", "system:serviceaccount:waypoints:wp"]);
    assert_eq!(may.unwrap().trim(), "yes");

    // Nobody runs pods here: the Deployment's controller is played.
    world.await_condition("Accepted", "True", "Accepted");
    assert!(world.await_condition("Programmed", "False", "Pending").contains("no pod of Deployment waypoints/wp"));
    let ready = json!({"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}});
    let path = format!("{}/status", deployment.replace("NAMESPACE", "waypoints"));
    cluster.request("PATCH", &path, Some(&ready)).unwrap().success().unwrap();
    world.await_condition("Programmed", "True", "Programmed");
    let address = json!({"type": "IPAddress", "value": world.object(service)["spec"]["clusterIP"]});
    assert_eq!(world.gateway()["status"]["addresses"], json!([address]));
    assert_eq!(world.gateway()["status"]["listeners"][0]["name"], "mesh");
    let class = world.installation.object(&format!("/apis/{GROUP}/v1/gatewayclasses/istio-waypoint"));
    assert_eq!(class["spec"]["controllerName"], "istio.io/mesh-controller");
    assert_eq!(class["status"]["conditions"][0]["type"], "Accepted");

    // Each object once; the Gateway's status as it changed: no parameters, then none ready, and now it is.
    let written = |writes: &[Request], resource: &str| writes.iter().filter(|one| one.resource == resource).count();
    let writes = world.writes(since);
    for resource in ["serviceaccounts", "services", "deployments", "horizontalpodautoscalers", "poddisruptionbudgets"] {
        assert_eq!(written(&writes, resource), 1, "{resource}: {writes:?}");
    }
    assert!((3..=4).contains(&written(&writes, "gateways/status")), "{writes:?}");
    assert!(written(&writes, "gatewayclasses") <= 1, "another test may have had it made: {writes:?}");

    // What changes nothing is not written; what does, is; and what nobody asks for any more goes.
    let quiet = cluster.audit().unwrap().len();
    cluster.kubectl(&["-n", "waypoints", "label", "gateway", "wp", "note=none"]).unwrap();
    let fewer = PARAMETERS.replace("99Mi", "98Mi");
    world.apply(fewer.split("  horizontalPodAutoscaler").next().unwrap());
    world.await_object(autoscaler, "no autoscaler", Value::is_null);
    world.await_object(deployment, "the new limit", |object| object.to_string().contains("98Mi"));
    let verbs: Vec<_> = world.writes(quiet).iter().map(|one| format!("{} {}", one.verb, one.resource)).collect();
    assert_eq!(verbs, ["patch deployments", "delete horizontalpodautoscalers"]);
    let leads = [&world.replica, &second].map(|replica| replica.metric("culvert_controller_leader"));
    assert_eq!(leads.iter().sum::<f64>(), 1.0);

    // The next leader has nothing to do but to go on.
    let quiet = cluster.audit().unwrap().len();
    let (leader, other) = if leads[0] > 0.0 { (world.replica, second) } else { (second, world.replica) };
    leader.stop();
    eventually(LIMIT, "another leader", || (other.metric("culvert_controller_leader") > 0.0).then_some(())).unwrap();
    let world = World { replica: other, ..world };
    world.apply(&fewer.replace("98Mi", "97Mi"));
    world.await_object(deployment, "a newer limit", |object| object.to_string().contains("97Mi"));
    let verbs: Vec<_> = world.writes(quiet).iter().map(|one| format!("{} {}", one.verb, one.resource)).collect();
    assert!(verbs.iter().all(|verb| verb.contains("deployments") || verb.contains("autoscalers")), "{verbs:?}");
    world.replica.stop();
}

#[test]
fn what_is_somebody_elses_is_not_touched_and_the_gateway_says_so() {
    let world = World::new(Installation::new("ca-conflicts"), "conflicts");
    let cluster = world.installation.cluster;
    world.apply(
        "---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: wp, namespace: NAMESPACE, labels: {mine: all}}}",
    );
    world.apply(&GATEWAY.replace("parametersRef: {group: '', kind: ConfigMap, name: p}", "annotations: {}"));
    let message = world.await_condition("Programmed", "False", "Invalid");
    assert!(message.contains("ServiceAccount conflicts/wp is there and does not belong to this Gateway"), "{message}");
    let [account, _, deployment, ..] = KINDS;
    assert_eq!(world.object(account)["metadata"]["labels"], json!({"mine": "all"}));

    // Once it is out of the way, the rest follows by itself.
    cluster.kubectl(&["-n", "conflicts", "delete", "serviceaccount", "wp"]).unwrap();
    world.await_object(account, "an account of its own", |object| !object["metadata"]["ownerReferences"].is_null());
    world.await_condition("Programmed", "False", "Pending");

    // A field that somebody has taken over stays theirs.
    let theirs = "---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: wp, namespace: conflicts},
 spec: {template: {spec: {terminationGracePeriodSeconds: 77}}}}";
    let file = cluster.directory().join("theirs.yaml");
    std::fs::write(&file, theirs).unwrap();
    let file = file.to_str().unwrap();
    let apply =
        ["apply", "--server-side", "--force-conflicts", "--field-manager=somebody", "--validate=false", "-f", file];
    cluster.kubectl(&apply).unwrap();
    let message = world.await_condition("Programmed", "False", "Invalid");
    assert!(message.contains("Deployment conflicts/wp: somebody else has set some of it"), "{message}");
    assert!(message.contains("somebody") && message.contains("terminationGracePeriodSeconds"), "{message}");
    assert_eq!(world.object(deployment)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 77);
    world.replica.stop();
}

/// With Kubernetes' own garbage collector, which is part of its controller manager.
#[test]
fn everything_goes_with_its_gateway() {
    static CLUSTER: OnceLock<ControlPlane> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| ControlPlane::start_with_controllers().unwrap());
    let world = World::new(Installation::on(cluster, "ca-goes"), "goes");
    world.apply(PARAMETERS);
    world.apply(GATEWAY);
    for path in KINDS {
        world.await_object(path, path, |object| !object.is_null());
    }
    cluster.kubectl(&["-n", "goes", "delete", "gateway", "wp"]).unwrap();
    for path in KINDS {
        world.await_object(path, &format!("no {path}"), Value::is_null);
    }
    let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/culvert-waypoint";
    let subjects = || world.installation.object(binding)["subjects"].clone();
    eventually(LIMIT, "nobody bound", || (subjects().is_null() || subjects() == json!([])).then_some(())).unwrap();
    world.replica.stop();
}
