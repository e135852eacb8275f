//! Which endpoints of a cluster are left out for a while: [`Detector`] is told of every outcome, and of the time.
//!
//! Nearly every outcome is a good one of an endpoint against which nothing is counted; those cost a load, and no lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use culvert_core::traffic::outliers::{Detector, Ejection, Outcome, OutlierSettings};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::endpoint::{EndpointId, Health};
use super::usage::add;

/// The outlier detection of a cluster.
#[derive(Debug)]
pub(super) struct Watch {
    settings: OutlierSettings,
    kept: Mutex<Kept>,
    /// Nobody is left out, or so many that it counts no longer.
    ignored: AtomicBool,
    /// Times are told from here.
    epoch: Instant,
    pub(super) ejections: Ejections,
}

/// Ejections so far, by what they were for.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    pub(super) errors: AtomicU64,
    pub(super) gateway_errors: AtomicU64,
    pub(super) local_failures: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    detector: Detector<EndpointId>,
    members: HashMap<EndpointId, Arc<Health>>,
    /// A task sweeps.
    sweeping: bool,
}

impl Watch {
    pub(super) fn new(settings: OutlierSettings) -> Arc<Self> {
        let detector = Detector::new(settings.clone(), Duration::ZERO);
        Arc::new(Self {
            settings,
            kept: Mutex::new(Kept { detector, members: HashMap::new(), sweeping: false }),
            ignored: AtomicBool::new(true),
            epoch: Instant::now(),
            ejections: Ejections::default(),
        })
    }

    pub(super) fn settings(&self) -> &OutlierSettings {
        &self.settings
    }

    /// Tells which endpoints there are.
    pub(super) fn set_members<'h>(&self, members: impl Iterator<Item = &'h Arc<Health>>) {
        let mut kept = self.lock();
        kept.members = members.map(|health| (health.id, health.clone())).collect();
        let Kept { detector, members, .. } = &mut *kept;
        detector.set_hosts(members.keys());
        self.note(detector);
    }

    /// Whether all endpoints are used: because nobody is left out, or because too few are well (`minHealthPercent`).
    pub(super) fn is_ignored(&self) -> bool {
        self.ignored.load(Ordering::Relaxed)
    }

    fn note(&self, detector: &Detector<EndpointId>) {
        self.ignored.store(detector.ejected() == 0 || detector.is_overruled(), Ordering::Relaxed);
    }

    /// How many are left out now.
    pub(super) fn ejected(&self) -> usize {
        self.lock().detector.ejected()
    }

    /// Counts how something ended at the endpoint of `health`.
    pub(super) fn record(self: &Arc<Self>, health: &Health, outcome: Outcome) {
        let is_bad = self.counts_against(outcome);
        if !is_bad && !health.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut kept = self.lock();
        // Of a connection that was made, errors that are counted apart may be left.
        let forgives = matches!(outcome, Outcome::Status(_)) || !self.settings.split_local;
        health.troubled.store(is_bad || !forgives, Ordering::Relaxed);
        let Some(why) = kept.detector.record(&health.id, outcome, self.epoch.elapsed()) else { return };
        health.ejected.store(true, Ordering::Relaxed);
        self.note(&kept.detector);
        add(match why {
            Ejection::Errors => &self.ejections.errors,
            Ejection::GatewayErrors => &self.ejections.gateway_errors,
            Ejection::LocalFailures => &self.ejections.local_failures,
        });
        if !kept.sweeping
            && let Ok(runtime) = Handle::try_current()
        {
            kept.sweeping = true;
            runtime.spawn(sweep(Arc::downgrade(self), self.epoch));
        }
    }

    fn counts_against(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Status(status) => {
                let is_error = match &self.settings.error_statuses {
                    Some(statuses) => statuses.contains(&status),
                    None => (500..=599).contains(&status),
                };
                is_error || matches!(status, 502..=504)
            }
            Outcome::Connected => false,
            Outcome::LocalFailure => true,
        }
    }

    /// Lets back in whose time is up; says when to look again, if there is anything to look for.
    fn sweep(&self) -> Option<Duration> {
        let mut kept = self.lock();
        for id in kept.detector.sweep(self.epoch.elapsed()) {
            if let Some(health) = kept.members.get(&id) {
                health.ejected.store(false, Ordering::Relaxed);
            }
        }
        self.note(&kept.detector);
        kept.sweeping = !kept.detector.is_quiet();
        kept.sweeping.then(|| kept.detector.next_sweep())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sweeps for as long as somebody is left out, or has been lately.
async fn sweep(watch: Weak<Watch>, epoch: Instant) {
    while let Some(next) = watch.upgrade().and_then(|watch| watch.sweep()) {
        tokio::time::sleep_until(epoch + next).await;
    }
}
