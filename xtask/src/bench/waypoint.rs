//! What a waypoint costs, beside Envoy doing the same: HBONE in, plain HTTP/1.1 out to one nginx.
//!
//! The load speaks HBONE itself, so that nothing but load, proxy and server share the cores. Each proxy has one worker.
//! In every round each measurement is taken of all proxies one right after the other.

mod envoy;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::{AgentConfig, ConfigDir, Nginx, Process, Topology, Waypoint, eventually, objects};
use serde::Serialize;
use serde_json::Value;

use super::contender::{HTTP, cpu_of, release};
use super::report::median;

const READY: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(30);
/// The service that is called.
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 80));
const PORT: u16 = 80;
/// The port of Envoy, in the same pod.
const ENVOY: u16 = 15088;
const HBONE: u16 = 15008;
const IDENTITY: &str = "spiffe://cluster.local/ns/bench/sa/waypoint";
/// How many connections there are.
const CONNECTIONS: u32 = 32;
/// Connections of HTTP/2, each with eight requests under way.
const CONNECTIONS_OF_HTTP2: u32 = 4;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    Http1,
    Http2,
    New,
}

/// What the proxies have to decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Routes {
    /// Everything goes to the service itself.
    Plain,
    /// A hundred prefixes, of which the last is taken.
    Hundred,
    /// Two destinations by weight, and a header set on the way.
    Weights,
}

/// What one measurement found.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Processor time of the proxy, µs a request.
    cpu_us: f64,
    /// Resident memory of the proxy afterwards, MB.
    rss_mb: f64,
}

impl Load {
    const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::New];

    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 32 connections",
            Self::Http2 => "HTTP/2 to HTTP/1.1, 4 connections with 8 streams",
            Self::New => "new connections, 32 at a time",
        }
    }

    fn arguments(self) -> (&'static str, u32) {
        match self {
            Self::Http1 => ("http1", CONNECTIONS),
            Self::Http2 => ("http2", CONNECTIONS_OF_HTTP2),
            Self::New => ("new", CONNECTIONS),
        }
    }
}

impl Routes {
    const ALL: [Self; 3] = [Self::Plain, Self::Hundred, Self::Weights];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "no routes",
            Self::Hundred => "100 routes",
            Self::Weights => "weights and headers",
        }
    }

    /// As a VirtualService.
    fn document(self) -> Option<String> {
        let rules: String = match self {
            Self::Plain => return None,
            Self::Hundred => {
                let route = "route: [{destination: {host: web}}]";
                let other = |at| format!("  - {{match: [{{uri: {{prefix: /service-{at}/}}}}], {route}}}\n");
                (1..100).map(other).chain([format!("  - {{{route}}}\n")]).collect()
            }
            Self::Weights => {
                "  - route:\n    - {destination: {host: web}, weight: 90}\n    - {destination: {host: web}, \
                              weight: 10, headers: {request: {set: {x-canary: 'yes'}}}}\n"
                    .to_owned()
            }
        };
        Some(format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: bench}}\nspec:\n  \
             hosts: [web]\n  http:\n{rules}"
        ))
    }
}

/// A proxy, its process, and where it takes tunnels.
struct Proxy {
    name: &'static str,
    pid: u32,
    address: SocketAddr,
}

/// Everything that runs. Fields are dropped in this order.
struct World {
    culvert: Waypoint,
    envoy: Process,
    _nginx: Nginx,
    _config: ConfigDir,
    ca: PathBuf,
    topology: Topology,
}

impl World {
    fn start(routes: Routes) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        topology.add_pod(1, "bench", "client")?;
        topology.add_pod(2, "bench", "waypoint")?;
        topology.add_pod(2, "bench", "web")?;
        let nginx = Nginx::start(topology.scope(), topology.pod("web"), HTTP, "text")?;
        let config = configuration(&topology, routes)?;
        let mut mesh = AgentConfig::with_binary(release("culvert"), config.path());
        mesh.log_directory = Some(topology.scope().directory().to_path_buf());
        let mut culvert =
            Waypoint::start(topology.pod("waypoint"), &mesh, &["--workers", "1", "--access-log", "false"])?;
        culvert.wait_ready(READY)?;
        let leaf = topology.scope().directory().join("envoy");
        let issue = ["issue", &mesh.ca.to_string_lossy(), IDENTITY, &leaf.to_string_lossy()].map(str::to_owned);
        let issued =
            topology.pod("waypoint").output(LIMIT, &load_generator(), &issue.each_ref().map(String::as_str))?;
        issued.success()?;
        let server = SocketAddr::new(topology.pod("web").ipv4(), HTTP);
        let envoy = envoy::start(topology.scope(), topology.pod("waypoint"), ENVOY, server, &leaf, routes)?;
        Ok(Self { culvert, envoy, _nginx: nginx, _config: config, ca: mesh.ca, topology })
    }

    fn proxies(&self) -> [Proxy; 2] {
        let at = |port| SocketAddr::new(self.topology.pod("waypoint").ipv4(), port);
        [
            Proxy { name: "envoy", pid: self.envoy.pid(), address: at(ENVOY) },
            Proxy { name: "culvert", pid: self.culvert.pid(), address: at(HBONE) },
        ]
    }

    fn measure(&self, proxy: &Proxy, load: Load, seconds: f64) -> Result<Sample> {
        let (mode, connections) = load.arguments();
        let arguments = [
            "load",
            &self.ca.to_string_lossy(),
            &proxy.address.to_string(),
            IDENTITY,
            &SocketAddr::new(VIP, PORT).to_string(),
            mode,
            &connections.to_string(),
            &seconds.to_string(),
        ]
        .map(str::to_owned);
        let limit = Duration::from_secs_f64(seconds) + LIMIT;
        let before = cpu_of(proxy.pid);
        let client = self.topology.pod("client");
        let printed = client.output(limit, &load_generator(), &arguments.each_ref().map(String::as_str))?.success()?;
        let used = cpu_of(proxy.pid) - before;
        let report: Value = serde_json::from_str(&printed).context("the load generator's report")?;
        ensure!(report["failed"] == 0, "requests failed: {report}");
        let number = |name: &str| report[name].as_f64().with_context(|| format!("no {name} in {report}"));
        Ok(Sample {
            per_second: number("per_second")?,
            p50_us: number("p50_us")?,
            p99_us: number("p99_us")?,
            cpu_us: used / number("requests")? * 1e6,
            rss_mb: rss(proxy.pid)?,
        })
    }
}

/// All measurements, by what was asked of whom.
type Samples = BTreeMap<(Routes, Load, &'static str), Vec<Sample>>;

pub(super) fn measure(rounds: u32, seconds: u32, matching: &str, output: &Path) -> Result<()> {
    let mut samples = Samples::new();
    for routes in Routes::ALL.into_iter().filter(|routes| routes.name().contains(matching)) {
        let world = World::start(routes)?;
        let mut proxies = world.proxies();
        for proxy in &proxies {
            let idle = rss(proxy.pid)?;
            let warm = || world.measure(proxy, Load::Http1, 0.3).ok();
            eventually(READY, "the first answer", warm).with_context(|| {
                let logs = (world.culvert.log(), world.envoy.output());
                format!("nothing gets through {}: {logs:?}", proxy.name)
            })?;
            println!("{}, {}: {idle:.1} MB idle", routes.name(), proxy.name);
        }
        for round in 0..rounds {
            eprintln!("bench: {}, round {} of {rounds}", routes.name(), round + 1);
            for load in Load::ALL {
                for proxy in &proxies {
                    let sample = world.measure(proxy, load, seconds.into());
                    let sample = sample.with_context(|| format!("{}, {}", proxy.name, load.name()))?;
                    samples.entry((routes, load, proxy.name)).or_default().push(sample);
                }
            }
            // Who goes first changes with the round.
            proxies.reverse();
        }
    }
    print(&samples);
    write(&samples, output)
}

fn print(samples: &Samples) {
    for ((routes, load, name), own) in samples {
        if *name == "culvert" {
            println!("\n{}, {}", load.name(), routes.name());
        }
        let mid = |value: fn(&Sample) -> f64| median(own.iter().map(value));
        let peer = samples.get(&(*routes, *load, "envoy")).filter(|_| *name != "envoy");
        let ratio = |value: fn(&Sample) -> f64| {
            let ratio = |peer: &Vec<Sample>| median(own.iter().zip(peer).map(|(own, peer)| value(own) / value(peer)));
            peer.map_or(String::new(), |peer| format!(" ×{:.2}", ratio(peer)))
        };
        println!(
            "  {name:<8} {:>9.0} requests/s{}  p50 {:.0} µs, p99 {:.0} µs{}  {:.1} µs of processor{}  {:.1} MB",
            mid(|s| s.per_second),
            ratio(|s| s.per_second),
            mid(|s| s.p50_us),
            mid(|s| s.p99_us),
            ratio(|s| s.p99_us),
            mid(|s| s.cpu_us),
            ratio(|s| s.cpu_us),
            mid(|s| s.rss_mb),
        );
    }
}

fn write(samples: &Samples, path: &Path) -> Result<()> {
    let list = samples.iter().map(|((routes, load, name), samples)| {
        serde_json::json!({"routes": routes.name(), "load": load.name(), "proxy": name, "samples": samples})
    });
    let report = serde_json::json!({ "waypoint": list.collect::<Vec<_>>() });
    fs::write(path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nAll of it: {}", path.display());
    Ok(())
}

/// A namespace whose one service goes through the waypoint; its server is outside the mesh, and spoken to plainly.
fn configuration(topology: &Topology, routes: Routes) -> Result<ConfigDir> {
    let config = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
    config.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
    let outside = [("app", "web"), ("istio.io/dataplane-mode", "none")];
    let waypoint = [("gateway.networking.k8s.io/gateway-name", "waypoint"), ("app", "waypoint")];
    config.write(
        "pods",
        &[
            objects::pod(topology.pod("client"), "client"),
            objects::labelled_pod(topology.pod("waypoint"), "waypoint", &waypoint),
            objects::labelled_pod(topology.pod("web"), "web", &outside),
        ],
    )?;
    let mut documents = vec![
        objects::namespace("bench", true),
        objects::service("bench", "waypoint", &[[10, 96, 0, 15].into()], "waypoint", &[("mesh", HBONE, HBONE)]),
        objects::service("bench", "web", &[VIP], "web", &[("http", PORT, HTTP)])
            .replace("  name: web\n", "  name: web\n  labels: {istio.io/use-waypoint: waypoint}\n"),
        GATEWAY.to_owned(),
    ];
    documents.extend(routes.document());
    config.write("services", &documents)?;
    Ok(config)
}

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: bench}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status:
  addresses: [{type: IPAddress, value: 10.96.0.15}]
";

fn load_generator() -> String {
    release("examples").join("hbone-load").to_string_lossy().into_owned()
}

fn rss(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kilobytes / 1000.0)
}
