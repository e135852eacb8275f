//! How a waypoint ends.

use std::time::Duration;

use super::Coming;
use super::shared::Shared;
use crate::proxy::live::EndReason;
use crate::telemetry::Telemetry;

/// How long everything goes on as before once the waypoint has said that it is not ready any more: until then, nodes that
/// have not heard send it their connections. At most a fifth of the time there is.
const NOTICE: Duration = Duration::from_secs(2);
/// How long it takes at the most to reset what has not finished in time.
const ENDING: Duration = Duration::from_secs(1);
/// How long it waits for the access log.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether everything is over.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be done at the end.
pub(super) struct Ending {
    pub(super) coming: Coming,
    pub(super) telemetry: Telemetry,
    /// How long what is under way has to finish.
    pub(super) within: Duration,
}

impl Ending {
    /// Lets requests and connections finish.
    pub(super) async fn end(self) {
        self.coming.stopping.send_replace(true);
        if let Some(shared) = self.coming.shared.get() {
            drain(shared, &self.coming, self.within).await;
        }
        self.telemetry.access_log().flush(FLUSH_WITHIN);
    }
}

async fn drain(shared: &Shared, coming: &Coming, within: Duration) {
    let is_over = || shared.tunnels.len() == 0 && shared.connections.is_empty();
    let notice = NOTICE.min(within / 5);
    let _ = tokio::time::timeout(notice, until(is_over)).await;
    // Nothing is accepted any more, HTTP connections end with the requests that they have, and peers are told to go
    // elsewhere.
    coming.draining.send_replace(true);
    shared.tunnels.drain();
    if tokio::time::timeout(within.saturating_sub(notice), until(is_over)).await.is_err() {
        shared.connections.end_all(EndReason::Drained);
        let _ = tokio::time::timeout(ENDING, until(|| shared.connections.is_empty())).await;
    }
    // Nothing is left that would go through these.
    shared.upstreams.drain();
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(LOOK).await;
    }
}
