//! A cluster: the endpoints of a port of a service, or of a part of it, with all that a DestinationRule says of them.
//!
//! A [`Cluster`] never changes. When what it is made of does, another takes its place; what is known of endpoints that
//! are in both, and their connections where they are spoken to as before, goes over to it.

mod build;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use culvert_core::mesh::Snapshot;
use culvert_core::service::Service;
use culvert_core::traffic::balance::Balancer;
use culvert_core::traffic::policy::{RetryBudget, TrafficPolicy};
use culvert_core::workload::{Workload, WorkloadUid};
use tokio::time::Instant;

pub(super) use self::build::{MadeOf, Parts, Subject};
use super::dial::Dialler;
use super::endpoint::{Endpoint, Settings};
use super::outliers::Watch;
use super::usage::Counts;

/// Addresses that requests are passed through to, and of which something is kept.
pub(super) const MAX_ORIGINALS: usize = 4096;

/// The endpoints of one target, and how they are spoken to.
pub struct Cluster {
    service: Option<Arc<Service>>,
    policy: TrafficPolicy,
    settings: Arc<Settings>,
    balancer: Balancer,
    /// By [`Candidate::index`](culvert_core::traffic::balance::Candidate::index).
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// Why there is none.
    none: &'static str,
    speaks: Speaks,
    /// Requests go where the client meant them to, whoever that is.
    passes_through: bool,
    pub(super) state: Arc<State>,
    shared: Arc<Shared>,
    made_of: MadeOf,
}

/// What every cluster is made with.
pub(super) struct Shared {
    pub(super) mesh: Arc<ArcSwap<Snapshot>>,
    /// The waypoint.
    pub(super) own: Arc<Workload>,
    pub(super) dialler: Arc<Dialler>,
}

/// What outlives a cluster that another takes the place of.
pub(super) struct State {
    /// As metrics name it: `outbound|PORT|SUBSET|HOST`.
    pub(super) name: String,
    pub(super) counts: Counts,
    pub(super) watch: ArcSwapOption<Watch>,
    turn: AtomicU64,
    originals: Mutex<Originals>,
}

/// Endpoints by the addresses that requests are passed through to.
type Originals = HashMap<SocketAddr, Arc<Endpoint>>;

/// The protocol of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// That of the client.
    AsClient,
}

impl Speaks {
    pub(super) fn is_http2(self, client: http::Version) -> bool {
        match self {
            Self::Http1 => false,
            Self::Http2 => true,
            Self::AsClient => client == http::Version::HTTP_2,
        }
    }
}

impl State {
    pub(super) fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            counts: Counts::default(),
            watch: ArcSwapOption::empty(),
            turn: AtomicU64::new(0),
            originals: Mutex::default(),
        })
    }

    pub(super) fn originals(&self) -> &Mutex<Originals> {
        &self.originals
    }

    /// Counts on.
    pub(super) fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl Cluster {
    /// How the service is spoken to.
    pub fn policy(&self) -> &TrafficPolicy {
        &self.policy
    }

    /// The limits of its connections: those of the policy, or else the defaults.
    pub fn pool(&self) -> &culvert_core::traffic::policy::ConnectionPool {
        &self.settings.pool
    }

    /// Which endpoint is taken, as far as that depends on the mesh alone.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// The service; `None` for a workload that was addressed itself.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// The name that its metrics have: `outbound|PORT|SUBSET|HOST`.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    pub(super) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn speaks(&self) -> Speaks {
        self.speaks
    }

    pub(super) fn passes_through(&self) -> bool {
        self.passes_through
    }

    pub(super) fn none(&self) -> &'static str {
        self.none
    }

    pub(super) fn retry_budget(&self) -> Option<&RetryBudget> {
        self.policy.retry_budget.as_ref()
    }

    /// Keeps no connection from here on, but for those that carry something.
    pub(super) fn retire(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.retire());
        let originals = std::mem::take(&mut *self.state.originals.lock().unwrap_or_else(PoisonError::into_inner));
        originals.values().for_each(|endpoint| endpoint.retire());
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn expire(&self, now: Instant) {
        self.endpoints.iter().for_each(|endpoint| endpoint.expire(now));
        let originals = self.state.originals.lock().unwrap_or_else(PoisonError::into_inner);
        originals.values().for_each(|endpoint| endpoint.expire(now));
    }
}
