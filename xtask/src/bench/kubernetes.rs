//! What a large cluster costs an agent that reads it from an API server, and how fast the agent follows it.

mod cluster;

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::kube::ControlPlane;
use culvert_tests::{Agent, AgentConfig, Histogram, Nginx, Place, Topology, eventually, http};
use serde_json::json;

use self::cluster::{NAMESPACE, PODS, POLICIES, SERVICES};
use super::contender::{HTTP, cpu_of, release};
use super::memory::settled;
use super::report::Report;

const READY: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
/// How often a policy is written or deleted.
const CHANGES: usize = 1_000;
/// For how long the agent is watched for requests.
const IDLE: Duration = Duration::from_secs(30);
/// Agents write what has changed to their disk once a second: a killed one has the last policy deleted there as well.
const SAVED: Duration = Duration::from_secs(3);
/// After this an agent that is ready has given back what starting took of memory.
const GIVEN_BACK: Duration = Duration::from_secs(12);
/// The API server's name for the agent.
const USER: &str = "agent";

/// What is measured.
struct World<'a> {
    cluster: ControlPlane,
    topology: &'a Topology,
    config: AgentConfig,
    server: SocketAddr,
}

/// Memory with these objects; how long a first start takes, and restarts with the API server there and away; how long
/// a change of policy; and what an idle agent asks for.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    eprintln!("bench: an API server with {PODS} pods, {SERVICES} Services and {POLICIES} policies");
    let cluster = ControlPlane::start()?;
    let mut topology = Topology::new(1)?;
    topology.add_pod(1, NAMESPACE, "client")?;
    topology.add_pod(1, NAMESPACE, "server")?;
    let _running = cluster::fill(&cluster, &topology)?;
    let server = topology.pod("server");
    let _nginx = Nginx::start(topology.scope(), server, HTTP, "text")?;
    let _wire = cluster.reachable_in(&topology.node(1).place())?;
    let directory = topology.scope().directory();
    let mut config = AgentConfig::with_binary(release("culvert"), &directory.join("mesh"));
    config.kubeconfig = Some(cluster.kubeconfig_with_certificate(USER, &format!("/O=system:masters/CN={USER}"))?);
    config.log_directory = Some(directory.to_path_buf());
    config.arguments = vec!["--state-dir".into(), directory.join("state").into()];
    fs::create_dir_all(directory.join("state"))?;
    let server = SocketAddr::new(server.ipv4(), HTTP);
    let world = World { cluster, topology: &topology, config, server };

    let agent = world.start(report, "first start")?;
    drop(agent);
    let agent = world.start(report, "restarted")?;
    world.idle(&agent, report)?;
    world.propagation(report)?;
    thread::sleep(SAVED);
    drop(agent);
    world.cluster.stop_apiserver()?;
    let agent = world.start(report, "restarted, API server away")?;
    drop(agent);
    Ok(())
}

impl World<'_> {
    fn client(&self) -> Place {
        self.topology.pod("client").place()
    }

    fn is_answered(&self) -> bool {
        self.client().run(|| http::get(self.server, "/", ANSWER)).is_ok_and(|answer| answer.is_ok())
    }

    /// Starts an agent, and waits until it serves its pods.
    fn start(&self, report: &mut Report, how: &str) -> Result<Agent> {
        let started = Instant::now();
        let mut agent = Agent::start(self.topology, self.topology.node(1), &self.config)?;
        agent.wait_ready(READY)?;
        let pods = self.topology.pods().len() as f64;
        eventually(READY, "the pods to be enrolled", || {
            let enrolled = agent.metric("workload_manager_active_proxy_count", &[]).ok()?;
            (enrolled >= pods).then_some(())
        })
        .with_context(|| agent.log())?;
        eventually(LIMIT, "an answer through the mesh", || self.is_answered().then_some(()))?;
        let took = started.elapsed().as_secs_f64();
        report.memory(&format!("10k pods of an API server: serving, {how}"), "s", took);
        thread::sleep(GIVEN_BACK);
        report.memory(&format!("10k pods of an API server: RSS, {how}"), "MB", settled(&agent)?.0 / 1e6);
        Ok(agent)
    }

    /// From the request that writes or deletes a policy to the first connection that is treated by it.
    fn propagation(&self, report: &mut Report) -> Result<()> {
        let path = format!("/apis/security.istio.io/v1/namespaces/{NAMESPACE}/authorizationpolicies");
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "measured" },
            "spec": { "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": [HTTP.to_string()] } }] }] },
        });
        let mut took = Histogram::default();
        for change in 0..CHANGES {
            let is_denied = change % 2 == 0;
            let started = Instant::now();
            match is_denied {
                true => self.cluster.request("POST", &path, Some(&policy))?.success()?,
                false => self.cluster.request("DELETE", &format!("{path}/measured"), None)?.success()?,
            };
            eventually(LIMIT, "a policy to be enforced", || (self.is_answered() != is_denied).then_some(()))?;
            took.record(started.elapsed());
        }
        for (name, share) in [("median", 0.5), ("p99", 0.99), ("longest", 1.0)] {
            let value = took.quantile(share).as_secs_f64() * 1e3;
            report.memory(&format!("policy written to enforced, {name} of {CHANGES}"), "ms", value);
        }
        Ok(())
    }

    /// What an agent that has nothing to do asks the API server for, other than watches.
    fn idle(&self, agent: &Agent, report: &mut Report) -> Result<()> {
        let before = self.cluster.audit()?.len();
        let cpu = cpu_of(agent.pid());
        thread::sleep(IDLE);
        let requests = self.cluster.requests_of(USER, before)?;
        let others: Vec<_> = requests.iter().filter(|request| request.verb != "watch").collect();
        let seconds = IDLE.as_secs();
        report.memory(&format!("requests of an idle agent in {seconds} s, not watches"), "", others.len() as f64);
        let cpu = (cpu_of(agent.pid()) - cpu) / IDLE.as_secs_f64();
        report.memory("processor time of an idle agent", "ms/s", cpu * 1e3);
        ensure!(others.is_empty(), "an idle agent asks for more than watches: {others:?}");
        Ok(())
    }
}
