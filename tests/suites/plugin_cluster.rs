//! The CNI plugin and enrolment with a real API server: what pods are told, and who decides while no agent runs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;
mod runtime;

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use culvert_tests::http::Server;
use culvert_tests::kube::{ControlPlane, Forwarder};
use culvert_tests::{Agent, AgentConfig, Pod, Topology, eventually};
use datapath::{LIMIT, PORT, START, ask, at};
use runtime::{CONFLIST, Runtime};
use serde_json::{Value, json};

const ANNOTATION: &str = "ambient.istio.io/redirection";

/// A node of a real cluster, with pods of `shop`, which is in the mesh, and of `outside`.
struct World {
    agent: Option<Agent>,
    _servers: Vec<Server>,
    _forwarder: Forwarder,
    runtime: Runtime,
    config: AgentConfig,
    cluster: ControlPlane,
    topology: Topology,
}

impl World {
    fn new(pods: &[(u8, &str, &str)]) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        let mut servers = Vec::new();
        for (node, namespace, name) in pods {
            let pod = topology.add_pod(*node, namespace, name)?;
            servers.push(Server::start(&pod.place(), SocketAddr::new([0, 0, 0, 0].into(), PORT), name)?);
        }
        let cluster = ControlPlane::start()?;
        for namespace in ["shop", "outside"] {
            cluster.namespace(namespace)?;
        }
        cluster.service_account("default", "culvert-cni")?;
        for node in ["n1", "n2"] {
            cluster.node(node)?;
        }
        cluster.apply(PLUGIN_MAY)?;
        let mut runtime = Runtime::create(&topology)?;
        let forwarder = cluster.reachable_in(&topology.node(1).place())?;
        let mut config = AgentConfig::new(&topology.scope().directory().join("mesh"))?;
        config.kubeconfig = Some(cluster.kubeconfig());
        config.arguments = ["--workers", "1", "--drain-seconds", "2"].map(Into::into).to_vec();
        config.arguments.extend(runtime.flags());
        for pod in topology.pods() {
            let uid = cluster.scheduled_pod(pod.namespace(), pod.name(), "default", pod.node())?;
            runtime.uids.insert(pod.name().to_owned(), uid);
        }
        let agent = None;
        let world = Self { agent, _servers: servers, _forwarder: forwarder, runtime, config, cluster, topology };
        world.label("shop", Some("ambient"))?;
        Ok(world)
    }

    fn start(&mut self) -> Result<()> {
        let mut agent = Agent::start(&self.topology, self.topology.node(1), &self.config)?;
        agent.wait_ready(START)?;
        self.agent = Some(agent);
        Ok(())
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent was started")
    }

    fn label(&self, namespace: &str, mode: Option<&str>) -> Result<()> {
        let patch = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
        let path = format!("/api/v1/namespaces/{namespace}");
        self.cluster.request("PATCH", &path, Some(&patch))?.success().map(drop)
    }

    /// The kubelet's word on a pod's addresses.
    fn report_addresses(&self, pod: &Pod) -> Result<()> {
        let [ipv4, ipv6] = pod.addresses();
        let status =
            json!({ "status": { "phase": "Running", "podIP": ipv4, "podIPs": [{ "ip": ipv4 }, { "ip": ipv6 }] } });
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace(), pod.name());
        self.cluster.request("PATCH", &path, Some(&status))?.success().map(drop)
    }

    fn annotation(&self, pod: &Pod) -> Result<Option<String>> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace(), pod.name());
        let pod = self.cluster.get(&path)?.success()?;
        Ok(pod["metadata"]["annotations"][ANNOTATION].as_str().map(str::to_owned))
    }

    fn await_annotation(&self, pod: &Pod, value: Option<&str>) -> Result<()> {
        eventually(LIMIT, &format!("{} to be annotated {value:?}", pod.name()), || {
            (self.annotation(pod).ok()?.as_deref() == value).then_some(())
        })
        .with_context(|| self.agent().log())
    }

    /// The Events on a pod: reason and note.
    fn events(&self, pod: &Pod) -> Result<Vec<(String, String)>> {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", pod.namespace());
        let list = self.cluster.get(&path)?.success()?;
        let of_pod = |event: &&Value| event["regarding"]["name"] == pod.name();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = list["items"].as_array().into_iter().flatten().filter(of_pod);
        Ok(events.map(|event| (text(&event["reason"]), text(&event["note"]))).collect())
    }

    fn await_event(&self, pod: &Pod, reason: &str) -> Result<String> {
        eventually(LIMIT, &format!("an Event {reason}"), || {
            self.events(pod).ok()?.into_iter().find(|(found, _)| found == reason).map(|(_, note)| note)
        })
        .with_context(|| self.agent().log())
    }
}

/// What the plugin's own account may do.
const PLUGIN_MAY: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: culvert-cni}
rules:
- {apiGroups: [''], resources: [namespaces, pods], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: culvert-cni}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: culvert-cni}
subjects:
- {kind: ServiceAccount, name: culvert-cni, namespace: default}
";

#[test]
fn a_pod_tells_how_it_is_doing_by_annotation_and_events() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "outside", "o")])?;
    world.start()?;
    let [a, b, o] = ["a", "b", "o"].map(|name| world.topology.pod(name));
    world.runtime.add(a)?.success().with_context(|| world.agent().log())?;
    world.await_annotation(a, Some("enabled"))?;
    ensure!(world.await_event(a, "Enrolled")?.contains("n1"));

    // The kubelet's word changes nothing.
    world.report_addresses(a)?;
    world.report_addresses(o)?;
    eventually(LIMIT, "the addresses to arrive", || {
        world.agent().admin("/config_dump").ok()?.body.contains(&o.ipv4().to_string()).then_some(())
    })?;
    let log = world.agent().log();
    ensure!(log.lines().filter(|line| line.contains("shop/a") && line.contains("enrolled")).count() == 1, "{log}");

    // A pod whose network namespace nobody finds says so, and gets in as soon as there is one.
    world.report_addresses(b)?;
    world.await_annotation(b, Some("pending"))?;
    ensure!(world.await_event(b, "EnrolmentFailed")?.contains("no process of the pod"));
    world.runtime.add(b)?.success().with_context(|| world.agent().log())?;
    world.await_annotation(b, Some("enabled"))?;

    world.label("shop", None)?;
    world.await_annotation(a, None)?;
    world.await_event(a, "LeftMesh")?;
    eventually(LIMIT, "plaintext to be let through", || ask(&o.place(), at(a.ipv4())).ok())?;
    world.label("shop", Some("ambient"))?;
    world.await_annotation(a, Some("enabled"))?;

    // Written when it changes, and not otherwise.
    let patches = world.cluster.audit()?.into_iter().filter(|request| {
        let request = format!("{request:?}");
        request.contains("patch") && request.contains("pods/a/status") && request.contains("culvert/")
    });
    ensure!(patches.count() == 3, "{:?}", world.cluster.audit()?);
    Ok(())
}

#[test]
fn without_an_agent_the_api_server_says_who_may_start_and_without_both_what_was_written_down() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a"), (1, "outside", "b")])?;
    world.start()?;
    let [a, b] = ["a", "b"].map(|name| world.topology.pod(name));
    let state = world.runtime.state();
    eventually(LIMIT, "credentials and cache", || {
        (state.join("cni.kubeconfig").exists() && state.join("cni-mesh.json").exists()).then_some(())
    })
    .with_context(|| world.agent().log())?;
    let log = world.agent().log();
    if let Some(agent) = &mut world.agent {
        agent.kill()?;
    }
    let (code, msg) = world.runtime.refusal(a)?;
    ensure!(code == 11 && msg.contains("belongs to the mesh"), "{msg}\n{log}");
    world.runtime.add(b)?.success()?;
    // The agent has never heard of it: the API server has.
    world.cluster.namespace("new")?;
    world.runtime.call_as("ADD", "new", b)?.success()?;
    world.label("outside", Some("ambient"))?;
    ensure!(world.runtime.refusal(b)?.1.contains("belongs to the mesh"), "the API server's word counts");
    world.label("outside", None)?;

    world.cluster.stop_apiserver()?;
    let (code, msg) = world.runtime.refusal(a)?;
    ensure!(code == 11 && msg.contains("was in the mesh when the agent last ran"), "{msg}");
    world.runtime.add(b)?.success()?;
    let unknown = world.runtime.call_as("ADD", "new", b)?;
    ensure!(!unknown.status.success() && unknown.stdout.contains("not one that the agent knew"), "{}", unknown.stdout);
    Ok(())
}

#[test]
fn what_cannot_be_read_is_told_alike_by_the_log_and_by_analyze() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a")])?;
    let kinds = [("authorizationpolicies", "AuthorizationPolicy"), ("peerauthentications", "PeerAuthentication")];
    let path = |plural: &str| format!("/apis/security.istio.io/v1/namespaces/shop/{plural}");
    let specs = [json!({ "action": { "of": "the wrong type" } }), json!({ "mtsl": { "mode": "STRICT" } })];
    for ((plural, kind), spec) in kinds.into_iter().zip(specs) {
        world.cluster.crd_without_schema("security.istio.io", plural, kind)?;
        let object =
            json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": { "name": "odd" }, "spec": spec });
        world.cluster.request("POST", &path(plural), Some(&object))?.success()?;
    }
    world.start()?;
    let analyze = || -> Result<(Option<i32>, Value)> {
        let mut command = world.topology.node(1).place().command(culvert_tests::agent::binary("culvertctl")?)?;
        command.args(["analyze", "--output", "json"]);
        let said = culvert_tests::Process::spawn("culvertctl", command)?.finish(LIMIT)?;
        Ok((said.status.code(), serde_json::from_str(&said.stdout).with_context(|| said.stderr)?))
    };
    let about = |issues: &Value, object: &str| -> Option<Value> {
        issues.as_array()?.iter().find(|issue| issue["object"] == object).cloned()
    };
    let told = || {
        let (code, issues) = analyze().ok()?;
        let unreadable = about(&issues, "AuthorizationPolicy shop/odd")?;
        let unread = about(&issues, "PeerAuthentication shop/odd")?;
        Some((code, unreadable, unread))
    };
    let (code, unreadable, unread) =
        eventually(LIMIT, "both to be told", told).with_context(|| format!("{:?}", analyze()))?;
    ensure!(
        code == Some(2) && unreadable["severity"] == "error" && unreadable["field"] == "spec.action",
        "{unreadable}"
    );
    let message = unreadable["message"].as_str().context("a message")?;
    let line = format!("AuthorizationPolicy shop/odd: spec.action: {message}");
    ensure!(world.agent().log().contains(&line), "{line}: {}", world.agent().log());
    ensure!(unread["severity"] == "warning" && unread["field"] == "spec.mtsl", "{unread}");

    world.cluster.request("DELETE", &format!("{}/odd", path("authorizationpolicies")), None)?.success()?;
    eventually(LIMIT, "its end", || {
        let (code, issues) = analyze().ok()?;
        (code == Some(0) && about(&issues, "AuthorizationPolicy shop/odd").is_none()).then_some(())
    })
}

#[test]
fn a_pod_of_another_kernel_is_refused_before_it_starts_and_told_why() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a")])?;
    world.cluster.apply(GVISOR)?;
    let path = "/api/v1/namespaces/shop/pods";
    world.cluster.request("DELETE", &format!("{path}/a?gracePeriodSeconds=0"), None)?.success()?;
    let pod = |labels: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": labels },
            "spec": {
                "nodeName": "n1", "runtimeClassName": "gvisor", "serviceAccountName": "default",
                "automountServiceAccountToken": false, "containers": [{ "name": "main", "image": "none" }],
            },
        })
    };
    let create = |world: &mut World, labels: Value| -> Result<()> {
        let created = world.cluster.request("POST", path, Some(&pod(labels)))?.success()?;
        let uid = created["metadata"]["uid"].as_str().context("a UID")?.to_owned();
        world.runtime.uids.insert("a".to_owned(), uid);
        Ok(())
    };
    create(&mut world, json!({}))?;
    world.start()?;
    let (code, message) = world.runtime.refusal(world.topology.pod("a"))?;
    ensure!(code == 100 && message.contains("runtimeClassName \"gvisor\" is that of gVisor"), "{code} {message}");
    ensure!(message.contains("istio.io/dataplane-mode: none"), "no cure: {message}");
    let note = world.await_event(world.topology.pod("a"), "EnrolmentRefused")?;
    ensure!(note.contains("gVisor"), "{note}");

    // Labelled as the message says, it starts, outside of the mesh.
    world.cluster.request("DELETE", &format!("{path}/a?gracePeriodSeconds=0"), None)?.success()?;
    create(&mut world, json!({ "istio.io/dataplane-mode": "none" }))?;
    world.runtime.add(world.topology.pod("a"))?.success().with_context(|| world.agent().log())?;
    Ok(())
}

#[test]
fn while_nobody_can_be_asked_no_pod_starts_where_others_are_in_the_mesh_by_their_own_labels() -> Result<()> {
    let mut world = World::new(&[(1, "outside", "b"), (2, "outside", "o"), (1, "shop", "c")])?;
    // On another node: what this one's agent knows of it, it knows from the API server.
    let label = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": "ambient" } } });
    world.cluster.request("PATCH", "/api/v1/namespaces/outside/pods/o", Some(&label))?.success()?;
    world.report_addresses(world.topology.pod("o"))?;
    world.cluster.namespace("plain")?;
    world.start()?;
    let cache = world.runtime.state().join("cni-mesh.json");
    eventually(LIMIT, "the cache to know of it", || {
        fs::read_to_string(&cache).ok()?.contains("\"mixed\":[\"outside\"]").then_some(())
    })
    .with_context(|| fs::read_to_string(&cache).unwrap_or_default())?;
    world.agent.as_mut().context("an agent")?.kill()?;
    world.cluster.stop_apiserver()?;
    let b = world.topology.pod("b");
    let (code, message) = world.runtime.refusal(b)?;
    ensure!(code == 11 && message.contains("by their own labels"), "{message}");
    world.runtime.call_as("ADD", "plain", b)?.success()?;
    Ok(())
}

#[test]
fn an_agent_that_is_uninstalled_leaves_nothing_and_one_that_is_replaced_everything() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    world.cluster.apply(DAEMON_SET)?;
    world.start()?;
    let conflist = world.runtime.configurations().join("10-net.conflist");
    world.runtime.add(world.topology.pod("a"))?.success()?;
    world.await_annotation(world.topology.pod("a"), Some("enabled"))?;
    let is_captured = |world: &World| {
        let (a, o) = (world.topology.pod("a"), world.topology.pod("o"));
        ask(&o.place(), at(a.ipv4())).is_err()
    };

    let stop = |world: &mut World| world.agent.take().context("an agent")?.terminate(START).map(drop);
    stop(&mut world)?;
    ensure!(is_captured(&world) && fs::read_to_string(&conflist)?.contains("culvert-cni"), "replaced: all stays");
    world.start()?;
    world.cluster.delete(DAEMON_SET)?;
    stop(&mut world)?;
    ensure!(!is_captured(&world), "uninstalled: the pod must be let go");
    ensure!(fs::read_to_string(&conflist)? == CONFLIST && !world.runtime.plugin().exists());
    ensure!(world.annotation(world.topology.pod("a"))?.is_none(), "the annotation is left");
    Ok(())
}

const GVISOR: &str = "\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: gvisor}
handler: runsc
";

const DAEMON_SET: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: culvert-node, namespace: default}
spec:
  selector: {matchLabels: {app: culvert-node}}
  template:
    metadata: {labels: {app: culvert-node}}
    spec:
      containers: [{name: node, image: none}]
";
