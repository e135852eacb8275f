//! The live connections of a pod, and the means to end any of them from outside.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use culvert_core::address::OriginalDst;
use culvert_core::identity::Identity;
use serde::Serialize;

use crate::telemetry::{ConnectionRecord, Direction, Outcome, ResponseFlags, SocketGuard};
use crate::waypoint::Through;

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EndReason {
    /// What allowed it does not allow it any more.
    PolicyChanged = 1,
    /// The pod has left the mesh, or the agent stops, and the time to finish is over.
    Drained = 2,
}

impl EndReason {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::PolicyChanged => Outcome::failed(ResponseFlags::Denied, "connection closed due to policy change"),
            Self::Drained => Outcome::error("connection closed because the pod or its proxy is going away"),
        }
    }
}

/// What a connection was allowed by, so that the question can be asked again.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Into the pod.
    Inbound {
        /// Who the peer proved to be; `None` in plaintext.
        principal: Option<Arc<Identity>>,
        /// On whose behalf the peer says that it calls.
        client: Option<Arc<Identity>>,
        /// Where it comes from.
        source_ip: IpAddr,
        /// The pod's address and port.
        destination: SocketAddr,
    },
    /// Out of the pod.
    Outbound {
        /// What the application dialled.
        destination: OriginalDst,
    },
    /// Through a waypoint.
    Waypoint(Box<Through>),
}

/// A handle to end one connection.
#[derive(Debug, Default)]
struct End {
    reason: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// One live connection.
#[derive(Debug)]
pub struct Live {
    id: u64,
    admission: Admission,
    /// `None` only while being dropped.
    record: Option<ConnectionRecord>,
    outcome: OnceLock<Outcome>,
    end: End,
    _socket: SocketGuard,
}

impl Drop for Live {
    /// The record is closed here, since a listing may hold the connection a little longer than who serves it.
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            record.close(self.outcome.take().unwrap_or_else(|| Outcome::error("connection dropped by the proxy")));
        }
    }
}

impl Live {
    /// What it was allowed by.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Asks whoever serves the connection to end it.
    pub fn end(&self, reason: EndReason) {
        self.end.reason.store(reason as u8, Ordering::Release);
        let waker = self.end.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn describe(&self) -> Option<LiveReport> {
        let record = self.record.as_ref()?;
        let info = record.info()?;
        let (request_bytes, response_bytes) = record.bytes();
        let workload =
            |w: &Option<Arc<culvert_core::workload::Workload>>| w.as_ref().map(|w| w.namespaced_name().to_string());
        Some(LiveReport {
            direction: info.direction,
            source: info.source_addr,
            source_workload: workload(&info.source),
            source_identity: info.source_identity.as_ref().map(|i| i.to_string()),
            destination: info.destination_addr,
            hbone_target: info.hbone_target.as_ref().map(|t| t.to_string()),
            destination_workload: workload(&info.destination),
            destination_identity: info.destination_identity.as_ref().map(|i| i.to_string()),
            service: info.service.as_ref().map(|s| s.key.hostname.to_string()),
            request_bytes,
            response_bytes,
            age_seconds: record.age().as_secs_f64(),
        })
    }
}

/// A live connection as `/connections` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveReport {
    #[serde(serialize_with = "direction")]
    direction: Direction,
    source: SocketAddr,
    source_workload: Option<String>,
    source_identity: Option<String>,
    destination: SocketAddr,
    hbone_target: Option<String>,
    destination_workload: Option<String>,
    destination_identity: Option<String>,
    service: Option<String>,
    request_bytes: u64,
    response_bytes: u64,
    age_seconds: f64,
}

fn direction<S: serde::Serializer>(direction: &Direction, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(direction.as_str())
}

/// Every live connection of one pod.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Live>>>,
}

impl Connections {
    /// Adds a connection that has been admitted; `socket` counts it as open.
    pub fn admit(self: &Arc<Self>, admission: Admission, record: ConnectionRecord, socket: SocketGuard) -> Flow {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            admission,
            record: Some(record),
            outcome: OnceLock::new(),
            end: End::default(),
            _socket: socket,
        });
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(id, live.clone());
        Flow { live: Some(live), all: self.clone() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, now. The list is a copy: nothing is locked while it is used.
    pub fn list(&self) -> Vec<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Ends all of them.
    pub fn end_all(&self, reason: EndReason) {
        for live in self.list() {
            live.end(reason);
        }
    }

    /// What `/connections` shows.
    pub fn report(&self) -> Vec<LiveReport> {
        self.list().iter().filter_map(|live| live.describe()).collect()
    }
}

/// The serving side of a live connection: counts its bytes, learns when it is to end, and takes it off the list.
///
/// Dropping it closes the record too, as ended by the proxy.
#[derive(Debug)]
pub struct Flow {
    live: Option<Arc<Live>>,
    all: Arc<Connections>,
}

impl Flow {
    /// The account of what is accounted for elsewhere: it counts nothing, and nobody ends it from outside.
    pub fn unlisted() -> Self {
        static NONE: LazyLock<Arc<Connections>> = LazyLock::new(Arc::default);
        Self { live: None, all: NONE.clone() }
    }

    /// What the connection was allowed by; `None` once it is over.
    pub fn admission(&self) -> Option<&Admission> {
        self.live.as_ref().map(|live| live.admission())
    }

    /// Asks whoever serves the connection to end it.
    pub fn end(&self, reason: EndReason) {
        if let Some(live) = &self.live {
            live.end(reason);
        }
    }

    /// Counts bytes from the client to the server.
    pub fn request_bytes(&self, n: usize) {
        if let Some(record) = self.live.as_ref().and_then(|live| live.record.as_ref()) {
            record.add_request_bytes(n as u64);
        }
    }

    /// Counts bytes from the server to the client.
    pub fn response_bytes(&self, n: usize) {
        if let Some(record) = self.live.as_ref().and_then(|live| live.record.as_ref()) {
            record.add_response_bytes(n as u64);
        }
    }

    /// Sets whom to wake when the connection is to end.
    pub fn on_end(&self, waker: &Waker) {
        if let Some(live) = &self.live {
            *live.end.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        }
    }

    /// Why the connection is to end, if it is.
    pub fn ended(&self) -> Option<EndReason> {
        match self.live.as_ref()?.end.reason.load(Ordering::Acquire) {
            1 => Some(EndReason::PolicyChanged),
            2 => Some(EndReason::Drained),
            _ => None,
        }
    }

    /// The connection is over.
    pub fn close(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    /// The connection was ended from outside.
    pub fn close_ended(self, reason: EndReason) {
        self.close(reason.outcome());
    }

    fn finish(&mut self, outcome: Outcome) {
        let Some(live) = self.live.take() else { return };
        self.all.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&live.id);
        // Only this side, once, sets it.
        let _ = live.outcome.set(outcome);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            self.all.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&live.id);
        }
    }
}
