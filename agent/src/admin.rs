//! The admin endpoints: what this agent knows and does, for people and for `culvertctl`; metrics; readiness.
//!
//! What is shown comes through [`AdminState`], since other modules own it: this one knows HTTP, and nothing of what it
//! serves.

mod body;
mod dump;
mod places;
mod routes;
mod server;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;

use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogHandle;

pub use dump::{ReadSnapshot, mesh_members};
pub use server::{BindError, Bound, Endpoint, bind, bind_all};

/// Writes one JSON document, as it is at the moment of the call.
#[derive(Clone)]
pub struct Report(Arc<WriteJson>);

type WriteJson = dyn Fn(&mut dyn Write) -> serde_json::Result<()> + Send + Sync;

impl Report {
    /// A report of whatever `read` returns. It is called, and its value serialised, off the runtime's threads for each
    /// request; the value is written piece by piece, so prefer one that serialises itself from a snapshot.
    pub fn new<T: Serialize>(read: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |to| serde_json::to_writer_pretty(to, &read())))
    }

    /// A report that writes its own JSON, for what is too big to be one value.
    pub fn writing(write: impl Fn(&mut dyn Write) -> serde_json::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
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

/// Says why the agent is not ready yet, or what has to be said though it is: one line a reason.
pub type ReadinessCheck = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the endpoints show and do.
#[derive(Clone)]
pub struct AdminState {
    /// The members of `/config_dump`, in this order; most come from [`mesh_members`].
    pub config: Vec<(&'static str, Report)>,
    /// `/connections`: the live connections.
    pub connections: Report,
    /// `/redirection`: how each pod is enrolled, and what is wrong if anything is.
    pub redirection: Report,
    /// `/healthz/ready`: all of them must be content.
    pub readiness: Vec<ReadinessCheck>,
    /// What `/healthz/ready` adds where it says that the agent is ready.
    pub notes: ReadinessCheck,
    /// `/metrics`.
    pub telemetry: Telemetry,
    /// `/logging`.
    pub log: LogHandle,
    /// `/quitquitquit`: begins the drain.
    pub shutdown: Arc<dyn Fn() + Send + Sync>,
}

/// Writes `members` as one JSON object.
fn write_members(members: &[(&'static str, Report)], to: &mut dyn Write) -> io::Result<()> {
    let mut separator = "{";
    for (name, report) in members {
        write!(to, "{separator}\n{name:?}: ")?;
        report.write(to)?;
        separator = ",";
    }
    to.write_all(if members.is_empty() { b"{}\n" } else { b"\n}\n" })
}
