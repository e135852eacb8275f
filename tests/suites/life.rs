//! The whole life of an enrolled pod on this kernel; `cargo xtask kernels` proves the same on others.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

use std::process::Command;
use std::time::Duration;

use culvert_tests::{AgentConfig, Process, Topology, selftest};

#[test]
fn a_pod_is_enrolled_served_protected_and_let_go() {
    selftest::whole_life(|directory| AgentConfig::new(directory.path()), |fact| println!("{fact}")).unwrap();
}

/// Pins that end with the agent's container would leave its pods in clear while it is started again.
#[test]
fn an_agent_in_a_container_refuses_a_node_without_a_bpffs_and_names_the_cure() {
    let topology = Topology::new(1).unwrap();
    let node = topology.node(1);
    let config = topology.scope().directory().join("mesh");
    std::fs::create_dir_all(&config).unwrap();
    let binary = AgentConfig::new(&config).unwrap().binary;
    let mut command: Command = node.place().command("unshare").unwrap();
    let script = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; exec \"$@\"";
    command.args(["--mount", "/bin/sh", "-c", script, "sh"]).arg(binary);
    command.args(["node", "--node-name", "n1", "--pin-dir", "/sys/fs/bpf/in-a-container"]);
    command.arg("--config-dir").arg(&config).arg("--ca-dir").arg(config.with_extension("ca"));
    command.arg("--cgroup").arg(node.kubepods());
    // As the kubelet does; where the node's first process is out of sight, nothing else tells.
    command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let ended = Process::spawn("culvert node", command).unwrap().finish(Duration::from_secs(20)).unwrap();
    assert!(!ended.status.success());
    let said = ended.stdout + &ended.stderr;
    let line = said.lines().find(|line| line.contains("bpffs")).unwrap_or_else(|| panic!("{said}"));
    for part in ["--pin-dir /sys/fs/bpf/in-a-container", "the node has none", "mount -t bpf bpf /sys/fs/bpf", "fstab"] {
        assert!(line.contains(part), "{line}");
    }
}
