//! Choosing an endpoint, and taking a place at it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use culvert_core::identity::Identity;
use culvert_core::service::Resolution;
use culvert_core::traffic::balance::{Candidate, Choice};
use culvert_core::traffic::hash::hash;
use culvert_core::traffic::policy::Algorithm;
use culvert_core::workload::Workload;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::cluster::{Cluster, MAX_ORIGINALS};
use super::dial::{Behalf, Sides};
use super::endpoint::{Endpoint, EndpointId, Health};
use super::error::Refused;
use super::external;
use super::lease::{ConnectionLease, Lease, Via};
use super::place::{Of, Open, Phase, Place};
use super::transport::Transport;
use super::{http1, http2};

thread_local! {
    // Chooses endpoints; nothing secret depends on it.
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// What the choice of an endpoint depends on beside the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Whom it is for, and where that one meant to go.
    pub sides: Sides,
    /// Who that is, where it has been proven: nodes are told, so that their policies can name the client.
    pub principal: Option<&'a Arc<Identity>>,
    /// The hash of the request or connection, where the cluster's algorithm is one.
    pub hash: Option<u64>,
    /// The endpoint that the client has a session with, as [`token_of`] names it: it is taken if that can be.
    pub session: Option<u64>,
    /// Where it has been tried already; to be empty unless others are to be preferred.
    pub tried: &'a [EndpointId],
    /// Whether it has been tried at all.
    pub is_retry: bool,
}

impl<'a> Selection<'a> {
    /// The first time, without a hash.
    pub fn first(client: SocketAddr, destination: SocketAddr, principal: Option<&'a Arc<Identity>>) -> Self {
        Self { sides: Sides { client, destination }, principal, hash: None, session: None, tried: &[], is_retry: false }
    }
}

impl Selection<'_> {
    fn behalf(&self) -> Behalf {
        Behalf { sides: self.sides, principal: self.principal.cloned() }
    }
}

/// The name of an endpoint in the sessions of clients: the same at every waypoint.
pub fn token_of(workload: &Workload, port: u16) -> u64 {
    hash(workload.uid.0.as_bytes()) ^ u64::from(port)
}

impl Cluster {
    /// Chooses an endpoint for a request, which came in HTTP of `version`, and takes a place under the limits.
    ///
    /// # Errors
    /// There is no endpoint, or no place; either at once.
    pub fn select(&self, selection: Selection<'_>, version: http::Version) -> Result<Lease, Refused> {
        let endpoint = self.choose(&selection)?;
        let (counts, behalf) = (&self.state.counts, selection.behalf());
        if selection.is_retry {
            counts.take_retry(self.pool(), self.retry_budget())?;
        }
        let (spare, via) = match self.speaks().is_http2(version) {
            false => (http1::take(&endpoint, &behalf), Via::Http1),
            true => (None, Via::Http2(http2::take(&endpoint, &behalf))),
        };
        let (admitted, phase) = match spare.is_some() || matches!(via, Via::Http2(Some(_))) {
            true => (counts.take_request(self.pool()), Phase::Request),
            false => (counts.take_pending(self.pool()), Phase::Pending),
        };
        if let Err(overflow) = admitted {
            if selection.is_retry {
                counts.end_retry();
            }
            if let Some(conn) = spare {
                http1::give(&endpoint, conn);
            }
            return Err(overflow.into());
        }
        let mut place = Place::taken(endpoint, selection.is_retry, phase);
        place.spare = spare;
        Ok(Lease { place, behalf, via })
    }

    /// Chooses an endpoint for a connection that carries whatever it likes, and takes a place under the limits.
    ///
    /// # Errors
    /// There is no endpoint, or no place; either at once.
    pub fn select_connection(&self, selection: Selection<'_>) -> Result<ConnectionLease, Refused> {
        let endpoint = self.choose(&selection)?;
        self.state.counts.take_connection(self.pool())?;
        let open = Open::taken(endpoint.clone(), Of::Bytes);
        Ok(ConnectionLease {
            place: Place::taken(endpoint, false, Phase::Connection),
            behalf: selection.behalf(),
            open,
        })
    }

    fn choose(&self, selection: &Selection<'_>) -> Result<Arc<Endpoint>, Refused> {
        if self.passes_through()
            && let Some(endpoint) = self.original(selection.sides.destination)
        {
            return Ok(endpoint);
        }
        if let Some(index) = selection.session.and_then(|session| self.of_session(session, selection.tried)) {
            return Ok(self.endpoints[index].clone());
        }
        let settings = self.balancer().settings();
        let now = settings.warmup.map(|_| Instant::now());
        let turn = if settings.algorithm == Algorithm::RoundRobin { self.state.turn() } else { 0 };
        let ignore_ejections = self.state.watch.load().as_ref().is_none_or(|watch| watch.is_ignored());
        let chosen = RNG.with_borrow_mut(|rng| {
            let mut choice = Choice { hash: selection.hash, turn, ignore_ejections, rng };
            let state = |candidate: &Candidate| self.endpoints[candidate.index].health.seen(selection.tried, now);
            self.balancer().choose(&mut choice, state).map(|candidate| candidate.index)
        });
        match chosen {
            Some(index) => Ok(self.endpoints[index].clone()),
            None => Err(Refused::NoEndpoint(self.why_none())),
        }
    }

    /// The endpoint of this name, unless it is gone, left out, or was tried.
    fn of_session(&self, session: u64, tried: &[EndpointId]) -> Option<usize> {
        let found =
            self.balancer().candidates().find(|candidate| token_of(&candidate.workload, candidate.port) == session)?;
        let seen = self.endpoints[found.index].health.seen(tried, None);
        (!seen.ejected && !seen.tried).then_some(found.index)
    }

    fn why_none(&self) -> Cow<'static, str> {
        let why = match self.endpoints.is_empty() {
            true => self.none(),
            false => "all are left out by outlierDetection: look at why they fail",
        };
        format!("{}: {why}", self.name()).into()
    }

    /// The endpoint at the address that was dialled. That of a service is no endpoint: it would lead back to a
    /// waypoint, or around it; then one of the endpoints is taken.
    fn original(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let shared = self.shared();
        let snapshot = shared.mesh.load();
        let own = self.own();
        let claimed = snapshot.service_by_address(address.ip(), &own.namespace);
        if claimed.is_some_and(|service| service.resolution != Resolution::Passthrough) {
            return None;
        }
        let workload = snapshot.workload_by_address(address.ip()).cloned();
        let workload = workload.unwrap_or_else(|| external::addressed(own, address.ip()));
        let service = self.service().map(|service| &**service);
        let transport = Transport::to(&snapshot, own, service, &workload, address.port());
        let candidate = Candidate { workload, port: address.port(), weight: 1, index: 0 };
        let mut originals = self.state.originals().lock().unwrap_or_else(PoisonError::into_inner);
        let known = originals.get(&address);
        if let Some(known) = known.filter(|known| known.is_spoken_to_by(&candidate, &transport, self.settings())) {
            return Some(known.clone());
        }
        let health = known.map_or_else(|| Health::new(None), |known| known.health.clone());
        if let Some(known) = known {
            known.retire();
        }
        if originals.len() >= MAX_ORIGINALS {
            // Whoever carries something goes on doing so; the rest is dialled again.
            originals.values().for_each(|endpoint| endpoint.retire());
            originals.clear();
        }
        let (settings, state, dialler) = (self.settings().clone(), self.state.clone(), shared.dialler.clone());
        let endpoint = Endpoint::new(candidate, transport, settings, health, state, dialler);
        originals.insert(address, endpoint.clone());
        Some(endpoint)
    }
}
