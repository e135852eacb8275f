//! What a large mesh costs: `cargo bench -p culvert-core --bench mesh`.
//!
//! 100 000 pods of 10 000 controllers in 100 namespaces on 1 000 nodes, behind 10 000 services, with 1 000 policies:
//! applied as one step, then one pod at a time. Prints the resident memory that the mesh adds, and times: those of the
//! thread's processor, so that what else the machine does is not counted. The objects are made as they are applied, so
//! that their own memory is not counted.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark stops where it meets the unexpected")]

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_api::Object;
use culvert_api::k8s_openapi::api::core::v1::{
    Container, ContainerPort, Namespace, Node, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServicePort,
    ServiceSpec,
};
use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use culvert_api::meta::WorkloadSelector;
use culvert_api::security::{AuthorizationPolicy, AuthorizationPolicySpec};
use culvert_core::address::OriginalDst;
use culvert_core::mesh::{Change, Mesh};
use culvert_core::route::outbound::outbound;
use nix::time::{ClockId, clock_gettime};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

const PODS: usize = 100_000;
const DEPLOYMENTS: usize = 10_000;
const NAMESPACES: usize = 100;
const NODES: usize = 1_000;
const POLICIES: usize = 1_000;

fn main() {
    let before = resident();
    let mut mesh = Mesh::new().for_node("node-0");
    let started = now();
    mesh.apply(all());
    let snapshot = mesh.snapshot();
    let applied = now() - started;
    println!(
        "apply {} workloads, {} services, {} policies: {:.2} s, {:.0} MB",
        snapshot.workloads().len(),
        snapshot.services().len(),
        snapshot.authorization_policies().len(),
        applied.as_secs_f64(),
        (resident() - before) as f64 / 1e6
    );

    // Every step is published and the last snapshot held, as the agent does, so that nothing is updated in place.
    let mut held = snapshot;
    let mut one_by_one = |what: &str, count: usize, change: &dyn Fn(usize) -> Change| {
        let times = (0..count).map(|at| {
            let change = change(at);
            let started = now();
            mesh.apply([change]);
            held = mesh.snapshot();
            (now() - started, at)
        });
        println!("one {what}: {}", percentiles(times.collect()));
    };
    let some = |at: usize| pod(at * 97 % PODS);
    let canary = |at: usize| {
        let mut pod = some(at);
        pod.metadata.labels.get_or_insert_default().insert("canary".to_owned(), "yes".to_owned());
        Change::Upsert(pod.into())
    };
    one_by_one("pod, readiness", 1_000, &|at| {
        let mut pod = some(at);
        set_ready(&mut pod, false);
        Change::Upsert(pod.into())
    });
    one_by_one("pod, labels", 1_000, &canary);
    one_by_one("pod, unchanged", 1_000, &canary);
    // Enough for every table to grow.
    one_by_one("pod, new", 40_000, &|at| Change::Upsert(pod(PODS + at).into()));
    one_by_one("pod, gone", 40_000, &|at| Change::Remove(Object::from(pod(PODS + at)).reference()));
    one_by_one("service", 1_000, &|at| {
        let mut service = service(at);
        service.spec.get_or_insert_default().internal_traffic_policy = Some("Local".to_owned());
        Change::Upsert(service.into())
    });
    println!("after that: {:.0} MB", (resident() - before) as f64 / 1e6);

    let source = held.pod("ns-0", "app-0-0").expect("it was applied").clone();
    let mut rng = SmallRng::seed_from_u64(1);
    let decided = times(100_000, |at| {
        let dst = OriginalDst::new(([10, 96, (at % DEPLOYMENTS / 250) as u8, (at % 250) as u8], 80).into());
        std::hint::black_box(outbound(&held, &source, dst, &mut rng).is_ok());
    });
    println!("outbound decision: {} ns", decided.as_nanos());
    let policies = times(100_000, |_| {
        std::hint::black_box(held.policies_for(&source).len());
        std::hint::black_box(held.peer_authentication_for(&source).mode);
    });
    println!("policies of a workload: {} ns", policies.as_nanos());
}

fn times(count: u32, mut each: impl FnMut(usize)) -> Duration {
    let started = now();
    (0..count as usize).for_each(&mut each);
    (now() - started) / count
}

/// The processor time of this thread.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux").into()
}

/// Of times, each with the number of the change that it is of.
fn percentiles(mut times: Vec<(Duration, usize)>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].0.as_micros();
    let worst: Vec<String> = times.iter().rev().take(3).map(|(_, at)| format!("#{at}")).collect();
    format!("p50 {} us, p99 {} us, worst {} us (worst changes: {})", at(50), at(99), at(100), worst.join(", "))
}

/// Resident memory in bytes.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<i64>().ok());
    pages.expect("a number of pages") * 4096
}

fn all() -> impl Iterator<Item = Change> {
    let namespaces = (0..NAMESPACES).map(|at| Change::Upsert(namespace(at).into()));
    let nodes = (0..NODES).map(|at| Change::Upsert(node(at).into()));
    let services = (0..DEPLOYMENTS).map(|at| Change::Upsert(service(at).into()));
    let policies = (0..POLICIES).map(|at| Change::Upsert(policy(at).into()));
    let pods = (0..PODS).map(|at| Change::Upsert(pod(at).into()));
    namespaces.chain(nodes).chain(services).chain(policies).chain(pods)
}

fn labels(pairs: &[(&str, String)]) -> Option<BTreeMap<String, String>> {
    Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn namespace(at: usize) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(format!("ns-{at}"));
    namespace.metadata.labels = labels(&[("istio.io/dataplane-mode", "ambient".to_owned())]);
    namespace
}

fn node(at: usize) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(format!("node-{at}"));
    node.metadata.labels = labels(&[
        ("topology.kubernetes.io/region", "eu".to_owned()),
        ("topology.kubernetes.io/zone", format!("eu-{}", at % 3)),
    ]);
    node
}

fn service(at: usize) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some(format!("app-{at}")),
            namespace: Some(format!("ns-{}", at % NAMESPACES)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(format!("10.96.{}.{}", at / 250, at % 250)),
            selector: labels(&[("app", format!("app-{at}"))]),
            ports: Some(vec![ServicePort { name: Some("http".to_owned()), port: 80, ..ServicePort::default() }]),
            traffic_distribution: Some("PreferClose".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn policy(at: usize) -> AuthorizationPolicy {
    let mut policy = AuthorizationPolicy::new(
        &format!("policy-{at}"),
        AuthorizationPolicySpec {
            selector: Some(WorkloadSelector {
                match_labels: BTreeMap::from([("app".to_owned(), format!("app-{at}"))]),
            }),
            ..AuthorizationPolicySpec::default()
        },
    );
    policy.metadata.namespace = Some(format!("ns-{}", at % NAMESPACES));
    policy
}

fn pod(at: usize) -> Pod {
    let (deployment, replica) = (at % DEPLOYMENTS, at / DEPLOYMENTS);
    let hash = format!("{:010x}", deployment * 7919);
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(format!("app-{deployment}-{replica}")),
            namespace: Some(format!("ns-{}", deployment % NAMESPACES)),
            uid: Some(format!("{at:08x}-0000-4000-8000-000000000000")),
            labels: labels(&[
                ("app", format!("app-{deployment}")),
                ("app.kubernetes.io/part-of", "bench".to_owned()),
                ("version", "v1".to_owned()),
                ("pod-template-hash", hash.clone()),
            ]),
            owner_references: Some(vec![OwnerReference {
                kind: "ReplicaSet".to_owned(),
                name: format!("app-{deployment}-{hash}"),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(format!("node-{}", at % NODES)),
            service_account_name: Some(format!("app-{deployment}")),
            containers: vec![Container {
                name: "app".to_owned(),
                ports: Some(vec![ContainerPort {
                    name: Some("http".to_owned()),
                    container_port: 8080,
                    ..ContainerPort::default()
                }]),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            pod_ips: Some(vec![PodIP { ip: format!("10.{}.{}.{}", 100 + at / 65536, at / 256 % 256, at % 256) }]),
            ..PodStatus::default()
        }),
    };
    set_ready(&mut pod, true);
    pod
}

fn set_ready(pod: &mut Pod, ready: bool) {
    let status = if ready { "True" } else { "False" }.to_owned();
    let condition = PodCondition { type_: "Ready".to_owned(), status, ..PodCondition::default() };
    pod.status.get_or_insert_default().conditions = Some(vec![condition]);
}
