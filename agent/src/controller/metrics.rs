//! What Prometheus is told of the controller.
//!
//! Where istiod has a metric of the same meaning it has the same name here (`citadel_server_…`), so that dashboards
//! keep working. Those are gauges by type: istiod's counters lack the suffix that OpenMetrics gives to counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;

use super::keys::Keys;
use super::placement::Placement;
use super::refusal::Refusal;
use crate::telemetry::{Kind, Sample, Telemetry};

/// The counters of the controller. Cloning is cheap; all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    refused: Family<Reason, Counter>,
    #[cfg(test)]
    last_refusal: Arc<std::sync::Mutex<&'static str>>,
    writes: Family<Write, Counter>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    signed: AtomicU64,
    unauthenticated: AtomicU64,
    bad_csr: AtomicU64,
    signing: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    object: &'static str,
    result: &'static str,
}

impl Metrics {
    /// A certificate was asked for.
    pub(super) fn asked(&self) {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// It was signed.
    pub(super) fn signed(&self) {
        self.counts.signed.fetch_add(1, Ordering::Relaxed);
    }

    /// It was not.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create_owned(&Reason { reason: refusal.reason() }).inc();
        #[cfg(test)]
        {
            *self.last_refusal.lock().unwrap() = refusal.reason();
        }
        let count = match refusal {
            Refusal::Csr(_) | Refusal::CsrName { .. } | Refusal::Unread(_) => &self.counts.bad_csr,
            Refusal::Signing(_) | Refusal::NoAuthority(_) => &self.counts.signing,
            Refusal::Busy | Refusal::NoOptions | Refusal::ApiServer(_) => return,
            _ => &self.counts.unauthenticated,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Why a certificate was refused last.
    #[cfg(test)]
    pub(super) fn last_refusal(&self) -> &'static str {
        *self.last_refusal.lock().unwrap()
    }

    /// The leader wrote an `object` (`root`, `crl`, `secret`, `status`), or failed to.
    pub(super) fn wrote(&self, object: &'static str, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.writes.get_or_create_owned(&Write { object, result }).inc();
    }

    /// Adds everything to `telemetry`.
    pub(super) fn register(
        &self,
        telemetry: &Telemetry,
        keys: &Keys,
        placement: &Placement,
        leads: watch::Receiver<bool>,
    ) {
        telemetry.registry(|registry| {
            let help = "Certificates that were not signed, by reason; the log has the rest";
            registry.register("culvert_controller_certificate_refusals", help, self.refused.clone());
            let help = "What the leader wrote to the API server";
            registry.register("culvert_controller_writes", help, self.writes.clone());
        });
        type Read = fn(&Counts) -> &AtomicU64;
        let counters: [(&str, &str, Read); 5] = [
            ("citadel_server_csr_count", "Requests for certificates", |c| &c.asked),
            ("citadel_server_success_cert_issuance_count", "Certificates signed", |c| &c.signed),
            ("citadel_server_authentication_failure_count", "Requests refused for who asked, or for whom", |c| {
                &c.unauthenticated
            }),
            ("citadel_server_csr_parsing_err_count", "Requests refused for their CSR", |c| &c.bad_csr),
            ("citadel_server_csr_sign_err_count", "Requests that could not be signed", |c| &c.signing),
        ];
        for (name, help, read) in counters {
            let counts = self.counts.clone();
            telemetry.register_samples(name, help, Kind::Gauge, move || one(read(&counts).load(Ordering::Relaxed)));
        }
        let authority = keys.clone();
        let help = "When the certificate that signs ends, in seconds since 1970";
        telemetry.register_samples("citadel_server_cert_chain_expiry_timestamp", help, Kind::Gauge, move || {
            authority.current().map_or_else(|_| Vec::new(), |current| one(seconds(current.authority.not_after())))
        });
        let roots = keys.clone();
        let help = "When the first of the roots ends, in seconds since 1970";
        telemetry.register_samples("citadel_server_root_cert_expiry_timestamp", help, Kind::Gauge, move || {
            let first = roots.current().ok().and_then(|current| current.first_root_end());
            first.map_or_else(Vec::new, |end| one(seconds(end)))
        });
        let placement = placement.clone();
        let help = "Pods in the index of what runs where";
        telemetry.register_samples("culvert_controller_pods", help, Kind::Gauge, move || one(placement.len() as u64));
        let help = "Whether this replica is the one that writes";
        telemetry
            .register_samples("culvert_controller_leader", help, Kind::Gauge, move || one(u64::from(*leads.borrow())));
    }
}

fn one(value: u64) -> Vec<Sample> {
    vec![Sample { labels: Vec::new(), value }]
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
