//! The agents replaced as a DaemonSet with `maxSurge: 1` does it: on each node the new one is ready before the old one is
//! told to stop.
//!
//! Kubernetes has that since 1.22. Where the API server is older, the same is done by hand: a pod of the DaemonSet's
//! template beside the agent, and the agent deleted once that is ready; and, since the DaemonSet then puts an agent
//! beside that pod, once more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::eventually;
use serde_json::{Value, json};

use super::facts::encrypted;
use super::install::{NAMESPACE, ready};
use super::world::{LIMIT, OUTSIDE, PORT, SECRET, SHOP, World, agent_on, fetch, is_ready, must};

const ROLLED: &str = "culvert.dev/rolled";
/// How long an agent that was told to stop still carries an open connection here; it would for 25 s.
const CARRIED: Duration = Duration::from_secs(3);

pub(super) fn upgraded(world: &mut World) -> Result<()> {
    let web = world.address(SHOP, "web")?;
    let client = world.address(SHOP, "client")?;
    let wire = world.capture_wire()?;
    // Tunnels both ways, and plaintext from outside.
    let streams = [(SHOP, "client", world.service), (SHOP, "web", client), (OUTSIDE, "legacy", client)];
    let streams = streams.map(|(namespace, name, to)| Stream::start(world, namespace, name, to));
    let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
    let set = world.cluster.get(&daemonset())?.success()?;
    let surges = set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 1;
    let handovers = if surges { rolled(world, web)? } else { by_hand(world, &set, web)? };
    let counts = streams.iter().map(|stream| stream.stop(world)).collect::<Result<Vec<_>>>()?;
    ensure!(counts.iter().all(|count| *count > 20), "too few connections for a proof: {counts:?}");
    println!("        {handovers} agents replaced, {} new connections meanwhile", counts.iter().sum::<u64>());
    encrypted(wire)?;
    ready(world)
}

/// As the DaemonSet does it; the connections are open for the first node's agents.
fn rolled(world: &World, web: std::net::SocketAddr) -> Result<usize> {
    let before = [agent_on(world, "n1")?, agent_on(world, "n2")?];
    let open = Open::start(world, web)?;
    let patch = json!({ "spec": { "template": { "metadata": { "annotations": { ROLLED: "1" } } } } }).to_string();
    world.cluster.kubectl(&["patch", "daemonset", "culvert-node", "--namespace", NAMESPACE, "--patch", &patch])?;
    eventually(LIMIT, "an agent to be told to stop", || {
        before.iter().any(|name| world.pod(NAMESPACE, name).is_ok_and(|pod| is_stopping(&pod))).then_some(())
    })?;
    open.finish(world)?;
    eventually(LIMIT, "new agents on both nodes", || {
        before.iter().all(|name| world.pod(NAMESPACE, name).is_err()).then_some(())
    })?;
    Ok(2)
}

fn by_hand(world: &World, set: &Value, web: std::net::SocketAddr) -> Result<usize> {
    let account =
        world.cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/culvert-node"))?.success()?;
    for node in ["n1", "n2"] {
        let old = agent_on(world, node)?;
        let name = format!("culvert-node-surge-{node}");
        let template = &set["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"],
            "spec": template["spec"],
        });
        pod["metadata"]["name"] = json!(name);
        // Somebody else's: the DaemonSet would adopt it, and remove one of two.
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ServiceAccount", "name": "culvert-node", "controller": true,
            "uid": account["metadata"]["uid"],
        }]);
        pod["spec"]["nodeName"] = json!(node);
        let open = Open::start(world, web)?;
        world.cluster.request("POST", &format!("/api/v1/namespaces/{NAMESPACE}/pods"), Some(&pod))?.success()?;
        await_ready(world, &name)?;
        stop(world, &old)?;
        open.finish(world)?;
        let open = Open::start(world, web)?;
        let new = eventually(LIMIT, "the DaemonSet's next agent to be ready", || {
            let agents = world.pods_of(NAMESPACE, "culvert-node").ok()?;
            let is_new = |pod: &&Value| {
                pod["spec"]["nodeName"] == node && is_ready(pod) && pod["metadata"]["name"] != json!(name)
            };
            let found = agents.iter().find(is_new)?;
            found["metadata"]["name"].as_str().map(str::to_owned)
        })?;
        ensure!(new != old, "the agent was not replaced");
        stop(world, &name)?;
        open.finish(world)?;
        eventually(LIMIT, "the agent before to be gone", || world.pod(NAMESPACE, &name).is_err().then_some(()))?;
    }
    Ok(4)
}

fn stop(world: &World, agent: &str) -> Result<()> {
    world.cluster.kubectl(&["delete", "pod", agent, "--namespace", NAMESPACE, "--wait=false"]).map(drop)
}

fn await_ready(world: &World, agent: &str) -> Result<()> {
    eventually(LIMIT, &format!("{agent} to be ready"), || is_ready(&world.pod(NAMESPACE, agent).ok()?).then_some(()))
}

fn is_stopping(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

fn daemonset() -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/culvert-node")
}

/// Connections of a pod, one after the other.
struct Stream {
    namespace: &'static str,
    name: &'static str,
    log: String,
}

impl Stream {
    fn start(world: &World, namespace: &'static str, name: &'static str, to: std::net::SocketAddr) -> Result<Self> {
        let log = format!("/tmp/stream-{}-{}", to.ip(), to.port());
        let script = format!(
            "(n=0; while [ ! -e {log}.stop ]; do n=$((n+1)); r=$({} 2>&1); \
             case \"$r\" in *{SECRET}*) ;; *) echo \"lost $n of $(date +%T): $r\" ;; esac; usleep 20000; done; \
             echo total $n) >{log} 2>&1 </dev/null &",
            fetch(to)
        );
        world.shell(namespace, name, &script)?.context("no shell")?;
        Ok(Self { namespace, name, log })
    }

    /// How many there were: all of them answered.
    fn stop(&self, world: &World) -> Result<u64> {
        let Self { namespace, name, log } = self;
        world.shell(namespace, name, &format!("touch {log}.stop"))?;
        let said = eventually(LIMIT, "a stream of connections to end", || {
            world.shell(namespace, name, &format!("cat {log}")).ok()?.filter(|said| said.contains("total"))
        })?;
        ensure!(!said.contains("lost"), "connections of {namespace}/{name} were dropped: {said}");
        Ok(said.trim().trim_start_matches("total ").parse()?)
    }
}

/// Connections that are open and in the middle of a request, which they end only when they are told to: with a header
/// now and then, since the server waits for none longer than a minute.
struct Open;

impl Open {
    const CALLERS: [(&str, &str); 2] = [(SHOP, "client"), (OUTSIDE, "legacy")];

    fn start(world: &World, web: std::net::SocketAddr) -> Result<Self> {
        let to = [web, world.address(SHOP, "client")?];
        for ((namespace, name), to) in Self::CALLERS.into_iter().zip(to) {
            let script = format!(
                "rm -f /tmp/ask /tmp/open; ((printf 'GET / HTTP/1.0\\r\\n'; \
                 while [ ! -e /tmp/ask ]; do printf 'X: y\\r\\n'; usleep 500000; done; printf '\\r\\n') \
                 | nc -w 300 {} {PORT} >/tmp/open 2>&1; echo done >>/tmp/open) >/dev/null 2>&1 </dev/null &",
                to.ip()
            );
            world.shell(namespace, name, &script)?.context("no shell")?;
        }
        // It is no earlier than this that they are known to be open.
        for (namespace, name) in Self::CALLERS {
            eventually(LIMIT, "a connection to be open", || {
                let seen = world.shell(namespace, name, "netstat -tn").ok()??;
                seen.lines()
                    .any(|line| line.contains(&format!(":{PORT} ")) && line.contains("ESTABLISHED"))
                    .then_some(())
            })?;
        }
        Ok(Self)
    }

    /// They are answered a while after their agent was told to stop.
    fn finish(self, world: &World) -> Result<()> {
        std::thread::sleep(CARRIED);
        for (namespace, name) in Self::CALLERS {
            world.shell(namespace, name, "touch /tmp/ask")?;
        }
        for (namespace, name) in Self::CALLERS {
            let said = eventually(LIMIT, "an open connection to be answered", || {
                world.shell(namespace, name, "cat /tmp/open").ok()?.filter(|said| said.contains("done"))
            })?;
            must(said.contains(SECRET), &format!("the open connection of {namespace}/{name} was dropped: {said}"))?;
        }
        Ok(())
    }
}
