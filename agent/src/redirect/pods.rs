//! The pods of this node: taking them in, letting them go, adopting those of an earlier agent.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_core::address::NetnsCookie;
use culvert_core::enrolment::{Enrolment, Step};
use culvert_ebpf_common::PodRecord;

use super::agents::{Agents, Held};
use super::error::EnrolError;
use super::netlink::Netlink;
use super::netns::{Netns, PodNetns};
use super::pins::Pins;
use super::programs::{self, Constants, Maps};
use super::record::{to_record, to_spec};
use super::routes::{self, InterfaceAddress};
use super::steps::{self, Steps};
use super::sysctls;
use super::{PodSpec, PreparedPod};

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

/// The way back from a preparation that is not committed.
#[derive(Debug)]
pub(super) struct Preparation {
    shared: Arc<Shared>,
    netns: Arc<PodNetns>,
    record: PodRecord,
    enrolment: Enrolment,
    /// An earlier agent captured the pod: undoing would set it free.
    captured: bool,
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

    pub(super) fn host_netns(&self) -> NetnsCookie {
        self.host.cookie()
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Maps> {
        // Maps are handles: nothing in them can be left half changed.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prepare(self: &Arc<Self>, pod: &PodSpec) -> Result<PreparedPod, EnrolError> {
        let (netns, present) = self.verify(pod)?;
        let cookie = netns.cookie();
        let unusable = |what: &str| EnrolError::Unusable { uid: pod.uid.clone(), what: what.to_owned() };
        let failed = |(step, error): (Step, io::Error)| EnrolError::Step {
            uid: pod.uid.clone(),
            step,
            reason: error.to_string(),
        };

        let mut maps = self.lock_in_charge()?;
        let before = maps.records.get(&cookie.0, 0).ok();
        // Also by an agent of another layout: undone, its route would be missing where its marks still lead to.
        let captured = maps.pods.get(&cookie.0, 0).is_ok() || self.pins.is_held_elsewhere(cookie);
        if let Some(other) = before.as_ref().map(to_spec).filter(|other| other.uid != pod.uid) {
            return Err(EnrolError::Shared { uid: pod.uid.clone(), other: other.uid });
        }
        if let Some((address, other)) = self.claimed_by_another(&maps, pod, cookie) {
            return Err(EnrolError::AddressTaken { uid: pod.uid.clone(), address, other });
        }
        // The sandbox was made anew: what is left of the old one is in nobody's way, but would be taken for this pod.
        for (old, record) in records(&maps, |spec| spec.uid == pod.uid) {
            if old != cookie {
                let _ = self.leave(&mut maps, old, record);
            }
        }
        // What the sysctls were before anyone touched it.
        let mark_sysctls = match &before {
            Some(record) => record.mark_sysctls,
            None => sysctls::read(&netns).map_err(|error| failed((Step::Record, error)))?,
        };
        let record = to_record(pod, mark_sysctls).map_err(unusable)?;
        let netns = Arc::new(PodNetns::new(netns, pod.addresses.iter().copied()));
        let mut enrolment = Enrolment::new();
        let mut steps = Steps {
            maps: &mut maps,
            pins: &self.pins,
            constants: self.constants,
            cookie,
            record,
            rules: pod.outbound_rules.clone(),
            netns: Some(netns.netns()),
            present,
            listeners: None,
        };
        steps.run(&mut enrolment, !captured).map_err(failed)?;
        let listeners = steps.listeners.take().ok_or_else(|| unusable("no listeners"))?;
        let preparation = Preparation { shared: self.clone(), netns: netns.clone(), record, enrolment, captured };
        Ok(PreparedPod { uid: pod.uid.clone(), listeners, netns, preparation })
    }

    /// An address of `pod` that another captured pod has, and which: the one that is there stays as it is, since two
    /// pods of one address cannot be told apart.
    fn claimed_by_another(&self, maps: &Maps, pod: &PodSpec, cookie: NetnsCookie) -> Option<(IpAddr, String)> {
        let others = records(maps, |spec| spec.uid != pod.uid).into_iter();
        others.filter(|(other, _)| *other != cookie && maps.pods.get(&other.0, 0).is_ok()).find_map(
            |(other, record)| {
                let spec = to_spec(&record);
                let address = *spec.addresses.iter().find(|ip| pod.addresses.contains(ip))?;
                self.netns_of(&spec, other).map(|_| (address, spec.uid))
            },
        )
    }

    /// Opens the pod's network namespace and checks that it is the pod's.
    fn verify(&self, pod: &PodSpec) -> Result<(Netns, Vec<InterfaceAddress>), EnrolError> {
        let (uid, path) = (|| pod.uid.clone(), || pod.netns.clone());
        let nothing = |error: io::Error| EnrolError::NoNetns { uid: uid(), path: path(), reason: error.to_string() };
        let netns = self.host.open(&pod.netns).map_err(nothing)?;
        if netns.cookie() == self.host.cookie() {
            return Err(EnrolError::HostNetns { uid: uid(), path: path() });
        }
        let present =
            netns.enter(Netlink::open).and_then(|netlink| routes::addresses(&mut netlink?)).map_err(nothing)?;
        if !pod.addresses.iter().any(|ip| present.iter().any(|address| address.ip == *ip)) {
            let found: Vec<IpAddr> = present.iter().map(|address| address.ip).collect();
            return Err(EnrolError::ForeignNetns { uid: uid(), path: path(), expected: pod.addresses.clone(), found });
        }
        Ok((netns, present))
    }

    pub(super) fn release(&self, uid: &str) -> Result<(), EnrolError> {
        let mut maps = self.lock_in_charge()?;
        for (cookie, record) in records(&maps, |spec| spec.uid == uid) {
            let netns = self.netns_of(&to_spec(&record), cookie);
            steps::release(&mut maps, cookie, netns.as_deref())
                .and_then(|()| self.pins.take_from_others(cookie))
                .map_err(|error| undo_error(uid, &error))?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, uid: &str) -> Result<(), EnrolError> {
        let mut maps = self.lock_in_charge()?;
        let found = records(&maps, |spec| spec.uid == uid);
        found.into_iter().try_for_each(|(cookie, record)| self.leave(&mut maps, cookie, record))
    }

    pub(super) fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), EnrolError> {
        self.let_go(&mut *self.lock_in_charge()?, keep)
    }

    /// [`Self::retain`] of nothing, whoever is in charge, and then the programs go as well.
    pub(super) fn uninstall(&self) -> Result<(), EnrolError> {
        let result = self.let_go(&mut self.lock(), &|_| false);
        self.pins.remove_others();
        self.pins.remove_all();
        result
    }

    fn let_go(&self, maps: &mut Maps, keep: &dyn Fn(&str) -> bool) -> Result<(), EnrolError> {
        let mut result = Ok(());
        for (cookie, record) in records(maps, |_| true) {
            let spec = to_spec(&record);
            if keep(&spec.uid) && self.is_there(&spec, cookie) {
                continue;
            }
            if let Err(error) = self.leave(maps, cookie, record) {
                result = Err(error);
            }
        }
        for cookie in self.pins.pinned_pods() {
            if maps.records.get(&cookie.0, 0).is_err() {
                let _ = programs::detach_pod(&self.pins, cookie);
            }
        }
        self.pins.remove_unfinished();
        result
    }

    pub(super) fn captured(&self) -> Vec<String> {
        let maps = self.lock();
        let captured = records(&maps, |_| true).into_iter().filter(|(cookie, _)| maps.pods.get(&cookie.0, 0).is_ok());
        captured.map(|(_, record)| to_spec(&record).uid).collect()
    }

    pub(super) fn has_other_layouts(&self) -> bool {
        !self.pins.others().is_empty()
    }

    pub(super) fn remove_other_layouts(&self) -> Result<(), EnrolError> {
        let _held = self.lock_in_charge()?;
        self.pins.remove_others();
        Ok(())
    }

    /// The pod's network namespace, if it is still the one that was enrolled.
    pub(super) fn netns_of(&self, spec: &PodSpec, cookie: NetnsCookie) -> Option<Handle> {
        if let Some(held) = self.held().get(&cookie) {
            return Some(Handle::Held(held.clone()));
        }
        self.host.open(&spec.netns).ok().filter(|netns| netns.cookie() == cookie).map(Handle::Opened)
    }

    /// Whether the pod's network namespace is still in use, by whatever path.
    fn is_there(&self, spec: &PodSpec, cookie: NetnsCookie) -> bool {
        self.netns_of(spec, cookie).is_some() || self.host.find(cookie).is_some()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Arc<PodNetns>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, maps: &mut Maps, cookie: NetnsCookie, record: PodRecord) -> Result<(), EnrolError> {
        let spec = to_spec(&record);
        // An earlier agent's, by a path that has gone since: a process of the pod's may still be in it.
        let netns = self.netns_of(&spec, cookie).or_else(|| self.host.find(cookie).map(Handle::Opened));
        let result = self.undo(maps, cookie, record, netns.as_deref(), &mut Enrolment::abandoned());
        self.held().remove(&cookie);
        result
    }

    fn undo(
        &self,
        maps: &mut Maps,
        cookie: NetnsCookie,
        record: PodRecord,
        netns: Option<&Netns>,
        enrolment: &mut Enrolment,
    ) -> Result<(), EnrolError> {
        let (pins, constants) = (&self.pins, self.constants);
        let present = Vec::new();
        let mut steps = Steps { maps, pins, constants, cookie, record, rules: None, netns, present, listeners: None };
        let result = steps.run(enrolment, true);
        let elsewhere = self.pins.take_from_others(cookie).map_err(|error| undo_error(&to_spec(&record).uid, &error));
        elsewhere.and(result.map_err(|(_, error)| undo_error(&to_spec(&record).uid, &error)))
    }
}

impl Preparation {
    pub(super) fn commit(mut self) -> Result<(), EnrolError> {
        self.enrolment.commit();
        let shared = self.shared.clone();
        let mut maps = shared.lock_in_charge()?;
        let mut steps = Steps {
            maps: &mut maps,
            pins: &shared.pins,
            constants: shared.constants,
            cookie: self.netns.cookie(),
            record: self.record,
            rules: None,
            netns: Some(self.netns.netns()),
            present: Vec::new(),
            listeners: None,
        };
        steps.run(&mut self.enrolment, !self.captured).map_err(|(step, error)| EnrolError::Step {
            uid: to_spec(&self.record).uid,
            step,
            reason: error.to_string(),
        })?;
        // Until then it is refused by the programs of another layout that captured it before.
        shared.pins.take_from_others(self.netns.cookie()).map_err(|error| EnrolError::Step {
            uid: to_spec(&self.record).uid,
            step: Step::Commit,
            reason: format!("what another version of Culvert left in {} stays: {error}", shared.pins.root().display()),
        })?;
        shared.held().insert(self.netns.cookie(), self.netns.clone());
        Ok(())
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        if self.captured || self.enrolment.action() != culvert_core::enrolment::Action::Ready {
            return;
        }
        self.enrolment.leave();
        // Where another agent has taken charge meanwhile, it has gone on from here.
        let Ok(mut maps) = self.shared.lock_in_charge() else { return };
        let netns = Some(self.netns.netns());
        let undone = self.shared.undo(&mut maps, self.netns.cookie(), self.record, netns, &mut self.enrolment);
        if let Err(error) = undone {
            tracing::warn!(%error, "a pod's network namespace is not as it was");
        }
    }
}

/// The recorded pods for which `which` holds.
pub(super) fn records(maps: &Maps, which: impl Fn(&PodSpec) -> bool) -> Vec<(NetnsCookie, PodRecord)> {
    let all = maps.records.iter().filter_map(Result::ok);
    all.filter(|(_, record)| which(&to_spec(record))).map(|(cookie, record)| (NetnsCookie(cookie), record)).collect()
}

fn undo_error(uid: &str, error: &io::Error) -> EnrolError {
    EnrolError::Undo { uid: uid.to_owned(), reason: error.to_string() }
}
