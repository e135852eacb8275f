//! The control frames, one rule of RFC 9113 §6 each.

use super::budget::Budget;
use super::connection::{Connection, Role};
use super::frame::{self, FrameHeader, flag, setting};
use super::receive::{Broken, connection_error, stream_error};
use super::streams::{MAX_WINDOW, grow};
use super::{ConnectionError, ErrorCode, Event, StreamId};

/// How much unwritten output a peer may cause by frames that demand an answer. A peer that does not read cannot make
/// us keep more.
const MAX_UNWRITTEN: usize = 256 << 10;

type Outcome = Result<Option<Event<'static>>, Broken>;

impl Connection {
    /// RFC 9113 §6.4.
    pub(super) fn reset_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        if header.stream == 0 || self.is_idle(header.stream) {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "RST_STREAM on a stream that was never opened");
        }
        let code = ErrorCode(number(payload));
        let Some(stream) = self.streams.remove(header.stream) else {
            self.budget.spend(Budget::FRAME)?;
            return Ok(None);
        };
        if self.role == Role::Server && !stream.answered {
            self.budget.spend(Budget::STREAM)?;
        }
        Ok(Some(Event::Reset { stream: StreamId(header.stream), code }))
    }

    /// RFC 9113 §6.5.
    pub(super) fn settings_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        if header.stream != 0 {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        self.budget.spend(Budget::STREAM)?;
        if header.has(flag::ACK) {
            return Ok(None);
        }
        for entry in payload.chunks_exact(6) {
            let (id, value) = entry.split_at(2);
            self.apply_setting(number(id) as u16, number(value))?;
        }
        self.check_unwritten()?;
        frame::put_settings_ack(&mut self.output);
        Ok(Some(Event::PeerSettings))
    }

    fn apply_setting(&mut self, id: u16, value: u32) -> Result<(), ConnectionError> {
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.peer_table_size(value),
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return connection_error(ErrorCode::PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is out of range");
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_concurrent_streams = value,
            setting::INITIAL_WINDOW_SIZE => {
                if i64::from(value) > MAX_WINDOW {
                    return connection_error(
                        ErrorCode::FLOW_CONTROL_ERROR,
                        "SETTINGS_INITIAL_WINDOW_SIZE is too large",
                    );
                }
                // Open streams change by the difference, and may fall below 0 (RFC 9113 §6.9.2).
                let change = i64::from(value) - i64::from(self.peer.initial_window_size);
                self.peer.initial_window_size = value;
                if !self.streams.iter_mut().all(|stream| grow(&mut stream.send_window, change)) {
                    return connection_error(ErrorCode::FLOW_CONTROL_ERROR, "SETTINGS overflow a stream's window");
                }
            }
            setting::MAX_FRAME_SIZE => {
                if !(16_384..1 << 24).contains(&value) {
                    return connection_error(ErrorCode::PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of range");
                }
                self.peer.max_frame_size = value;
            }
            setting::MAX_HEADER_LIST_SIZE => self.peer.max_header_list_size = value,
            _ => {}
        }
        Ok(())
    }

    /// RFC 9113 §6.7.
    pub(super) fn ping_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        if header.stream != 0 {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "PING on a stream");
        }
        self.budget.spend(Budget::FRAME)?;
        let Ok(payload) = payload.try_into() else { return Ok(None) };
        if header.has(flag::ACK) {
            return Ok(Some(Event::Pong { payload }));
        }
        self.check_unwritten()?;
        frame::put_ping(&mut self.output, flag::ACK, payload);
        Ok(None)
    }

    /// RFC 9113 §6.8.
    pub(super) fn go_away_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        if header.stream != 0 {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        self.budget.spend(Budget::STREAM)?;
        let (last, code) = payload.split_at(4);
        // A later GOAWAY may only cover fewer streams.
        let last_stream = (number(last) & 0x7fff_ffff).min(self.peer_last_stream.unwrap_or(u32::MAX));
        self.peer_last_stream = Some(last_stream);
        Ok(Some(Event::GoAway { last_stream, code: ErrorCode(number(code)) }))
    }

    /// A stream of ours that the peer's GOAWAY does not cover, which is thereby gone.
    pub(super) fn next_refused(&mut self) -> Option<Event<'static>> {
        let last_stream = self.peer_last_stream.filter(|_| self.role == Role::Client)?;
        let stream = self.streams.pop_above(last_stream)?;
        Some(Event::Reset { stream: StreamId(stream.id), code: ErrorCode::REFUSED_STREAM })
    }

    /// RFC 9113 §6.9.
    pub(super) fn window_update_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        self.budget.spend(Budget::FRAME)?;
        let increment = i64::from(number(payload) & 0x7fff_ffff);
        if header.stream == 0 {
            if increment == 0 {
                return connection_error(ErrorCode::PROTOCOL_ERROR, "WINDOW_UPDATE by 0");
            }
            if !grow(&mut self.send_window, increment) {
                return connection_error(
                    ErrorCode::FLOW_CONTROL_ERROR,
                    "WINDOW_UPDATE overflows the connection's window",
                );
            }
            return Ok(Some(Event::WindowOpen { stream: None }));
        }
        if self.is_idle(header.stream) {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that was never opened");
        }
        let Some(stream) = self.streams.find(header.stream) else { return Ok(None) };
        if increment == 0 {
            return stream_error(header.stream, ErrorCode::PROTOCOL_ERROR);
        }
        if !grow(&mut stream.send_window, increment) {
            return stream_error(header.stream, ErrorCode::FLOW_CONTROL_ERROR);
        }
        Ok(Some(Event::WindowOpen { stream: Some(StreamId(header.stream)) }))
    }

    /// Queues a RST_STREAM that the peer brought about.
    pub(super) fn reply_reset(&mut self, stream: u32, code: ErrorCode) -> Result<(), ConnectionError> {
        self.check_unwritten()?;
        frame::put_reset(&mut self.output, stream, code);
        Ok(())
    }

    pub(super) fn check_unwritten(&self) -> Result<(), ConnectionError> {
        if self.output.len() > MAX_UNWRITTEN {
            return connection_error(ErrorCode::ENHANCE_YOUR_CALM, "the peer demands answers and does not read them");
        }
        Ok(())
    }
}

/// A big-endian number of up to 4 bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b))
}
