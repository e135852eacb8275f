//! Letting pods go: what taking them in did is undone, in the order that never leaves one half captured.

use std::io;

use culvert_core::address::NetnsCookie;
use culvert_core::enrolment::Enrolment;
use culvert_ebpf_common::PodRecord;

use super::{Handle, Shared, records};
use crate::redirect::PodSpec;
use crate::redirect::error::EnrolError;
use crate::redirect::netns::Netns;
use crate::redirect::programs::{self, Maps};
use crate::redirect::record::to_spec;
use crate::redirect::steps::{self, Steps};

impl Shared {
    pub(in crate::redirect) fn release(&self, uid: &str) -> Result<(), EnrolError> {
        let mut maps = self.lock_in_charge()?;
        for (cookie, record) in records(&maps, |spec| spec.uid == uid) {
            let netns = self.netns_of(&to_spec(&record), cookie);
            steps::release(&mut maps, cookie, netns.as_deref())
                .and_then(|()| self.pins.take_from_others(cookie))
                .map_err(|error| undo_error(uid, &error))?;
        }
        Ok(())
    }

    pub(in crate::redirect) fn remove(&self, uid: &str) -> Result<(), EnrolError> {
        let mut maps = self.lock_in_charge()?;
        let found = records(&maps, |spec| spec.uid == uid);
        found.into_iter().try_for_each(|(cookie, record)| self.leave(&mut maps, cookie, record))
    }

    pub(in crate::redirect) fn retain(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), EnrolError> {
        self.let_go(&mut *self.lock_in_charge()?, keep)
    }

    /// [`Self::retain`] of nothing, whoever is in charge, and then the programs go as well.
    pub(in crate::redirect) fn uninstall(&self) -> Result<(), EnrolError> {
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

    pub(in crate::redirect) fn remove_other_layouts(&self) -> Result<(), EnrolError> {
        let _held = self.lock_in_charge()?;
        self.pins.remove_others();
        Ok(())
    }

    /// Whether the pod's network namespace is still in use, by whatever path.
    fn is_there(&self, spec: &PodSpec, cookie: NetnsCookie) -> bool {
        self.netns_of(spec, cookie).is_some() || self.host.find(cookie).is_some()
    }

    pub(super) fn leave(&self, maps: &mut Maps, cookie: NetnsCookie, record: PodRecord) -> Result<(), EnrolError> {
        let spec = to_spec(&record);
        // An earlier agent's, by a path that has gone since: a process of the pod's may still be in it.
        let netns = self.netns_of(&spec, cookie).or_else(|| self.host.find(cookie).map(Handle::Opened));
        let result = self.undo(maps, cookie, record, netns.as_deref(), &mut Enrolment::abandoned());
        self.held().remove(&cookie);
        result
    }

    pub(super) fn undo(
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

fn undo_error(uid: &str, error: &io::Error) -> EnrolError {
    EnrolError::Undo { uid: uid.to_owned(), reason: error.to_string() }
}
