//! A request's way to the endpoint that was chosen for it.

use culvert_core::traffic::balance::Candidate;
use culvert_core::traffic::outliers::Outcome;
use http::{Request, Response};

use super::dial::Behalf;
use super::endpoint::EndpointId;
use super::error::{ConnectFailure, SendError, of_hyper};
use super::exchange::{self, Over};
use super::place::{Open, Place};
use super::stream::Stream;
use super::{head, http1, http2};
use crate::waypoint::body::Body;

/// How often a request goes to another connection because the one that it was to take had been closed by the endpoint.
/// Each time costs a connection that is closed anyway.
const MAX_STALE: u32 = 8;

/// A place for one request at an endpoint. To drop it unused is to give the place back.
#[must_use = "dropping it gives the place back"]
pub struct Lease {
    pub(super) place: Place,
    pub(super) behalf: Behalf,
    pub(super) via: Via,
}

/// What the request goes over, if that is there already.
pub(super) enum Via {
    /// A connection for it alone, which its place has.
    Http1,
    /// One that it shares.
    Http2(Option<http2::Ticket>),
}

impl Lease {
    /// The endpoint.
    pub fn endpoint(&self) -> &Candidate {
        &self.place.endpoint().candidate
    }

    /// Its name, for [`Selection::tried`](super::Selection::tried).
    pub fn id(&self) -> EndpointId {
        self.place.endpoint().health.id
    }

    /// Whether it is spoken to in HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.via, Via::Http2(_))
    }

    /// Tells outlier detection of the endpoint what only the caller knows.
    pub fn reporter(&self) -> Reporter {
        Reporter(self.place.clone_endpoint())
    }

    /// Sends a request, and returns the head of its answer as soon as that is there. The body of the answer keeps the
    /// place until its end; whoever drops this future, or the body, gives it up.
    ///
    /// The request's target, authority and version are put as the endpoint's protocol wants them.
    ///
    /// # Errors
    /// There is no answer. A request of which certainly nothing was sent, since a connection that was kept turned out
    /// to be closed, has been sent over another.
    pub async fn send(self, request: Request<Body>) -> Result<Response<Body>, SendError> {
        self.send_from(&mut Some(request)).await
    }

    /// The same: what was not sent is still in `request` afterwards, as the endpoint's protocol has it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send_from(self, request: &mut Option<Request<Body>>) -> Result<Response<Body>, SendError> {
        let Self { place, behalf, via } = self;
        match via {
            Via::Http1 => alone(place, &behalf, request).await,
            Via::Http2(ticket) => among_others(place, &behalf, ticket, request).await,
        }
    }
}

/// Over HTTP/1.1.
async fn alone(
    mut place: Place,
    behalf: &Behalf,
    request: &mut Option<Request<Body>>,
) -> Result<Response<Body>, SendError> {
    request.iter_mut().for_each(head::for_http1);
    let is_connect = request.as_ref().is_some_and(|request| request.method() == http::Method::CONNECT);
    for _ in 0..MAX_STALE {
        let mut conn = match place.spare.take() {
            Some(conn) => conn,
            None => {
                place.wait()?;
                http1::wait(place.endpoint(), behalf).await?
            }
        };
        place.begin()?;
        // One that is handed on may be about to finish what it carried.
        let sent = match conn.sender.ready().await {
            Ok(()) => {
                let Some(request) = request.take() else { break };
                conn.served += 1;
                conn.sender.try_send_request(request).await
            }
            Err(_) => {
                place.spare = http1::take(place.endpoint(), behalf);
                continue;
            }
        };
        match sent {
            Ok(response) => return Ok(exchange::begin(response, place, Over::Http1(conn), is_connect)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    *request = Some(unsent);
                    place.spare = http1::take(place.endpoint(), behalf);
                }
                None => return Err(failed(&place, of_hyper(&error.into_error(), true))),
            },
        }
    }
    Err(failed(&place, closed()))
}

/// Over HTTP/2.
async fn among_others(
    mut place: Place,
    behalf: &Behalf,
    mut spare: Option<http2::Ticket>,
    request: &mut Option<Request<Body>>,
) -> Result<Response<Body>, SendError> {
    let is_tls = place.endpoint().settings.tls.is_some();
    request.iter_mut().for_each(|request| head::for_http2(request, is_tls));
    for _ in 0..MAX_STALE {
        let ticket = match spare.take() {
            Some(ticket) => ticket,
            None => {
                place.wait()?;
                http2::wait(place.endpoint(), behalf).await?
            }
        };
        place.begin()?;
        let Some(head) = request.take() else { break };
        match ticket.sender().try_send_request(head).await {
            Ok(response) => return Ok(exchange::begin(response, place, Over::Http2(ticket), false)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    *request = Some(unsent);
                    spare = http2::take(place.endpoint(), behalf);
                }
                None => return Err(failed(&place, of_hyper(&error.into_error(), true))),
            },
        }
    }
    Err(failed(&place, closed()))
}

/// Counts it against the endpoint, if it is its failure.
fn failed(place: &Place, error: SendError) -> SendError {
    if error.is_answers() {
        place.endpoint().report(Outcome::LocalFailure);
    }
    error
}

fn closed() -> SendError {
    SendError::Reset { request_sent: false, why: "it closes every connection before it is asked for anything".into() }
}

/// A place for one connection at an endpoint, which carries whatever it likes.
#[must_use = "dropping it gives the place back"]
pub struct ConnectionLease {
    pub(super) place: Place,
    pub(super) behalf: Behalf,
    pub(super) open: Open,
}

impl ConnectionLease {
    /// The endpoint.
    pub fn endpoint(&self) -> &Candidate {
        &self.place.endpoint().candidate
    }

    /// Its name, for [`Selection::tried`](super::Selection::tried).
    pub fn id(&self) -> EndpointId {
        self.place.endpoint().health.id
    }

    /// Connects. The stream keeps the place until it is dropped.
    ///
    /// # Errors
    /// There is no connection, and what to check.
    pub async fn connect(self) -> Result<Stream, ConnectFailure> {
        let Self { place, behalf, open } = self;
        let io = place.endpoint().connect(&behalf, None).await?;
        place.endpoint().report(Outcome::Connected);
        let stream = Stream::new(io, open);
        stream.kept().keep(place);
        Ok(stream)
    }
}

/// Tells outlier detection of an endpoint how something ended there.
#[derive(Clone)]
pub struct Reporter(std::sync::Arc<super::endpoint::Endpoint>);

impl Reporter {
    /// It took too long, and was given up.
    pub fn timed_out(&self) {
        self.0.report(Outcome::LocalFailure);
    }
}
