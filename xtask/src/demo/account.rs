//! What the demo prints, and the checks behind it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::capture::Captured;
use culvert_tests::{Finished, eventually};
use serde_json::Value;

use super::mesh::{Mesh, SECRET};

const LIMIT: Duration = Duration::from_secs(10);
const HBONE: u16 = 15008;

/// What must come of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Answer,
    Refusal,
}

/// One call, and what came of it.
pub(super) struct Call {
    from: String,
    to: SocketAddr,
    outcome: Finished,
    /// The access log of the server's node, as far as this call wrote it.
    log: Option<String>,
}

impl Call {
    /// Two requests by curl in a pod: the address the server saw, and the text of its order book.
    pub(super) fn make(mesh: &Mesh, from: &str, to: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(to, port);
        let pod = mesh.topology.pod(from);
        let logged = mesh.agents[1].log().len();
        let (root, text) = (format!("http://{to}/"), format!("http://{to}/text"));
        let secret = format!("X-Order: {SECRET}");
        let mut arguments = vec!["--silent", "--show-error", "--max-time", "10"];
        // The pod outside the mesh speaks in clear: it is not told the secret.
        if pod.namespace() == "shop" {
            arguments.extend(["--header", &secret, &root, &text]);
        } else {
            arguments.push(&root);
        }
        let outcome = pod.output(LIMIT, "curl", &arguments)?;
        let log = eventually(Duration::from_secs(2), "the access log", || {
            let log = mesh.agents[1].log();
            let line = log.get(logged..)?.lines().rfind(|line| line.contains("inbound") && line.contains("src.addr"));
            line.map(str::to_owned)
        });
        Ok(Self { from: format!("{}/{from}", pod.namespace()), to, outcome, log: log.ok() })
    }

    /// Prints the call and fails where it did not end as it must.
    pub(super) fn report(&self, mesh: &Mesh, expected: Expected) -> Result<()> {
        let answered = self.outcome.status.success();
        let what = if answered {
            self.outcome.stdout.lines().next().unwrap_or_default().to_owned()
        } else {
            let reason = self.outcome.stderr.lines().last().unwrap_or_default();
            format!("refused ({})", reason.trim())
        };
        println!("\n  {} -> {}: {what}", self.from, self.to);
        self.print_identities();
        self.print_forecast(mesh, answered)?;

        ensure!(
            answered == (expected == Expected::Answer),
            "this call must end in an {expected:?}; {}",
            self.outcome.stderr
        );
        if answered {
            let name = self.from.rsplit('/').next().unwrap_or_default();
            let pod = mesh.topology.pod(name);
            let address = if self.to.is_ipv4() { pod.ipv4() } else { pod.ipv6() };
            ensure!(
                what.ends_with(&format!("saw {address}")),
                "the server must see the client's own address {address}"
            );
            ensure!(self.outcome.stdout.contains(SECRET), "the second answer is missing");
        }
        Ok(())
    }

    fn print_identities(&self) {
        let Some(line) = &self.log else { return };
        let unknown = || "nobody the mesh knows".to_owned();
        let client = field(line, "src.identity").unwrap_or_else(unknown);
        let server = field(line, "dst.identity").unwrap_or_else(unknown);
        println!("      identities  {client} -> {server}");
        if let Some(error) = field(line, "error") {
            println!("      access log  {error}");
        }
    }

    /// What `culvertctl simulate` says beforehand must be what happened.
    fn print_forecast(&self, mesh: &Mesh, answered: bool) -> Result<()> {
        let name = self.from.rsplit('/').next().unwrap_or_default();
        let forecast = mesh.foretell(name, &self.to.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let outcome = text(&forecast["outcome"]);
        let enforced = |check: &&Value| check["dry_run"] != true;
        let check = forecast["checks"].as_array().and_then(|checks| checks.iter().rfind(enforced));
        let reason = check.map(|check| text(&check["reason"])).unwrap_or_default();
        println!("      simulate    {outcome} over {}: {reason}", text(&forecast["transport"]));
        ensure!((outcome == "allowed") == answered, "culvertctl simulate and the data path disagree: {forecast}");
        Ok(())
    }
}

pub(super) fn pods(mesh: &Mesh) {
    for pod in mesh.topology.pods() {
        let (namespace, name) = (pod.namespace(), pod.name());
        let member = if namespace == "shop" { "in the mesh" } else { "outside" };
        let name = format!("{namespace}/{name}");
        println!("  {}  {name:<15} {:<10} {:<12} {member}", pod.node(), pod.ipv4(), pod.ipv6());
    }
}

/// What the capture between the nodes holds: TLS, and nothing of what was said.
pub(super) fn wire(captured: &Captured) -> Result<()> {
    let (all, hbone) = (captured.bytes(), captured.bytes_of_port(HBONE));
    println!("\nThe wire between the nodes, by tcpdump:");
    println!("  {all} bytes in {} segments, {hbone} of them to or from port {HBONE}", captured.segments.len());
    ensure!(hbone > 0 && hbone == all, "bytes crossed the wire outside the tunnel");
    ensure!(captured.is_tls(HBONE), "the tunnel does not begin with a TLS handshake");
    ensure!(!captured.holds(SECRET.as_bytes()), "the payload is on the wire");
    ensure!(!captured.holds(b"HTTP/1.1"), "the calls are on the wire in clear");
    println!("  every connection begins with a TLS handshake; of the payload there is not one byte");
    Ok(())
}

/// The access log and the metrics of the calls.
pub(super) fn telemetry(mesh: &Mesh) -> Result<()> {
    println!("\nThe access log of n2, an allowed call and a denied one:");
    let log = mesh.agents[1].log();
    let inbound = |line: &&str| line.contains("inbound") && line.contains("src.addr");
    for level in ["\tinfo\t", "\terror\t"] {
        let line = log.lines().filter(inbound).find(|line| line.contains(level));
        println!("  {}", line.unwrap_or_default());
    }
    println!("\nMetrics:");
    for (agent, node, reporter) in [(&mesh.agents[0], "n1", "source"), (&mesh.agents[1], "n2", "destination")] {
        for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            for flags in ["-", "DENY"] {
                let labels = [("reporter", reporter), ("response_flags", flags), ("destination_workload", "orders")];
                let value = agent.metric(name, &labels)?;
                if value > 0.0 {
                    println!("  {node}  {name}{{reporter=\"{reporter}\",response_flags=\"{flags}\",…}} {value}");
                }
            }
        }
    }
    let opened = mesh.agents[1].metric("istio_tcp_connections_opened_total", &[("reporter", "destination")])?;
    ensure!(opened >= 3.0, "three calls were answered, but {opened} connections were counted");
    Ok(())
}

/// The line that tells why the open connection was closed.
pub(super) fn closing_line(mesh: &Mesh) -> Result<()> {
    let line = eventually(LIMIT, "the access log of the closed connection", || {
        let log = mesh.agents[1].log();
        let line = log.lines().rfind(|line| line.contains("inbound") && field(line, "error").is_some());
        line.map(str::to_owned)
    })?;
    println!("      access log  {}", field(&line, "error").unwrap_or_default());
    Ok(())
}

/// How to look around in what is still up.
pub(super) fn look_around(mesh: &Mesh) {
    let prefix = mesh.topology.scope().prefix();
    let [vip4, _] = mesh.service;
    let ctl = "target/debug/culvertctl";
    println!("\nEverything is still up; Ctrl-C takes it down. To look around, from another terminal:");
    println!("  ls {}        # the objects: edit one and see", mesh.config.path().display());
    for node in mesh.topology.nodes() {
        let netns = node.netns().name();
        println!("  ip netns exec {netns} {ctl} redirection        # how the pods of {} are enrolled", node.name());
        println!("  ip netns exec {netns} curl -s localhost:15020/metrics");
    }
    println!("  {ctl} simulate --config-dir {} --from shop/batch --to {vip4}:80", mesh.config.path().display());
    for pod in mesh.topology.pods() {
        let (cgroup, netns) = (pod.cgroup().display(), pod.netns().name());
        println!(
            "  sh -c 'echo 0 > {cgroup}/cgroup.procs; exec ip netns exec {netns} curl {vip4}'        # as {}/{}",
            pod.namespace(),
            pod.name()
        );
    }
    println!("All names begin with {prefix}.");
}

/// A field of an access log line, `name=value` or `name="value"`.
fn field(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!(" {name}="))?.1;
    let value = match rest.strip_prefix('"') {
        Some(quoted) => {
            let mut end = 0;
            let bytes = quoted.as_bytes();
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            quoted.get(..end)?.replace("\\\"", "\"")
        }
        None => rest.split(' ').next()?.to_owned(),
    };
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_access_log_are_found_quoted_or_not() {
        let line = r#"info access: connection complete src.addr=10.1.1.1:5 src.identity="spiffe://a/b" error="denied by \"x\"""#;
        assert_eq!(field(line, "src.addr").as_deref(), Some("10.1.1.1:5"));
        assert_eq!(field(line, "src.identity").as_deref(), Some("spiffe://a/b"));
        assert_eq!(field(line, "error").as_deref(), Some("denied by \"x\""));
        assert_eq!(field(line, "dst.identity"), None);
    }
}
