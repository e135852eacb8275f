//! Connections that carry no requests: TCP, and TLS that is passed through.
//!
//! Policies decide first, by what can be known without HTTP; then the routes, by server name, addresses and port. One
//! endpoint is tried, as Envoy does: whether a second one should see a connection, nobody can tell.

mod through;

pub use self::through::Through;
use super::protocol::Replay;
use super::session::Session;
use crate::hbone::local::{LocalStream, Unanswered};
use crate::hbone::tunnel::ResponseHeaders;

/// The client's end.
pub(super) enum Client {
    /// It waits to hear whether its connection came about.
    Waiting(Unanswered),
    /// It has sent something.
    Open(Replay<LocalStream>),
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

/// Serves a connection of which nothing has been sent on.
pub(super) async fn serve(session: Session, sni: Option<Box<str>>, client: Client) {
    let through = Through::new(&session, sni);
    let Ok((snapshot, target)) = session.look() else { return client.refuse(503) };
    if !through.decide(&snapshot, &target).is_allowed() {
        return client.refuse(401);
    }
    drop(client.accept());
}
