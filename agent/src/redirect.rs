//! Steering the traffic of enrolled pods into the agent: eBPF programs, their pins, and the plumbing of network
//! namespaces.
//!
//! This is the only code that touches them, and the only `unsafe` of the agent. It knows no policy: it takes pods in
//! ([`Redirect::prepare`], [`PreparedPod::commit`]), lets them go ([`Redirect::remove`]) and says how each is
//! captured ([`Redirect::report`]). (`memory` is here for its `unsafe` alone.)
//!
//! Every call blocks for the time of a few system calls; `prepare` and `remove` for a few milliseconds.

#![allow(unsafe_code, reason = "talks to the kernel where no safe wrapper exists")]

mod agents;
mod application;
mod cgroup;
mod container;
mod datagram;
mod error;
mod layouts;
mod link;
mod listen;
pub mod memory;
mod netlink;
mod netns;
mod pins;
mod pods;
mod programs;
mod record;
mod report;
mod routes;
mod rules;
mod steps;
mod sysctls;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use culvert_core::bypass::{Destination, Rules};
use ipnet::IpNet;

use agents::Agents;
pub use datagram::Replies;
pub use error::{EnrolError, LoadError, WriteError};
pub use listen::{DnsListeners, Listeners};
use netns::Netns;
pub use netns::{Family, PodNetns, begin_connect};
use pins::Pins;
use pods::Shared;
pub use pods::{EnrolledPod, PreparedPod};
use programs::Constants;
pub use report::{Counter, PodReport};
pub use rules::OutboundReport;

/// What [`Redirect::load`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cgroup that holds every pod (`kubepods`), under the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// The node's own network namespace, where the agent runs in another; by default the calling thread's.
    pub host_netns: Option<PathBuf>,
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
    /// Capture its DNS queries (`ambient.istio.io/dns-capture`).
    pub capture_dns: bool,
    /// The destinations that its connections are not captured to.
    pub outbound_rules: Option<Arc<Rules>>,
}

/// The loaded programs and the pods that they steer.
///
/// Dropping it, or dying, leaves programs and pods as they are: enrolled pods are refused until the next agent takes
/// them over.
#[derive(Debug)]
pub struct Redirect {
    shared: Arc<Shared>,
}

impl Redirect {
    /// Moves the agent into a cgroup of its own, loads and pins the programs, and adopts what an earlier agent left:
    /// its pods are refused from its death on, and served again once they are prepared and committed.
    ///
    /// Unless told otherwise, the calling thread's network namespace is taken for the node's.
    ///
    /// # Errors
    ///
    /// What the machine lacks, and the cure.
    pub fn load(config: Config) -> Result<Self, LoadError> {
        container::open_up()?;
        let mount = cgroup::mount()?;
        cgroup::check_pods(&config.cgroup)?;
        let own = Netns::current().map_err(LoadError::Netns)?;
        let host = match &config.host_netns {
            Some(path) => own
                .open(path)
                .map_err(|error| LoadError::HostNetns { path: path.clone(), reason: error.to_string() })?,
            None => own,
        };
        let own_cgroup = cgroup::own(&mount, &config.cgroup)?;
        let pins = Pins::open(&config.pin_path)?;
        let constants = Constants { host_netns: host.cookie() };
        let mut maps = programs::attach_node(&pins, constants, &config.cgroup, &mount)?;
        let agents = Agents::new(mount, own_cgroup);
        agents.enter(&mut maps, &pins).map_err(LoadError::Agents)?;
        Ok(Self { shared: Arc::new(Shared::new(host, pins, constants, maps, agents)) })
    }

    /// Takes charge of the node's pods, from an earlier agent if there is one: until then, and once another has taken
    /// charge, nothing that changes pods or destinations does anything but say so.
    ///
    /// # Errors
    ///
    /// The map could not be written.
    pub fn take_charge(&self) -> io::Result<()> {
        self.shared.take_charge()
    }

    /// Whether this agent is in charge: the last to have taken charge of those that live.
    pub fn is_in_charge(&self) -> bool {
        self.shared.is_in_charge()
    }

    /// Whether any agent is.
    pub fn is_anyone_in_charge(&self) -> bool {
        self.shared.is_anyone_in_charge()
    }

    /// Leaves the node's pods to whoever else is there; what this agent carries may finish.
    pub fn give_up_charge(&self) {
        self.shared.give_up_charge();
    }

    /// Ends the exemption of this agent's sockets, and leaves the cgroup that it made: the last thing that it does.
    pub fn retire(&self) {
        self.shared.retire();
    }

    /// Readies the pod's network namespace without changing what its traffic meets.
    ///
    /// # Errors
    ///
    /// What is wrong with the pod, or [`EnrolError::NotInCharge`]; nothing is left behind.
    pub fn prepare(&self, pod: &PodSpec) -> Result<PreparedPod, EnrolError> {
        self.shared.prepare(pod)
    }

    /// Stops capturing a pod's new connections, while those that its proxy carries go on. Unknown pods are fine.
    ///
    /// # Errors
    ///
    /// The row could not be removed.
    pub fn release(&self, uid: &str) -> Result<(), EnrolError> {
        self.shared.release(uid)
    }

    /// Lets a pod go: its network namespace is left as it was before. Unknown pods are fine, and pods that are gone.
    ///
    /// The proxy's connections of the pod must be closed by then, or what they still have to say to the application
    /// has no route.
    ///
    /// # Errors
    ///
    /// What could not be undone; the rest was.
    pub fn remove(&self, uid: &str) -> Result<(), EnrolError> {
        self.shared.remove(uid)
    }

    /// Lets go of every pod that is not to be kept: what an earlier agent captured and nobody wants any more, and what
    /// is left of pods that are gone. To be called when the agent knows its pods, and when it is in charge again after
    /// another was.
    ///
    /// # Errors
    ///
    /// What could not be undone; the rest was.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), EnrolError> {
        self.shared.retain(keep)
    }

    /// Whether programs of another version of Culvert, with another layout of maps, are still attached.
    pub fn has_other_layouts(&self) -> bool {
        self.shared.has_other_layouts()
    }

    /// Detaches them. Until then they refuse what they captured: to be called once every pod is taken in.
    ///
    /// # Errors
    ///
    /// [`EnrolError::NotInCharge`].
    pub fn remove_other_layouts(&self) -> Result<(), EnrolError> {
        self.shared.remove_other_layouts()
    }

    /// The UIDs of the pods that are captured, by this agent or an earlier one.
    pub fn captured(&self) -> Vec<String> {
        self.shared.captured()
    }

    /// Tells the programs what is known of some destinations; `None`: nothing any more.
    ///
    /// # Errors
    ///
    /// The map is full, or could not be written.
    pub fn update_destinations(
        &self,
        changes: impl IntoIterator<Item = (IpNet, Option<Destination>)>,
    ) -> Result<(), WriteError> {
        self.shared.update_destinations(&mut changes.into_iter())
    }

    /// Tells the programs all that is known of destinations, in place of what they knew.
    ///
    /// # Errors
    ///
    /// The map is full, or could not be written.
    pub fn replace_destinations(&self, all: impl IntoIterator<Item = (IpNet, Destination)>) -> Result<(), WriteError> {
        self.shared.replace_destinations(&mut all.into_iter())
    }

    /// Whether the programs know every destination, without which nothing is bypassed or refused by rules about addresses
    /// and ports; and whether they refuse what nobody knows.
    ///
    /// # Errors
    ///
    /// The map could not be written.
    pub fn set_outbound(&self, complete: bool, registry_only: bool) -> Result<(), WriteError> {
        self.shared.set_outbound(complete, registry_only)
    }

    /// Makes `rules` those of every pod, beside its own.
    ///
    /// # Errors
    ///
    /// The maps are full, or could not be written.
    pub fn set_mesh_rules(&self, rules: &Rules) -> Result<(), WriteError> {
        self.shared.set_mesh_rules(rules)
    }

    /// What every pod's connections are subject to.
    pub fn outbound(&self) -> OutboundReport {
        self.shared.outbound()
    }

    /// The programs' counters.
    pub fn counters(&self) -> Vec<Counter> {
        self.shared.counters()
    }

    /// How each pod is captured, and what is wrong if anything is.
    pub fn report(&self) -> Vec<PodReport> {
        self.shared.report()
    }

    /// Lets go of every pod, detaches the programs and removes the pins: nothing of Culvert is left on the node.
    ///
    /// # Errors
    ///
    /// What could not be undone; the rest was.
    pub fn uninstall(&self) -> Result<(), EnrolError> {
        self.shared.uninstall()
    }
}
