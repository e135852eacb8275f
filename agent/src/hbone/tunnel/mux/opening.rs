//! How streams come to carry bytes: asked for, dialled or decided about, and answered.

use std::sync::atomic::Ordering;
use std::task::Context;

use culvert_core::hbone::h2::{Connection, ErrorCode, Request, Response, StreamId};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{GIVEN_UP, Mux};
use crate::hbone::app::App;
use crate::hbone::local::{ConnectError, Decision};
use crate::hbone::tunnel::stream::Phase;
use crate::hbone::tunnel::{Accepted, ResponseHeaders, Role};
use crate::proxy::live::Flow;
use crate::telemetry::{Outcome, ResponseFlags};

impl Mux {
    /// A peer asks for a stream.
    pub(super) fn request(&mut self, id: StreamId, request: Request, end_stream: bool) {
        let Role::Server(accept) = &self.role else { return };
        match accept.accept(request) {
            Accepted::Dial { app, flow, headers } => self.take_on(id, App::Socket(app), flow, headers),
            Accepted::Serve { end, flow } => self.take_on(id, App::Local(end), flow, ResponseHeaders::new()),
            Accepted::Refuse(status) => return self.answer_and_end(id, status),
        }
        if end_stream {
            self.peer_ended(id);
        }
    }

    fn take_on(&mut self, id: StreamId, app: App, flow: Flow, headers: ResponseHeaders) {
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
        self.insert(id, app, flow, Phase::Dialling { since: Instant::now(), headers });
    }

    /// Whether bytes flow from now on.
    pub(super) fn opens(&mut self, slot: usize) -> bool {
        let Some(stream) = self.streams.get(slot) else { return false };
        match (&stream.phase, &stream.app) {
            (Phase::Open, _) => true,
            (Phase::Dialling { .. }, App::Socket(_)) => self.dialled(slot),
            (Phase::Dialling { .. }, App::Local(end)) => match end.decision() {
                Some(decision) => self.decided(slot, decision),
                None => false,
            },
            (Phase::Opening(_), App::Local(end)) if end.is_dropped() => {
                self.h2.reset(stream.id, ErrorCode::CANCEL);
                if let Some(stream) = self.remove(slot) {
                    stream.close(Outcome::error(GIVEN_UP));
                }
                false
            }
            (Phase::Opening(_), _) => false,
        }
    }

    /// What an application in this process makes of the stream; answers the peer.
    fn decided(&mut self, slot: usize, decision: Decision) -> bool {
        match decision {
            Decision::Accept(headers) => {
                let stream = &mut self.streams[slot];
                stream.phase = Phase::Open;
                respond(&mut self.h2, stream.id, &headers);
                true
            }
            Decision::Refuse(status) => {
                if let Some(stream) = self.remove(slot) {
                    self.answer_and_end(stream.id, status);
                    let flags = ConnectError::Refused { status }.flags();
                    stream.close(Outcome::failed(flags, format!("answered with status {status}")));
                }
                false
            }
        }
    }

    /// Whether the application has accepted; answers the peer either way.
    fn dialled(&mut self, slot: usize) -> bool {
        let stream = &mut self.streams[slot];
        let App::Socket(socket) = &stream.app else { return false };
        if socket.poll_write_ready(&mut Context::from_waker(&stream.waker)).is_pending() {
            return false;
        }
        let failure = match socket.take_error() {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error),
        };
        if let Some(error) = failure {
            self.dial_failed(slot, &format!("the application could not be reached: {error}"));
            return false;
        }
        let Phase::Dialling { headers, .. } = std::mem::replace(&mut stream.phase, Phase::Open) else { return true };
        respond(&mut self.h2, stream.id, &headers);
        true
    }

    /// Gives up on applications that do not accept and peers that do not answer in time. Returns when to look again, if
    /// any is still waited for.
    pub(in crate::hbone::tunnel) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due: SmallVec<[usize; 8]> = SmallVec::new();
        for (slot, stream) in &self.streams {
            match stream.phase.deadline() {
                Some(deadline) if deadline <= now => due.push(slot),
                Some(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                None => {}
            }
        }
        for slot in due {
            match self.streams[slot].phase {
                Phase::Dialling { .. } => self.dial_failed(slot, "the application did not accept within 10 s"),
                Phase::Opening(_) => self.unanswered(slot),
                Phase::Open => {}
            }
        }
        next
    }

    fn unanswered(&mut self, slot: usize) {
        let Some(stream) = self.remove(slot) else { return };
        self.h2.reset(stream.id, ErrorCode::CANCEL);
        let why = "the destination's proxy did not answer the CONNECT within 20 s; look at its log, and at its load";
        stream.abort(Outcome::failed(ResponseFlags::ConnectFailure, why));
    }

    fn dial_failed(&mut self, slot: usize, why: &str) {
        let Some(stream) = self.remove(slot) else { return };
        self.answer_and_end(stream.id, 503);
        stream.close(Outcome::failed(ResponseFlags::ConnectFailure, why.to_owned()));
    }

    /// Answers with an error; NO_ERROR tells the peer not to send what it may have begun to (RFC 9113 §8.1).
    fn answer_and_end(&mut self, id: StreamId, status: u16) {
        // The peer may have reset the stream meanwhile.
        let _ = self.h2.respond(id, status, &[], true);
        self.h2.reset(id, ErrorCode::NO_ERROR);
    }

    /// The peer has answered a CONNECT of ours.
    pub(super) fn response(&mut self, id: StreamId, response: &Response, end_stream: bool) {
        let Some(slot) = self.slot(id) else { return };
        if response.status == 200 {
            let stream = &mut self.streams[slot];
            stream.phase = Phase::Open;
            stream.ending = end_stream;
            stream.wake.queue();
            if let App::Local(end) = &stream.app {
                end.opened();
            }
            return;
        }
        self.h2.reset(id, ErrorCode::NO_ERROR);
        let Some(stream) = self.remove(slot) else { return };
        let refusal = ConnectError::Refused { status: response.status };
        let outcome = Outcome::failed(refusal.flags(), refusal.to_string());
        if let App::Local(end) = &stream.app {
            end.refused(refusal);
        }
        stream.abort(outcome);
    }
}

/// Answers with 200.
fn respond(h2: &mut Connection, id: StreamId, headers: &ResponseHeaders) {
    let headers: SmallVec<[(&str, &str); 2]> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // If the peer has reset the stream, its event is on the way.
    let _ = h2.respond(id, 200, &headers, false);
}
