use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn pods_on_two_nodes_reach_each_other_with_their_own_addresses() {
    let mut topology = Topology::new(2).unwrap();
    topology.add_pod(1, "shop", "client").unwrap();
    topology.add_pod(2, "shop", "server").unwrap();
    let (client, server) = (topology.pod("client"), topology.pod("server"));
    for (from, to) in client.addresses().into_iter().zip(server.addresses()) {
        let listener = server.run(|| TcpListener::bind((to, 8080)).unwrap()).unwrap();
        let talk = server.place().spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer
        });
        let said = client.run(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 8080), LIMIT).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        });
        assert_eq!(said.unwrap(), "hello");
        assert_eq!(talk.join().unwrap().unwrap().ip(), from);
    }
}

#[test]
fn a_node_reaches_the_pods_of_every_node() {
    let mut topology = Topology::new(3).unwrap();
    topology.add_pod(3, "shop", "server").unwrap();
    for address in topology.pod("server").addresses() {
        let listener = topology.pod("server").run(|| TcpListener::bind((address, 80)).unwrap()).unwrap();
        for node in topology.nodes() {
            let to = listener.local_addr().unwrap();
            node.place().run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap().unwrap();
        }
    }
}

#[test]
fn threads_and_commands_run_in_the_cgroup_of_their_pod() {
    let mut topology = Topology::new(1).unwrap();
    topology.add_pod(1, "shop", "client").unwrap();
    let client = topology.pod("client");
    let of_thread = client.run(|| fs::read_to_string("/proc/thread-self/cgroup").unwrap()).unwrap();
    assert!(of_thread.contains("/n1/kubepods/client"), "{of_thread}");
    let of_command = client.output(LIMIT, "cat", &["/proc/self/cgroup"]).unwrap().success().unwrap();
    assert!(of_command.contains("/n1/kubepods/client"), "{of_command}");
    let of_node = topology.node(1).place().output(LIMIT, "cat", &["/proc/self/cgroup"]).unwrap().success().unwrap();
    assert!(!of_node.contains("kubepods"), "{of_node}");
}

#[test]
fn nothing_is_left_of_a_dropped_topology() {
    let mut topology = Topology::new(1).unwrap();
    topology.add_pod(1, "shop", "client").unwrap();
    let client = topology.pod("client");
    let mut command = client.place().command("sleep").unwrap();
    let mut abandoned = command.arg("60").spawn().unwrap();
    let (netns, cgroup) = (client.netns().path().to_path_buf(), client.cgroup().to_path_buf());
    let directory = topology.scope().directory().to_path_buf();
    assert!(netns.exists() && cgroup.exists() && directory.exists());
    drop(topology);
    assert!(!abandoned.wait().unwrap().success());
    assert!(!netns.exists() && !directory.exists());
    // Its cgroup waits for the reaped process; the last scope of the process takes it.
    cgroup_is_empty(&cgroup);
}

fn cgroup_is_empty(cgroup: &Path) {
    let threads = fs::read_to_string(cgroup.join("cgroup.threads")).unwrap_or_default();
    assert_eq!(threads, "");
}
