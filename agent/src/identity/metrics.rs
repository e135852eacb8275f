//! What Prometheus is told of the certificates.

use super::CertificateStore;
use crate::telemetry::{Kind, Sample, Telemetry};

impl CertificateStore {
    /// Adds the gauges of this store to `telemetry`: `culvert_certificates{state}`, to be alerted on where `failing` is
    /// not zero, and `culvert_certificate_not_after_seconds{identity}`, when each ends, in seconds since 1970. There are
    /// as many identities as service accounts on the node.
    pub fn register_metrics(&self, telemetry: &Telemetry) {
        let store = self.clone();
        let help = "Certificates by state: ready, pending (the first is awaited), failing (cannot be renewed)";
        telemetry.register_samples("culvert_certificates", help, Kind::Gauge, move || {
            let report = store.report();
            let of_state = |state: &'static str| Sample {
                labels: vec![("state", state.to_owned())],
                value: report.iter().filter(|certificate| certificate.state == state).count() as u64,
            };
            ["ready", "pending", "failing"].map(of_state).into()
        });
        let store = self.clone();
        let help = "When each certificate in use ends, in seconds since 1970";
        telemetry.register_samples("culvert_certificate_not_after_seconds", help, Kind::Gauge, move || {
            let report = store.report().into_iter();
            let sample = |(identity, value)| Sample { labels: vec![("identity", identity)], value };
            report.filter_map(|certificate| Some(sample((certificate.identity, certificate.not_after?)))).collect()
        });
    }
}
