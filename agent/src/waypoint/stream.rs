//! Connections that carry no requests: TCP, and TLS that is passed through.
//!
//! Policies decide first, by what can be known without HTTP; then the routes, by server name, addresses and port. One
//! endpoint is tried, as Envoy does: whether a second one should see a connection, nobody can tell.

mod through;
mod way;

use std::borrow::Cow;
use std::sync::Arc;

use culvert_core::mesh::Snapshot;

pub use self::through::Through;
use self::way::Way;
use super::protocol::Replay;
use super::session::Session;
use crate::hbone::local::{LocalStream, Unanswered};
use crate::hbone::tunnel::ResponseHeaders;
use crate::proxy::live::{Admission, EndReason, Flow};
use crate::proxy::pump::{Limits, pump};
use crate::telemetry::{ConnectionInfo, Direction, HboneTarget, Outcome, ResponseFlags};

/// The client's end.
pub(super) enum Client {
    /// It waits to hear whether its connection came about.
    Waiting(Unanswered),
    /// It has sent something.
    Open(Replay<LocalStream>),
}

/// Why a connection goes nowhere.
struct Refusal {
    /// The status that a client is told which waits.
    status: u16,
    flags: ResponseFlags,
    why: Cow<'static, str>,
}

/// Serves a connection of which nothing has been sent on.
pub(super) async fn serve(session: Session, sni: Option<Box<str>>, client: Client) {
    let through = Through::new(&session, sni);
    let mut info = describe(&session);
    let (snapshot, way) = match find(&session, &through, &mut info) {
        Ok(found) => found,
        Err(Refusal { status, flags, why }) => {
            session.shared.telemetry.connection(info).close(Outcome::failed(flags, why));
            return client.refuse(status);
        }
    };
    let flow = admit(&session, &snapshot, through, info);
    drop(snapshot);
    let limits = Limits { idle: way.cluster.pool().tcp_idle, open: way.cluster.pool().max_connection_duration };
    match way.lease.connect().await {
        Ok(server) => pump(client.accept(), server, flow, limits).await,
        Err(error) => {
            flow.close(Outcome::failed(ResponseFlags::ConnectFailure, error.to_string()));
            client.refuse(503);
        }
    }
}

/// Finds where a connection goes, if it may, and adds to `info` what that tells.
fn find(session: &Session, through: &Through, info: &mut ConnectionInfo) -> Result<(Arc<Snapshot>, Way), Refusal> {
    let (snapshot, target) = session.look().map_err(|why| Refusal::failed(why.status(), why.to_string()))?;
    info.service = target.service().cloned();
    let decision = through.judge(&snapshot, &target);
    if !decision.is_allowed() {
        return Err(Refusal { status: 401, flags: ResponseFlags::Denied, why: decision.reason.to_string().into() });
    }
    let way = Way::find(session, &snapshot, &target, through.sni())?;
    way.describe(info);
    Ok((snapshot, way))
}

/// Counts a connection that `seen` allows as open and puts it on the list of live ones.
fn admit(session: &Session, seen: &Arc<Snapshot>, through: Through, info: ConnectionInfo) -> Flow {
    let shared = &session.shared;
    let (record, socket) = (shared.telemetry.connection(info), shared.telemetry.socket(Direction::Waypoint));
    let flow = shared.connections.admit(Admission::Waypoint(Box::new(through)), record, socket);
    // A change between the decision and the listing has not found the connection on the list.
    let newest = shared.mesh.load();
    let holds =
        |admission: &Admission| matches!(admission, Admission::Waypoint(through) if through.is_allowed(&newest));
    if !Arc::ptr_eq(&newest, seen) && !flow.admission().is_some_and(holds) {
        flow.end(EndReason::PolicyChanged);
    }
    flow
}

/// What is known of a connection before it is known where it goes.
fn describe(session: &Session) -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Waypoint,
        source_addr: session.client_address,
        source: session.client.clone(),
        source_identity: session.principal.clone(),
        destination_addr: session.destination,
        hbone_target: Some(HboneTarget::Addr(session.destination)),
        destination: None,
        destination_identity: None,
        service: None,
        security: session.security(),
    }
}

impl Client {
    /// The connection has come about.
    fn accept(self) -> Replay<LocalStream> {
        match self {
            Self::Waiting(unanswered) => Replay::new(unanswered.accept(ResponseHeaders::new())),
            Self::Open(stream) => stream,
        }
    }

    /// It has not: the client is told so, or else its stream is reset.
    fn refuse(self, status: u16) {
        if let Self::Waiting(unanswered) = self {
            unanswered.refuse(status);
        }
    }
}

impl Refusal {
    /// There is nothing to take it.
    fn failed(status: u16, why: impl Into<Cow<'static, str>>) -> Self {
        Self { status, flags: ResponseFlags::ConnectFailure, why: why.into() }
    }
}
