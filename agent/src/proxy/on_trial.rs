//! What policies on trial would have decided.

use std::net::{IpAddr, SocketAddr};

use culvert_core::policy::{AuthorizationPolicy, DryRun};

use crate::telemetry::PeerLine;

/// Says so in the log, a line for each.
pub(crate) fn tell(trials: &[DryRun], source: IpAddr, destination: SocketAddr) {
    for trial in trials.iter().filter(|_| PeerLine::DryRun.may_be_written()) {
        let AuthorizationPolicy { name, action, .. } = &*trial.policy;
        tracing::info!(
            policy = %name, ?action, rule = trial.rule, %source, %destination,
            "dry run: {}", if trial.rule.is_some() { "the policy matches" } else { "the policy does not match" },
        );
    }
}
