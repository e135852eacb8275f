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

/// What the nodes and pods looked like before Culvert came.
pub(super) struct Untouched(Vec<String>);

impl Untouched {
    pub(super) fn of(world: &World) -> Result<Self> {
        let mut seen = Vec::new();
        for node in &world.nodes {
            // Everything that an agent may write to on a node.
            let script = "find /etc/cni/net.d /opt/cni/bin -type f -exec sha256sum {} + | sort; find /sys/fs/bpf -type f | sort; \
                          find /run/culvert /var/lib/culvert -mindepth 1 2>/dev/null || true; ip rule; ip route show table all";
            seen.push(node.machine().output(LIMIT, "/bin/sh", &["-c", script])?.success()?);
        }
        for pod in ["client", "neighbour", "web"] {
            let script = "ip rule; ip route show table all; cat /proc/sys/net/ipv4/tcp_fwmark_accept";
            seen.push(world.shell(SHOP, pod, script)?.context("no shell")?);
            seen.push(world.pod(SHOP, pod)?["metadata"]["annotations"].to_string());
        }
        Ok(Self(seen))
    }

    /// That they look so again.
    pub(super) fn check(&self, world: &World) -> Result<()> {
        let mut now = Self::of(world)?;
        let same = eventually(LIMIT, "the nodes and pods to be as they were", || {
            now = Self::of(world).ok()?;
            (now.0 == self.0).then_some(())
        });
        for (before, after) in self.0.iter().zip(&now.0) {
            ensure!(before == after, "before Culvert came:\n{before}\nnow:\n{after}");
        }
        same
    }
}
