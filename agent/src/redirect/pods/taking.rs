//! Taking a pod in: its network namespace is readied first, and captured by the commit.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_core::address::NetnsCookie;
use culvert_core::enrolment::{Action, Enrolment, Step};
use culvert_ebpf_common::PodRecord;

use super::{Shared, records};
use crate::redirect::error::EnrolError;
use crate::redirect::netlink::Netlink;
use crate::redirect::netns::{Netns, PodNetns};
use crate::redirect::programs::Maps;
use crate::redirect::record::{to_record, to_spec};
use crate::redirect::routes::{self, InterfaceAddress};
use crate::redirect::steps::Steps;
use crate::redirect::{Listeners, PodSpec, sysctls};

/// A pod whose network namespace is ready, and whose traffic is still as it was.
///
/// Dropped, everything is undone; except for a pod that an earlier agent captured, which stays captured, and refused.
#[derive(Debug)]
pub struct PreparedPod {
    /// The pod.
    pub uid: String,
    /// Its listeners.
    pub listeners: Listeners,
    /// Its network namespace.
    pub netns: Arc<PodNetns>,
    preparation: Preparation,
}

/// A captured pod. Dropping it does not let it go: see [`Redirect::remove`](crate::redirect::Redirect::remove).
#[derive(Debug)]
pub struct EnrolledPod {
    /// The pod.
    pub uid: String,
    /// Its listeners.
    pub listeners: Listeners,
    /// Its network namespace.
    pub netns: Arc<PodNetns>,
}

/// The way back from a preparation that is not committed.
#[derive(Debug)]
struct Preparation {
    shared: Arc<Shared>,
    netns: Arc<PodNetns>,
    record: PodRecord,
    enrolment: Enrolment,
    /// An earlier agent captured the pod: undoing would set it free.
    captured: bool,
}

impl Shared {
    pub(in crate::redirect) fn prepare(self: &Arc<Self>, pod: &PodSpec) -> Result<PreparedPod, EnrolError> {
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
}

impl PreparedPod {
    /// Captures the pod: from here on its connections, both ways, go to its listeners.
    ///
    /// # Errors
    ///
    /// The row could not be written; the pod is as it was before [`Redirect::prepare`](crate::redirect::Redirect::prepare).
    pub fn commit(self) -> Result<EnrolledPod, EnrolError> {
        let Self { uid, listeners, netns, preparation } = self;
        preparation.commit()?;
        Ok(EnrolledPod { uid, listeners, netns })
    }
}

impl Preparation {
    fn commit(mut self) -> Result<(), EnrolError> {
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
        if self.captured || self.enrolment.action() != Action::Ready {
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
