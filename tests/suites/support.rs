//! An agent in the test's process, with a proxy that says what it was handed; applications and clients in pods.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert::redirect::{Config, EnrolledPod, Listeners, PodNetns, PodSpec, Redirect};
use culvert_core::address::{ClientAddr, canonical};
use culvert_tests::{Node, Pod, Topology};

/// How long anything here may take.
pub const LIMIT: Duration = Duration::from_secs(3);

/// One test at a time: they share the process's cgroup, which an agent wants to itself.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An agent on a node. Dropped, it leaves nothing behind.
pub struct Agent {
    redirect: Option<Redirect>,
}

impl Agent {
    pub fn start(topology: &Topology, node: u8) -> Result<Self> {
        let config = config(topology, node)?;
        let redirect = topology.node(node).place().run(|| Redirect::load(config))??;
        Ok(Self { redirect: Some(redirect) })
    }

    pub fn redirect(&self) -> &Redirect {
        self.redirect.as_ref().unwrap()
    }

    /// Enrols `pod` and serves it for as long as the process lives.
    pub fn serve(&self, pod: &Pod) -> Result<Arc<PodNetns>> {
        let enrolled = self.enrol(pod)?;
        let netns = enrolled.netns.clone();
        serve(enrolled.listeners, &enrolled.netns);
        Ok(netns)
    }

    /// Enrols `pod`; it is served for as long as the result's listeners are.
    pub fn enrol(&self, pod: &Pod) -> Result<EnrolledPod> {
        Ok(self.redirect().prepare(&spec(pod))?.commit()?)
    }

    pub fn counter(&self, reason: &str) -> u64 {
        self.redirect().counters().iter().find(|counter| counter.reason == reason).unwrap().value
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(redirect) = self.redirect.take()
            && let Err(error) = redirect.uninstall()
        {
            eprintln!("{error}");
        }
    }
}

pub fn config(topology: &Topology, node: u8) -> Result<Config> {
    let pin_path = topology.scope().pin_directory(&format!("n{node}"))?;
    Ok(Config { cgroup: topology.node(node).kubepods().to_path_buf(), pin_path })
}

pub fn spec(pod: &Pod) -> PodSpec {
    PodSpec {
        uid: format!("uid-{}", pod.name()),
        netns: pod.netns().path().to_path_buf(),
        addresses: pod.addresses().to_vec(),
        bypass_inbound: false,
    }
}

/// Accepts on all three: outbound and HBONE connections are told what they are, plaintext goes to the application.
pub fn serve(listeners: Listeners, netns: &Arc<PodNetns>) {
    accept(listeners.outbound, |stream, local, peer| say(stream, &format!("outbound to {local} from {peer}")));
    accept(listeners.hbone, |stream, local, peer| say(stream, &format!("hbone to {local} from {peer}")));
    let netns = netns.clone();
    accept(listeners.plaintext, move |stream, local, peer| {
        let said = relay(&netns, local, peer).unwrap_or_else(|error| format!("no application: {error:#}"));
        say(stream, &format!("plaintext to {local} from {peer}, {said}"));
    });
}

/// What the application says to a leg that keeps the client's address.
fn relay(netns: &PodNetns, local: SocketAddr, peer: SocketAddr) -> Result<String> {
    let socket = netns.application_socket(ClientAddr::new(peer), local.ip()).context("socket")?;
    socket.set_nonblocking(false)?;
    socket.connect_timeout(&local.into(), LIMIT).context("connect")?;
    let mut stream = TcpStream::from(socket);
    anyhow::ensure!(stream.local_addr()?.port() != peer.port(), "the leg reuses the client's port");
    read(&mut stream).context("read")
}

fn accept(listener: TcpListener, handle: impl Fn(TcpStream, SocketAddr, SocketAddr) + Send + 'static) {
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            let local = canonical(stream.local_addr().unwrap());
            handle(stream, local, canonical(peer));
        }
    });
}

fn say(mut stream: TcpStream, what: &str) {
    let _ = stream.write_all(what.as_bytes());
}

/// An application in `pod` that tells each caller its address.
pub fn application(pod: &Pod, addr: impl Into<SocketAddr>) -> Result<SocketAddr> {
    let addr = addr.into();
    let listener = pod.run(|| TcpListener::bind(addr))??;
    let bound = listener.local_addr()?;
    let place = pod.place();
    place.spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(
                stream,
                "application to {} from {}",
                canonical(stream.local_addr().unwrap()),
                canonical(peer).ip()
            );
        }
    });
    Ok(bound)
}

pub fn read(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// What a client in `pod` hears, and its own address.
pub fn dial(pod: &Pod, to: SocketAddr) -> Result<(String, SocketAddr)> {
    pod.run(|| call(to))?
}

/// What a client on the node itself hears.
pub fn dial_from_node(node: &Node, to: SocketAddr) -> Result<(String, SocketAddr)> {
    node.place().run(|| call(to))?
}

pub fn call(to: SocketAddr) -> Result<(String, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connect to {to}"))?;
    anyhow::ensure!(stream.peer_addr()? == to, "getpeername() does not tell the truth");
    let local = stream.local_addr()?;
    Ok((read(&mut stream)?, local))
}

pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Whether a call ended in a refusal by the kernel.
pub fn refused<T>(result: &Result<T>) -> bool {
    let Err(error) = result else { return false };
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied))
}
