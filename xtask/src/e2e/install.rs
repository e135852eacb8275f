//! Culvert's image on the nodes, and its objects in the cluster.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use culvert_tests::eventually;
use culvert_tests::kube::Image;

use super::world::{LIMIT, SHOP, World, is_ready};
use crate::image::Built;
use crate::run::{run_quietly, target};

/// Where Culvert is installed.
pub(super) const NAMESPACE: &str = "culvert-system";

/// An image of programs that are linked with this machine's C library, which the nodes have as well.
pub(super) fn image_of(programs: &Path) -> Result<Built> {
    let directory = target().join("e2e-image");
    let _ = fs::remove_dir_all(&directory);
    let image = Image::create(&directory)?;
    for program in ["culvert", "culvertctl"] {
        image.add_program(&programs.join(program), &format!("usr/bin/{program}"))?;
    }
    let name = concat!("localhost/culvert:", env!("CARGO_PKG_VERSION"));
    Ok(Built { archive: image.archive(name, &["/usr/bin/culvert"])?, programs: programs.to_path_buf() })
}

/// Imports the image into every node and installs the chart, as `culvertctl install` does.
pub(super) fn install(world: &World) -> Result<()> {
    world.nodes.iter().try_for_each(|node| node.import(&world.built.archive))?;
    run_quietly(culvertctl(world, "install").args(["--set", "image.pullPolicy=Never"]).args([
        "--set",
        // The nodes' kubelets use the driver cgroupfs, and their cgroup2 may be beside version 1.
        &format!("node.cgroup={}/kubepods", culvert_tests::cgroup::mount_point()?.display()),
    ]))?;
    ready(world)
}

/// Waits until an agent on each node, and the controller, are ready.
pub(super) fn ready(world: &World) -> Result<()> {
    for (app, count) in [("culvert-controller", 1), ("culvert-node", world.nodes.len())] {
        eventually(LIMIT, &format!("{app} to be ready"), || {
            let pods = world.pods_of(NAMESPACE, app).ok()?;
            (pods.iter().filter(|pod| is_ready(pod)).count() >= count).then_some(())
        })?;
    }
    Ok(())
}

/// `culvertctl uninstall`.
pub(super) fn uninstall(world: &World) -> Result<()> {
    run_quietly(&mut culvertctl(world, "uninstall")).map(drop)
}

fn culvertctl(world: &World, command: &str) -> Command {
    let mut culvertctl = Command::new(world.built.programs.join("culvertctl"));
    culvertctl.arg(command).env("KUBECONFIG", world.cluster.kubeconfig());
    culvertctl
}

/// What the nodes, the pods and the cluster looked like before Culvert came.
pub(super) struct Untouched {
    pods: Vec<String>,
    nodes: Vec<String>,
    objects: String,
}

/// Everything that an agent may write to on a node; but not what the kernel and the harness keep there for pods that come
/// and go: routes over their interfaces, and Services' addresses.
const ON_A_NODE: &str = r"
find /etc/cni/net.d /opt/cni/bin -type f -exec sha256sum {} + | sort
find /sys/fs/bpf -type f | sort; find /run/culvert /var/lib/culvert -mindepth 1 2>/dev/null | sort
find /sys/fs/cgroup -maxdepth 2 -name 'culvert*'
ls -A /run/netns | grep -v ^cni- || true
for family in -4 -6; do ip $family rule; ip $family route show table all | grep -v -e ' dev veth' -e ' dev lo ' || true; done
";

/// What it may change in a pod; not the addresses, which are others when the pod has come back.
const IN_A_POD: &str = "\
for family in -4 -6; do ip $family rule; ip $family route show table all | grep -v ' dev eth0'; done
cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv6/fwmark_reflect";

/// The kinds that the chart has objects of, and what its programs make.
const KINDS: &str = "namespaces,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,configmaps,secrets,leases,\
                     services,deployments,daemonsets,poddisruptionbudgets,networkpolicies,resourcequotas,priorityclasses";

impl Untouched {
    pub(super) fn of(world: &World) -> Result<Self> {
        let nodes =
            world.nodes.iter().map(|node| node.machine().output(LIMIT, "/bin/sh", &["-c", ON_A_NODE])?.success());
        let columns = "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
        let listed = world.cluster.kubectl(&["get", KINDS, "--all-namespaces", "--no-headers", "-o", columns])?;
        let mut objects: Vec<_> =
            listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        objects.sort();
        Ok(Self { pods: pods(world)?, nodes: nodes.collect::<Result<_>>()?, objects: objects.join("\n") })
    }

    /// That the pods look so again, while Culvert is still there.
    pub(super) fn check_pods(&self, world: &World) -> Result<()> {
        same(|| pods(world), &self.pods)
    }

    /// That everything looks so again.
    pub(super) fn check(&self, world: &World) -> Result<()> {
        let all = |seen: Self| [seen.pods, seen.nodes, vec![seen.objects]].concat();
        let before = [self.pods.clone(), self.nodes.clone(), vec![self.objects.clone()]].concat();
        same(|| Self::of(world).map(all), &before)?;
        // Pods that came while Culvert was there look like those that came before it.
        for name in ["eager", "waiting"] {
            let rules = |name| world.shell(SHOP, name, "ip -4 rule; ip -6 rule")?.context("no shell");
            ensure!(rules(name)? == rules("client")?, "{name} still has rules of Culvert's: {}", rules(name)?);
        }
        Ok(())
    }
}

fn pods(world: &World) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for pod in ["client", "neighbour", "web"] {
        seen.push(world.shell(SHOP, pod, IN_A_POD)?.context("no shell")?);
        seen.push(world.pod(SHOP, pod)?["metadata"]["annotations"].to_string());
    }
    Ok(seen)
}

/// Waits until it is what it was before, or says line by line what is not.
fn same(look: impl Fn() -> Result<Vec<String>>, before: &[String]) -> Result<()> {
    let mut now = Vec::new();
    let waited = eventually(LIMIT, "everything to be as it was", || {
        now = look().ok()?;
        (now == before).then_some(())
    });
    let lines = |all: &[String]| all.iter().flat_map(|text| text.lines().map(str::to_owned)).collect::<Vec<_>>();
    let (was, is) = (lines(before), lines(&now));
    let gone: Vec<_> = was.iter().filter(|line| !is.contains(line)).collect();
    let new: Vec<_> = is.iter().filter(|line| !was.contains(line)).collect();
    waited.with_context(|| format!("left behind: {new:#?}\ngone: {gone:#?}"))
}
