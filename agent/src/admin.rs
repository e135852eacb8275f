//! The admin endpoints: what this agent knows and does, for people and for `culvertctl`; metrics; readiness.
//!
//! What is shown comes through [`AdminState`], since other modules own it: this one knows HTTP, and nothing of what it
//! serves.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogHandle;

/// Writes one JSON document, as it is at the moment of the call.
#[derive(Clone)]
pub struct Report(Arc<dyn Fn(&mut dyn Write) -> serde_json::Result<()> + Send + Sync>);

impl Report {
    /// A report of whatever `read` returns. It is called, and its value serialised, off the runtime's threads for each
    /// request; the value is written piece by piece, so prefer one that serialises itself from a snapshot.
    pub fn new<T: Serialize>(read: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |to| serde_json::to_writer_pretty(to, &read())))
    }

    /// Writes the document.
    ///
    /// # Errors
    /// When the value cannot be serialised or `to` does not take it.
    pub fn write(&self, to: &mut dyn Write) -> serde_json::Result<()> {
        (self.0)(to)
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

/// Says why the agent is not ready yet, one line a reason; ready when there is none.
pub type ReadinessCheck = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the endpoints show and do.
#[derive(Clone)]
pub struct AdminState {
    /// The members of `/config_dump`, in this order: workloads, services, policies, certificates, options, findings…
    pub config: Vec<(&'static str, Report)>,
    /// `/connections`: the live connections.
    pub connections: Report,
    /// `/redirection`: how each pod is enrolled, and what is wrong if anything is.
    pub redirection: Report,
    /// `/healthz/ready`: all of them must be content.
    pub readiness: Vec<ReadinessCheck>,
    /// `/metrics`.
    pub telemetry: Telemetry,
    /// `/logging`.
    pub log: LogHandle,
    /// `/quitquitquit`: begins the drain.
    pub shutdown: Arc<dyn Fn() + Send + Sync>,
}
