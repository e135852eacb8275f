//! Everything between "this request goes to this target" and bytes at an endpoint.
//!
//! | module | what it is for |
//! |---|---|
//! | `registry` | the clusters there are; each is kept for as long as what it is made of stays the same |
//! | `cluster` | endpoints of a service, and what DestinationRules say of them |
//! | [`select`] | choosing an endpoint, and taking a place under the limits |
//! | [`lease`], `exchange` | a request's way there, and its answer's way back |
//! | `http1`, `http2` | connections that carry requests, kept for further ones |
//! | `transport`, `dial`, `tls`, `proxy_protocol`, [`stream`] | how an endpoint is reached, and the bytes that go there |
//! | `endpoint`, `external` | what is known of an endpoint; those that no object describes |
//! | `usage`, `place` | limits, and the places under them |
//! | `outliers` | which endpoints are left out for a while |
//! | [`error`] | what goes wrong, as access logs and retries see it |
//! | `metrics` | what of all this operators see |
//!
//! Connections that carry requests belong to the worker that made them, as sessions do: a request goes to its endpoint
//! and back without leaving its thread. Limits and outlier detection are of all workers together.

mod cluster;
mod dial;
mod endpoint;
pub mod error;
mod exchange;
mod external;
mod head;
mod http1;
mod http2;
pub mod lease;
mod metrics;
mod outliers;
mod place;
mod proxy_protocol;
mod registry;
pub mod select;
pub mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod usage;
mod worker;

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::route::decide::Target;
use culvert_core::workload::Workload;
use tokio::time::{Instant, MissedTickBehavior};

use self::cluster::Shared;
use self::dial::Dialler;
use self::metrics::ClusterCollector;
use self::registry::Registry;
use self::worker::PerWorker;
use crate::hbone::buffers::Buffers;
use crate::hbone::client::{Origin, Pool};
use crate::hbone::vetted::Vetted;
use crate::identity::CertificateStore;
use crate::proxy::baggage::baggage_of;
use crate::telemetry::Telemetry;
use crate::workers::Workers;

pub use self::cluster::Cluster;
pub use self::dial::Sides;
pub use self::endpoint::EndpointId;
pub use self::error::{ConnectFailure, Refused, SendError};
pub use self::lease::{ConnectionLease, Lease, Reporter};
pub use self::select::{Selection, token_of};
pub use self::stream::Stream;

/// How often it is looked for connections that have been idle for too long.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// How many of those looks go by before it is looked for what the mesh has no more.
const FORGET_EVERY: u32 = 30;

/// The clusters of a waypoint. Clones are one.
#[derive(Clone)]
pub struct Upstreams(Arc<Inner>);

struct Inner {
    registry: Registry,
    dialler: Arc<Dialler>,
}

/// What [`Upstreams`] are made of.
pub struct Setup<'a> {
    /// The mesh.
    pub mesh: Arc<ArcSwap<Snapshot>>,
    /// The waypoint itself: its namespace's DestinationRules come first, and where it runs is what endpoints are near.
    pub own: Arc<Workload>,
    /// Whom it speaks as.
    pub identity: &'a Identity,
    /// Its certificate.
    pub certificates: &'a CertificateStore,
    /// The threads that carry traffic; each has tunnels of its own.
    pub workers: &'a Workers,
    /// What its tunnels hold unread.
    pub buffers: Arc<Buffers>,
    /// Where its metrics are shown.
    pub telemetry: &'a Telemetry,
}

impl Upstreams {
    /// No clusters yet; each is made when it is asked for.
    pub fn new(setup: Setup<'_>) -> Self {
        let Setup { mesh, own, identity, certificates, workers, buffers, telemetry } = setup;
        let tunnels = PerWorker::new(workers.count(), |at| {
            Pool::new(Origin::Here, certificates, identity, workers.only(at), 0, buffers.clone())
        });
        let baggage = baggage_of(&own).to_string().into();
        let dialler = Arc::new(Dialler::new(tunnels, baggage, telemetry.dns().on_demand.clone()));
        let registry = Registry::new(Arc::new(Shared { mesh, own, dialler: dialler.clone() }));
        let inner = Arc::new(Inner { registry, dialler });
        telemetry.register_collector(Box::new(ClusterCollector(Arc::downgrade(&inner))));
        workers.get(0).spawn(tend(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Endpoints, limits and connections of what a route goes to.
    pub fn cluster(&self, snapshot: &Snapshot, target: &Target) -> Arc<Cluster> {
        self.0.registry.target(snapshot, target)
    }

    /// The same for a workload that was addressed itself.
    pub fn workload(&self, snapshot: &Snapshot, workload: &Arc<Workload>, port: u16) -> Arc<Cluster> {
        self.0.registry.workload(snapshot, workload, port)
    }

    /// The tunnels there are, to be vetted when the mesh trusts others.
    pub fn tunnels(&self) -> Vec<Vetted> {
        self.0.dialler.tunnels().flat_map(Pool::tunnels).collect()
    }

    /// Has every tunnel finish what it carries and close; no other is opened.
    pub fn drain(&self) {
        self.0.dialler.tunnels().for_each(Pool::drain);
    }
}

/// Closes what is idle for too long and forgets what is gone, for as long as there are clusters.
async fn tend(upstreams: Weak<Inner>) {
    let mut ticks = tokio::time::interval(TEND_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0_u32;
    loop {
        ticks.tick().await;
        let Some(upstreams) = upstreams.upgrade() else { return };
        upstreams.registry.expire(Instant::now());
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(FORGET_EVERY) {
            upstreams.registry.forget();
        }
    }
}
