//! What can go wrong, each with what to check next.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use culvert_core::enrolment::Step;

/// Why the programs cannot be put to work on this machine.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not root.
    #[error("loading eBPF programs needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN: {0}")]
    Privilege(String),
    /// The kernel is too old or built without something.
    #[error(
        "Linux {kernel} cannot load `{program}`: it needs {feature}, there since Linux {since}; run the node on such a \
         kernel, or leave it out of the mesh ({reason})"
    )]
    Kernel {
        /// This kernel's release.
        kernel: String,
        /// What was loaded.
        program: &'static str,
        /// What it needs.
        feature: &'static str,
        /// Since when that is there.
        since: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// There is no cgroup v2 mount.
    #[error("no cgroup v2 file system is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`)")]
    NoCgroup2,
    /// `--cgroup` is wrong.
    #[error("--cgroup {path}: {reason}; name the directory below the cgroup v2 mount that holds every pod")]
    Cgroup {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The container does not let the agent do its work.
    #[error("{what}: {reason}; {cure}")]
    Container {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        reason: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// The agent has no cgroup to itself.
    #[error(
        "the agent cannot have a cgroup to itself ({0}): sharing one with a pod would exempt that pod from the mesh"
    )]
    OwnCgroup(String),
    /// The programs cannot be told of the agent.
    #[error("the agent cannot exempt its own sockets from its programs (map AGENTS in --pin-dir): {0}")]
    Agents(io::Error),
    /// `--pin-dir` is wrong.
    #[error("--pin-dir {path}: {reason}")]
    Pins {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The node's network namespace cannot be read.
    #[error("cannot read the node's network namespace (SO_NETNS_COOKIE, there since Linux 5.14): {0}")]
    Netns(io::Error),
    /// `--host-netns` is wrong.
    #[error("--host-netns {path}: {reason}; give the node's network namespace, /proc/1/ns/net with hostPID")]
    HostNetns {
        /// What was given.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A bug, or a damaged build.
    #[error("the embedded eBPF programs are damaged: {0}")]
    Object(String),
}

/// Why the programs cannot be told of destinations or rules.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// They are another agent's to write.
    #[error(transparent)]
    NotInCharge(#[from] EnrolError),
    /// A map is full, or could not be written.
    #[error(transparent)]
    Map(#[from] io::Error),
}

/// Why a pod cannot be taken in, or let go.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Another agent has taken this node over.
    #[error("another agent is in charge of this node's pods; this one lets what it carries finish")]
    NotInCharge,
    /// The UID or the path is too long, or there are too many addresses.
    #[error("pod {uid}: {what}")]
    Unusable {
        /// The pod.
        uid: String,
        /// What is wrong with it.
        what: String,
    },
    /// The path leads to nothing.
    #[error("pod {uid}: no network namespace at {}: {reason}", path.display())]
    NoNetns {
        /// The pod.
        uid: String,
        /// What was opened.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The path leads to the node's own.
    #[error(
        "pod {uid}: {} is the node's own network namespace: a hostNetwork pod cannot be enrolled; check the path",
        path.display()
    )]
    HostNetns {
        /// The pod.
        uid: String,
        /// What was opened.
        path: PathBuf,
    },
    /// The path leads to another pod's.
    #[error(
        "pod {uid}: the network namespace {} holds none of its addresses {expected:?} but {found:?}: it is another \
         pod's, or the CNI plugin has not finished",
        path.display()
    )]
    ForeignNetns {
        /// The pod.
        uid: String,
        /// What was opened.
        path: PathBuf,
        /// What the pod has.
        expected: Vec<IpAddr>,
        /// What the namespace has.
        found: Vec<IpAddr>,
    },
    /// The namespace is in use by another enrolled pod.
    #[error("pod {uid}: its network namespace is already enrolled for pod {other}")]
    Shared {
        /// The pod.
        uid: String,
        /// Who has it.
        other: String,
    },
    /// Another enrolled pod of this node has the address.
    #[error(
        "pod {uid}: its address {address} is pod {other}'s, which stays enrolled; see which of the two has it, and \
         delete the other"
    )]
    AddressTaken {
        /// The pod.
        uid: String,
        /// Which both claim.
        address: IpAddr,
        /// Who has it.
        other: String,
    },
    /// A step failed; what was done before it has been undone.
    #[error("pod {uid}: cannot {}: {reason}", doing(*step))]
    Step {
        /// The pod.
        uid: String,
        /// Which.
        step: Step,
        /// What the kernel said.
        reason: String,
    },
    /// Some steps could not be undone.
    #[error("pod {uid}: not everything could be undone: {reason}")]
    Undo {
        /// The pod.
        uid: String,
        /// What the kernel said, per step.
        reason: String,
    },
}

impl EnrolError {
    /// Whether it is because of how the pod is: others may well be taken in.
    pub fn is_of_the_pod(&self) -> bool {
        match self {
            Self::Unusable { .. } | Self::Shared { .. } | Self::AddressTaken { .. } => true,
            Self::NotInCharge | Self::Step { .. } | Self::Undo { .. } => false,
            Self::NoNetns { .. } | Self::HostNetns { .. } | Self::ForeignNetns { .. } => true,
        }
    }

    /// Whether the pod's network namespace may just be elsewhere.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::NoNetns { .. } | Self::HostNetns { .. } | Self::ForeignNetns { .. })
    }
}

fn doing(step: Step) -> &'static str {
    match step {
        Step::Record => "write down what will be changed",
        Step::Listen => "listen in its network namespace",
        Step::Sysctl => "set net.ipv4.tcp_fwmark_accept and fwmark_reflect",
        Step::Route => "add the routing rules (is `lo` up in the pod?)",
        Step::Attach => "attach the socket lookup program to its network namespace",
        Step::Commit => "write its row",
    }
}
