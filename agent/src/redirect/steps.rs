//! What each step of an enrolment does to the kernel, and how it is undone.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use aya::maps::MapError;
use culvert_core::address::NetnsCookie;
use culvert_core::bypass::Rules;
use culvert_core::enrolment::{Action, Enrolment, Step};
use culvert_ebpf_common::{AddressKey, ListenerKey, Pod, PodRecord, Role};

use super::netlink::Netlink;
use super::netns::Netns;
use super::pins::Pins;
use super::programs::{self, Constants, Maps};
use super::record::{to_key, to_spec};
use super::routes::{self, InterfaceAddress};
use super::{Listeners, listen, rules, sysctls};

/// The hands of one pod's enrolment.
pub(super) struct Steps<'a> {
    pub(super) maps: &'a mut Maps,
    pub(super) pins: &'a Pins,
    pub(super) constants: Constants,
    pub(super) cookie: NetnsCookie,
    pub(super) record: PodRecord,
    /// The pod's own rules; of no matter when it is let go.
    pub(super) rules: Option<Arc<Rules>>,
    /// `None` when the namespace is gone: what was in it has gone with it.
    pub(super) netns: Option<&'a Netns>,
    /// Every address of the namespace.
    pub(super) present: Vec<InterfaceAddress>,
    pub(super) listeners: Option<Listeners>,
}

impl Steps<'_> {
    /// Does what the machine asks for until it rests. The first failure is returned; with `undo`, everything has been
    /// undone by then.
    pub(super) fn run(&mut self, enrolment: &mut Enrolment, undo: bool) -> Result<(), (Step, io::Error)> {
        let mut failure = None;
        loop {
            match enrolment.action() {
                Action::Do(step) => match self.act(step) {
                    Ok(()) => enrolment.done(),
                    Err(error) if undo => {
                        failure = Some((step, error));
                        enrolment.failed();
                    }
                    Err(error) => return Err((step, error)),
                },
                Action::Undo(step) => {
                    if let Err(error) = self.undo(step) {
                        failure.get_or_insert((step, error));
                    }
                    enrolment.undone();
                }
                Action::Ready | Action::Enrolled | Action::Gone => return failure.map_or(Ok(()), Err),
            }
        }
    }

    fn act(&mut self, step: Step) -> io::Result<()> {
        let netns = self.netns.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        match step {
            Step::Record => self.write_record(),
            Step::Listen => self.listen(netns),
            Step::Sysctl => sysctls::set(netns),
            Step::Route => {
                let mut netlink = netns.enter(Netlink::open)??;
                routes::add(&mut netlink, &to_spec(&self.record).addresses, &self.present)
            }
            Step::Attach => programs::attach_pod(self.pins, self.constants, netns),
            Step::Commit => {
                self.maps.pods.insert(self.cookie.0, Pod { flags: self.record.flags }, 0).map_err(map_error)?;
                // Last: led to `lo` without that row, nobody would take it.
                let mut netlink = netns.enter(Netlink::open)??;
                let (spec, present) = (to_spec(&self.record), routes::addresses(&mut netlink)?);
                routes::set_dns(&mut netlink, &spec.addresses, &present, spec.capture_dns)
            }
        }
    }

    fn undo(&mut self, step: Step) -> io::Result<()> {
        match (step, self.netns) {
            (Step::Commit, _) => release(self.maps, self.cookie, self.netns),
            (Step::Attach, _) => programs::detach_pod(self.pins, self.cookie),
            (Step::Route, Some(netns)) => routes::remove(&mut netns.enter(Netlink::open)??),
            (Step::Sysctl, Some(netns)) => sysctls::restore(netns, self.record.mark_sysctls),
            (Step::Route | Step::Sysctl, None) => Ok(()),
            (Step::Listen, _) => {
                self.listeners = None;
                for role in Role::ALL {
                    // Closed listeners have left the map by themselves.
                    absent_is_fine(self.maps.listeners.remove(&ListenerKey::new(self.cookie.0, role)))?;
                }
                Ok(())
            }
            (Step::Record, _) => self.erase_record(),
        }
    }

    fn listen(&mut self, netns: &Netns) -> io::Result<()> {
        let listeners = listen::open(netns, to_spec(&self.record).capture_dns)?;
        let mut each = vec![
            (Role::Outbound, listeners.outbound.as_raw_fd()),
            (Role::Hbone, listeners.hbone.as_raw_fd()),
            (Role::Plaintext, listeners.plaintext.as_raw_fd()),
        ];
        if let Some(dns) = &listeners.dns {
            each.extend([(Role::DnsTcp, dns.tcp.as_raw_fd()), (Role::DnsUdp, dns.udp.as_raw_fd())]);
        }
        for (role, listener) in each {
            let key = ListenerKey::new(self.cookie.0, role);
            self.maps.listeners.insert(key, listener, 0).map_err(map_error)?;
        }
        self.listeners = Some(listeners);
        Ok(())
    }

    fn write_record(&mut self) -> io::Result<()> {
        let rules = self.rules.clone().unwrap_or_default();
        rules::set_rules(self.maps, self.cookie.0, &rules)?;
        self.maps.records.insert(self.cookie.0, self.record, 0).map_err(map_error)?;
        let own: Vec<_> = self.present.iter().map(|address| to_key(address.ip)).collect();
        // Of an earlier life of the pod, under other addresses.
        for stale in self.own_addresses().into_iter().filter(|key| !own.contains(&key.ip)) {
            absent_is_fine(self.maps.addresses.remove(&stale))?;
        }
        let own = own.into_iter().map(|ip| AddressKey { netns: self.cookie.0, ip });
        let pods = to_spec(&self.record).addresses.into_iter().map(any);
        for key in own.chain(pods) {
            self.maps.addresses.insert(key, 1, 0).map_err(map_error)?;
        }
        Ok(())
    }

    fn erase_record(&mut self) -> io::Result<()> {
        let addresses = to_spec(&self.record).addresses;
        // An address may be another pod's by now.
        let others = self.maps.records.iter().filter_map(Result::ok).filter(|(cookie, _)| *cookie != self.cookie.0);
        let taken: Vec<IpAddr> = others.flat_map(|(_, record)| to_spec(&record).addresses).collect();
        let free = addresses.into_iter().filter(|ip| !taken.contains(ip)).map(any);
        for key in self.own_addresses().into_iter().chain(free) {
            absent_is_fine(self.maps.addresses.remove(&key))?;
        }
        rules::set_rules(self.maps, self.cookie.0, &Rules::default())?;
        absent_is_fine(self.maps.records.remove(&self.cookie.0))
    }

    fn own_addresses(&self) -> Vec<AddressKey> {
        let keys = self.maps.addresses.keys().filter_map(Result::ok);
        keys.filter(|key| key.netns == self.cookie.0).collect()
    }
}

/// Captures nothing more that the pod begins.
pub(super) fn release(maps: &mut Maps, cookie: NetnsCookie, netns: Option<&Netns>) -> io::Result<()> {
    let dns = match netns {
        Some(netns) => netns.enter(Netlink::open).and_then(|netlink| routes::set_dns(&mut netlink?, &[], &[], false)),
        None => Ok(()),
    };
    absent_is_fine(maps.pods.remove(&cookie.0)).and(dns)
}

fn any(ip: IpAddr) -> AddressKey {
    AddressKey { netns: AddressKey::ANY, ip: to_key(ip) }
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> io::Result<()> {
    match result.map_err(map_error) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
        result => result,
    }
}

pub(super) fn map_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound | MapError::ElementNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        error => io::Error::other(error),
    }
}
