//! The pods of this node: what the agent knows of them, and who may change it. Taking them in is `taking`, letting them
//! go `leaving`.

mod leaving;
mod taking;

use std::collections::HashMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::PodRecord;

use super::PodSpec;
use super::agents::{Agents, Held};
use super::error::EnrolError;
use super::netns::{Netns, PodNetns};
use super::pins::Pins;
use super::programs::{Constants, Maps};
use super::record::to_spec;
pub use taking::{EnrolledPod, PreparedPod};

/// What the agent's parts share.
#[derive(Debug)]
pub(super) struct Shared {
    host: Netns,
    pins: Pins,
    constants: Constants,
    maps: Mutex<Maps>,
    agents: Agents,
    /// The network namespaces of captured pods: open, so that they outlive the process or file that led to them.
    held: Mutex<HashMap<NetnsCookie, Arc<PodNetns>>>,
}

/// A network namespace that is held or was opened.
pub(super) enum Handle {
    Held(Arc<PodNetns>),
    Opened(Netns),
}

/// The maps of the agent that is in charge.
pub(super) struct InCharge<'a> {
    maps: MutexGuard<'a, Maps>,
    _held: Held,
}

impl Deref for InCharge<'_> {
    type Target = Maps;

    fn deref(&self) -> &Maps {
        &self.maps
    }
}

impl DerefMut for InCharge<'_> {
    fn deref_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }
}

impl Deref for Handle {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        match self {
            Self::Held(pod) => pod.netns(),
            Self::Opened(netns) => netns,
        }
    }
}

impl Shared {
    pub(super) fn new(host: Netns, pins: Pins, constants: Constants, maps: Maps, agents: Agents) -> Self {
        Self { host, pins, constants, maps: Mutex::new(maps), agents, held: Mutex::default() }
    }

    pub(super) fn take_charge(&self) -> io::Result<()> {
        self.agents.take_charge(&mut self.lock(), &self.pins)
    }

    pub(super) fn is_in_charge(&self) -> bool {
        self.agents.is_in_charge(&self.lock())
    }

    pub(super) fn is_anyone_in_charge(&self) -> bool {
        self.agents.is_anyone_in_charge(&self.lock())
    }

    pub(super) fn give_up_charge(&self) {
        if let Err(error) = self.agents.give_up(&mut self.lock()) {
            tracing::warn!(%error, "the node's pods cannot be left to another agent before this one has ended");
        }
    }

    pub(super) fn retire(&self) {
        self.agents.leave(&mut self.lock());
    }

    /// The maps, where pods are this agent's; they stay so until they are given back.
    pub(super) fn lock_in_charge(&self) -> Result<InCharge<'_>, EnrolError> {
        let maps = self.lock();
        // Fails where the pins are gone: Culvert has been uninstalled.
        let held = self.agents.hold_charge(&maps, &self.pins).ok().flatten();
        held.map(|held| InCharge { maps, _held: held }).ok_or(EnrolError::NotInCharge)
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Maps> {
        // Maps are handles: nothing in them can be left half changed.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn captured(&self) -> Vec<String> {
        let maps = self.lock();
        let captured = records(&maps, |_| true).into_iter().filter(|(cookie, _)| maps.pods.get(&cookie.0, 0).is_ok());
        captured.map(|(_, record)| to_spec(&record).uid).collect()
    }

    pub(super) fn has_other_layouts(&self) -> bool {
        !self.pins.others().is_empty()
    }

    /// The pod's network namespace, if it is still the one that was enrolled.
    pub(super) fn netns_of(&self, spec: &PodSpec, cookie: NetnsCookie) -> Option<Handle> {
        if let Some(held) = self.held().get(&cookie) {
            return Some(Handle::Held(held.clone()));
        }
        self.host.open(&spec.netns).ok().filter(|netns| netns.cookie() == cookie).map(Handle::Opened)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Arc<PodNetns>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The recorded pods for which `which` holds.
pub(super) fn records(maps: &Maps, which: impl Fn(&PodSpec) -> bool) -> Vec<(NetnsCookie, PodRecord)> {
    let all = maps.records.iter().filter_map(Result::ok);
    all.filter(|(_, record)| which(&to_spec(record))).map(|(cookie, record)| (NetnsCookie(cookie), record)).collect()
}
