//! Places under the limits, given back when dropped.

use std::sync::Arc;

use culvert_core::traffic::policy::Overflow;

use super::endpoint::Endpoint;
use super::http1;
use super::http2;

/// The place of a connection, from before it is dialled until its last byte.
pub(super) struct Open {
    endpoint: Arc<Endpoint>,
    of: Of,
}

/// Who makes use of a connection, and on which worker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// Requests, one at a time.
    Http1(usize),
    /// Requests, many at a time.
    Http2(usize),
    /// Bytes.
    Bytes,
}

impl Open {
    /// A place that has been taken.
    pub(super) fn taken(endpoint: Arc<Endpoint>, of: Of) -> Self {
        Self { endpoint, of }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.endpoint.cluster.counts.end_connection();
        match self.of {
            Of::Http1(worker) => http1::closed(&self.endpoint, worker),
            Of::Http2(worker) => http2::closed(&self.endpoint, worker),
            Of::Bytes => {}
        }
    }
}

/// The place of a request, or of a connection that carries none, at an endpoint.
pub(super) struct Place {
    endpoint: Arc<Endpoint>,
    is_retry: bool,
    phase: Phase,
    /// A connection that it has, and that goes back if it is not made use of.
    pub(super) spare: Option<http1::Conn>,
}

/// What the place counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request that waits for a connection.
    Pending,
    /// A request under way.
    Request,
    /// No request at all.
    Connection,
}

impl Place {
    /// A place that has been taken among those of `phase`, and of retries if it is one.
    pub(super) fn taken(endpoint: Arc<Endpoint>, is_retry: bool, phase: Phase) -> Self {
        endpoint.enter();
        Self { endpoint, is_retry, phase, spare: None }
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(super) fn clone_endpoint(&self) -> Arc<Endpoint> {
        self.endpoint.clone()
    }

    /// The request has found its connection.
    pub(super) fn begin(&mut self) -> Result<(), Overflow> {
        if self.phase == Phase::Pending {
            let endpoint = &self.endpoint;
            endpoint.cluster.counts.take_request(endpoint.pool())?;
            endpoint.cluster.counts.end_pending();
            self.phase = Phase::Request;
        }
        Ok(())
    }

    /// The request waits for another connection, as the one that it had is gone.
    pub(super) fn wait(&mut self) -> Result<(), Overflow> {
        if self.phase == Phase::Request {
            let endpoint = &self.endpoint;
            endpoint.cluster.counts.take_pending(endpoint.pool())?;
            endpoint.cluster.counts.end_request();
            self.phase = Phase::Pending;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(conn) = self.spare.take() {
            http1::give(&self.endpoint, conn);
        }
        let counts = &self.endpoint.cluster.counts;
        match self.phase {
            Phase::Pending => counts.end_pending(),
            Phase::Request => counts.end_request(),
            Phase::Connection => {}
        }
        if self.is_retry {
            counts.end_retry();
        }
        self.endpoint.leave();
    }
}
