//! Agent and controller do all they are for with what the chart gives them, and with no more: the capabilities of their
//! containers, no new privileges, `/proc/sys` read-only, and the permissions of their service accounts. Whatever the
//! chart grants is used.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;
#[path = "confined/grants.rs"]
mod grants;
#[path = "controller/plugged.rs"]
mod plugged;
mod runtime;
#[path = "confined/world.rs"]
mod world;

use anyhow::{Context, Result, ensure};
use culvert_tests::eventually;
use culvert_tests::process::Process;
use datapath::{LIMIT, START, ask, at, carried};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use world::{Confinement, NAMESPACE, World};

/// As a container runtime names what it runs; the harness calls the pod's cgroup so.
const CONTAINER: &str = "3f9c8e7d6b5a49382716059483726150f1e2d3c4b5a69788";

/// What is granted and cannot be seen in the audit log, each with the reason.
const UNSEEN: [(&str, &str); 9] = [
    (
        "culvert-controller: get pods",
        "only for a node agent that asks before the watch has brought its pod: a matter of milliseconds",
    ),
    ("culvert-controller: create configmaps", APPLIED),
    ("culvert-controller: create serviceaccounts", APPLIED),
    ("culvert-controller: create services", APPLIED),
    ("culvert-controller: create deployments", APPLIED),
    ("culvert-controller: create horizontalpodautoscalers", APPLIED),
    ("culvert-controller: create poddisruptionbudgets", APPLIED),
    ("culvert-controller: create gatewayclasses", APPLIED),
    ("culvert-controller: bind clusterroles culvert-waypoint", "looked at where the binding is written"),
];

const APPLIED: &str =
    "asked for beside patch, under which it is logged, where server-side apply makes what was not there";

/// A waypoint, what is bound to it, and routes of connections.
const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: wp}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: wp, namespace: shop}
data:
  horizontalPodAutoscaler: 'spec: {minReplicas: 2, maxReplicas: 3}'
  podDisruptionBudget: 'spec: {maxUnavailable: 1}'
---
apiVersion: v1
kind: Service
metadata: {name: bound, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.7.8, selector: {app: none}, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bound, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {hosts: [bound.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], jwtRules: [{issuer: 'https://a.example'}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: bound, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: bound}], rules: [{backendRefs: [{name: bound, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: bound, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: bound}]
  hostnames: [bound.example]
  rules: [{backendRefs: [{name: bound, port: 80}]}]
";

const OBJECTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.7.7, selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop-only, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}], rules: [{backendRefs: [{name: cart, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: cart, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}], rules: [{backendRefs: [{name: cart, port: 80}]}]}
";

#[test]
fn agent_and_controller_need_what_the_chart_gives_them_and_nothing_else() -> Result<()> {
    let mut world = World::new(&[(1, "shop", "a"), (1, "shop", CONTAINER), (2, "outside", "o")])?;
    world.cluster.apply(OBJECTS)?;
    world.label("shop", Some("ambient"))?;
    world.start()?;
    Confinement::of(&world.chart, "culvert-node").holds(world.agent().pid())?;

    let mut sleep = world.pod(CONTAINER).place().command("/bin/sleep")?;
    sleep.arg("600");
    let _sandbox = Process::spawn("sleep", sleep)?;
    takes_pods_in_and_carries_their_traffic(&world)?;
    let (a, o) = (world.pod("a").ipv4(), world.pod("o").place());
    ensure!(ask(&o, at(a)).is_err(), "plaintext is accepted");

    // Another agent goes on where the first has stopped; nothing was open in between.
    let log = world.stop()?;
    ensure!(ask(&o, at(a)).is_err(), "in clear while no agent runs\n{log}");
    plugin_asks_by_itself(&world)?;
    world.start()?;
    let b = world.pod(CONTAINER);
    eventually(START, "the pods to be served again", || ask(&b.place(), at(a)).ok())
        .with_context(|| world.agent().log())?;
    ensure!(ask(&o, at(a)).is_err(), "plaintext is accepted by the next agent");

    controller_does_all_it_is_for(&world)?;
    controller_runs_waypoints(&world)?;

    world.label("shop", None)?;
    eventually(START, "the pod to be let go", || ask(&o, at(a)).ok()).with_context(|| world.agent().log())?;
    let rules = || world.pod("a").netns().ip_once(&["rule", "show"]).ok().filter(|rules| !rules.contains("fwmark"));
    eventually(LIMIT, "its rules to be as they were", rules)?;

    // With its DaemonSet gone, it takes everything with it.
    world.cluster.kubectl(&["-n", NAMESPACE, "delete", "daemonset", "culvert-node", "--wait=false"])?;
    world.stop()?;
    ensure!(!world.runtime.plugin().exists(), "the plugin is left");

    every_permission_was_used_and_no_other_wanted(&mut world)
}

/// One by the CNI plugin, and one that runs already and is found by its processes.
fn takes_pods_in_and_carries_their_traffic(world: &World) -> Result<()> {
    let (a, b) = (world.pod("a"), world.pod(CONTAINER));
    world.runtime.await_installed()?;
    world.runtime.add(a)?.success().with_context(|| world.agent().log())?;
    world.report(b, CONTAINER)?;
    let annotation = |pod: &str| {
        let pod = world.object(&format!("/api/v1/namespaces/shop/pods/{pod}"));
        (pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled").then_some(())
    };
    for pod in ["a", CONTAINER] {
        eventually(START, "the pod to be enrolled", || annotation(pod)).with_context(|| world.agent().log())?;
    }
    let said = ask(&b.place(), at(a.ipv4())).with_context(|| world.agent().log())?;
    ensure!(said == format!("a saw {}\n", b.ipv4()), "{said}");
    let encrypted = || (carried(world.agent(), "destination", "mutual_tls").ok()? >= 1.0).then_some(());
    eventually(LIMIT, "the connection to be counted as encrypted", encrypted).with_context(|| world.agent().log())?;
    let name = ["+short", "+tries=1", "+timeout=5", "@10.96.0.10", "cart.shop.svc.cluster.local"];
    let answer = a.output(LIMIT * 2, "dig", &name)?.success().with_context(|| world.agent().log())?;
    ensure!(answer.trim() == "10.96.7.7", "{answer}");
    eventually(LIMIT, "an Event", || {
        let events = world.object("/apis/events.k8s.io/v1/namespaces/shop/events");
        events["items"].as_array()?.iter().any(|event| event["reason"] == "Enrolled").then_some(())
    })?;
    // The agent asks for what the watch has not brought: here for what is not there at all.
    let unknown = world.runtime.call_as("ADD", "nowhere", world.pod("o"))?;
    ensure!(!unknown.status.success() || unknown.stdout.contains("prevResult"), "{}", unknown.stdout);
    Ok(())
}

/// The plugin's own account, while no agent runs.
fn plugin_asks_by_itself(world: &World) -> Result<()> {
    let (code, message) = world.runtime.refusal(world.pod("a"))?;
    ensure!(code == 11 && message.contains("belongs to the mesh"), "{message}");
    Ok(())
}

/// Roots in every namespace, revocations that come and go, a root that is renewed, statuses.
fn controller_does_all_it_is_for(world: &World) -> Result<()> {
    let log = || world.controller.output();
    for path in [
        "security.istio.io/v1/namespaces/shop/peerauthentications/default",
        "security.istio.io/v1/namespaces/shop/authorizationpolicies/shop-only",
        "gateway.networking.k8s.io/v1/namespaces/shop/httproutes/cart",
        "gateway.networking.k8s.io/v1/namespaces/shop/grpcroutes/cart",
    ] {
        eventually(START, &format!("a status of {path}"), || {
            (world.object(&format!("/apis/{path}"))["status"] != Value::Null).then_some(())
        })
        .with_context(log)?;
    }
    let renew = ["-n", NAMESPACE, "annotate", "secret", "culvert-ca-secret", "culvert.dev/rotate-root=now"];
    world.cluster.kubectl(&renew)?;
    eventually(START, "another root to sign", || log().contains("the new root signs").then_some(()))
        .with_context(log)?;

    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let (root, key) = plugged::root("plugged in");
    let secret = json!({
        "metadata": { "name": "cacerts" },
        "stringData": {
            "ca-cert.pem": root, "ca-key.pem": key, "cert-chain.pem": root, "root-cert.pem": root,
            "ca-crl.pem": plugged::crl(&root, &key),
        },
    });
    world.cluster.request("POST", &secrets, Some(&secret))?.success()?;
    let crl = || world.object("/api/v1/namespaces/shop/configmaps/istio-ca-crl");
    eventually(START, "its revocations", || (crl() != Value::Null).then_some(())).with_context(log)?;
    world.cluster.request("DELETE", &format!("{secrets}/cacerts"), None)?.success()?;
    let secret = json!({
        "metadata": { "name": "cacerts" },
        "stringData": { "ca-cert.pem": root, "ca-key.pem": key, "cert-chain.pem": root, "root-cert.pem": root },
    });
    world.cluster.request("POST", &secrets, Some(&secret))?.success()?;
    eventually(START, "no revocations", || (crl() == Value::Null).then_some(())).with_context(log)
}

/// A Gateway is given what runs its waypoint, and what of it it no longer asks for is taken away.
fn controller_runs_waypoints(world: &World) -> Result<()> {
    world.cluster.apply(WAYPOINT)?;
    let told = |path: &str| world.object(&format!("/{path}"))["status"]["conditions"] != Value::Null;
    let routed = |path: &str| world.object(&format!("/{path}"))["status"]["parents"] != Value::Null;
    let shop = |rest: &str| rest.replacen("SHOP", "namespaces/shop", 1);
    for path in [
        "apis/gateway.networking.k8s.io/v1/gatewayclasses/istio-waypoint",
        "apis/gateway.networking.k8s.io/v1/SHOP/gateways/wp",
        "apis/security.istio.io/v1/SHOP/requestauthentications/tokens",
        "apis/networking.istio.io/v1/SHOP/serviceentries/bound",
        "api/v1/SHOP/services/bound",
    ] {
        let is_told = || told(&shop(path)).then_some(());
        eventually(START, &format!("a status of {path}"), is_told).with_context(|| world.controller.output())?;
    }
    for path in ["tcproutes", "tlsroutes"] {
        let path = format!("apis/gateway.networking.k8s.io/v1/namespaces/shop/{path}/bound");
        let is_told = || routed(&path).then_some(());
        eventually(START, &format!("a status of {path}"), is_told).with_context(|| world.controller.output())?;
    }
    let autoscaler = "/apis/autoscaling/v2beta2/namespaces/shop/horizontalpodautoscalers/wp";
    let is_there = |path: &str| world.object(path)["metadata"]["name"] == "wp";
    let budget = "/apis/policy/v1beta1/namespaces/shop/poddisruptionbudgets/wp";
    for path in [autoscaler, budget, "/apis/apps/v1/namespaces/shop/deployments/wp"] {
        eventually(START, path, || is_there(path).then_some(())).with_context(|| world.controller.output())?;
    }
    world.cluster.kubectl(&["-n", "shop", "patch", "configmap", "wp", "--type=json", "-p", NEITHER])?;
    let is_neither_there = || (!is_there(autoscaler) && !is_there(budget)).then_some(());
    eventually(START, "neither autoscaler nor budget", is_neither_there).with_context(|| world.controller.output())
}

/// Takes both out of the parameters.
const NEITHER: &str = r#"[
    {"op": "remove", "path": "/data/horizontalPodAutoscaler"}, {"op": "remove", "path": "/data/podDisruptionBudget"}
]"#;

fn every_permission_was_used_and_no_other_wanted(world: &mut World) -> Result<()> {
    // The API server may tell of a watch only once it has ended.
    world.controller.signal(Signal::SIGTERM)?;
    let status = world.controller.wait(START)?;
    ensure!(status.success(), "{status}: {}", world.controller.output());
    let requests = world.requests()?;
    let refused: Vec<_> = requests.iter().filter(|one| matches!(one.status, 401 | 403)).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    let grants = world.grants();
    let unused: Vec<String> = grants
        .iter()
        .filter(|grant| !requests.iter().any(|request| grant.allows(request)))
        .map(ToString::to_string)
        .filter(|grant| !UNSEEN.iter().any(|(unseen, _)| unseen == grant))
        .collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:#?}");
    for (unseen, _) in UNSEEN {
        ensure!(grants.iter().any(|grant| grant.to_string() == unseen), "{unseen} is not granted any more");
    }
    // Nothing was asked for that only the API server's defaults allow.
    let other = requests.iter().find(|one| !one.resource.is_empty() && !grants.iter().any(|grant| grant.allows(one)));
    ensure!(other.is_none(), "allowed by whom? {other:?}");
    Ok(())
}
