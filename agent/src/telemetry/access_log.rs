//! One line for each connection.

use super::connection::{ConnectionInfo, Open};

/// Where the lines of closed connections go. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct AccessLog {}

impl AccessLog {
    /// No access log at all.
    pub fn off() -> Self {
        Self {}
    }

    pub(super) fn opened(&self, info: &ConnectionInfo) {
        let _ = info;
    }

    pub(super) fn closed(&self, record: Box<Open>) {
        let _ = record.sent_and_received();
    }
}
