//! The tunnel's own socket and its TLS records.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::TunnelError;
use crate::hbone::handshake::KeySchedule;
use crate::hbone::record::{MAX_PLAINTEXT, Opened, Opener, RecordError, Sealer};

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Handshake messages that a peer may send in one connection's life besides data: tickets and key updates. Each costs
/// us work and carries no data.
const MAX_POST_HANDSHAKE: u32 = 1024;

/// The socket, the keys, and what is left over between turns.
pub(super) struct Wire {
    pub(super) io: TcpStream,
    pub(super) sealer: Sealer,
    opener: Opener,
    keys: KeySchedule,
    /// The start of a record whose end has not come: less than one record.
    received: Vec<u8>,
    /// Sealed bytes that the socket did not take.
    unsent: Vec<u8>,
    /// The start of a handshake message whose end has not come.
    handshake: Vec<u8>,
    post_handshake: u32,
    /// The peer will send no more.
    pub(super) ended: bool,
    /// Our direction of the TCP connection is ended.
    shut: bool,
}

impl Wire {
    pub(super) fn new(io: TcpStream, sealer: Sealer, opener: Opener, keys: KeySchedule, received: Vec<u8>) -> Self {
        Self {
            io,
            sealer,
            opener,
            keys,
            received,
            unsent: Vec::new(),
            handshake: Vec::new(),
            post_handshake: 0,
            ended: false,
            shut: false,
        }
    }

    /// Reads what has arrived behind what was left over; returns how many bytes `buffer` holds, `None` if nothing new.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<Option<usize>, TunnelError> {
        let kept = self.received.len();
        if self.ended {
            return Ok(None);
        }
        let Some((front, space)) = buffer.split_at_mut_checked(kept) else {
            return Err(RecordError::Oversized.into());
        };
        let mut space = ReadBuf::new(space);
        match Pin::new(&mut self.io).poll_read(cx, &mut space) {
            Poll::Pending => return Ok(None),
            Poll::Ready(read) => read?,
        }
        let read = space.filled().len();
        if read == 0 {
            self.ended = true;
            return Ok(None);
        }
        front.copy_from_slice(&self.received);
        self.received.clear();
        Ok(Some(kept + read))
    }

    /// What arrived behind the handshake, as if it had just been read.
    pub(super) fn take_received(&mut self, buffer: &mut [u8]) -> usize {
        let kept = std::mem::take(&mut self.received);
        let length = kept.len().min(buffer.len());
        buffer[..length].copy_from_slice(&kept[..length]);
        length
    }

    /// Opens the record at `at`; returns where it ends and its application data, if it is a whole one.
    pub(super) fn open(
        &mut self,
        buffer: &mut [u8],
        at: usize,
    ) -> Result<Option<(usize, std::ops::Range<usize>)>, TunnelError> {
        let Some((end, opened)) = self.opener.open(buffer, at)? else { return Ok(None) };
        let data = match opened {
            Opened::Data(range) => range,
            Opened::Handshake(range) => {
                let message = buffer.get(range).unwrap_or_default();
                self.post_handshake(message)?;
                end..end
            }
            Opened::Alert(0) => {
                self.ended = true;
                end..end
            }
            Opened::Alert(description) => return Err(TunnelError::Alert(description)),
        };
        Ok(Some((end, data)))
    }

    /// Keeps the start of a record for the next turn.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Gives back memory that a burst left behind.
    pub(super) fn shrink(&mut self) {
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
    }

    /// Whether output waits for the socket.
    pub(super) fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Bytes of output that wait for the socket. One turn's worth, and our answers to key updates, are the most.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Writes what is left over; `true` when nothing is.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match Pin::new(&mut self.io).poll_write(cx, &self.unsent[sent..]) {
                Poll::Ready(written) => sent += written?,
                Poll::Pending => break,
            }
        }
        self.unsent.drain(..sent);
        Ok(self.unsent.is_empty())
    }

    /// Writes sealed bytes; what the socket does not take is kept. Only to be called when not blocked.
    pub(super) fn write(&mut self, cx: &mut Context<'_>, mut sealed: &[u8]) -> io::Result<()> {
        while !sealed.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, sealed) {
                Poll::Ready(written) => sealed = &sealed[written?..],
                Poll::Pending => {
                    self.unsent.extend_from_slice(sealed);
                    break;
                }
            }
        }
        if self.sealer.wants_key_update() {
            self.update_sending_key()?;
        }
        Ok(())
    }

    /// Queues `close_notify`, behind everything else.
    pub(super) fn close_notify(&mut self) {
        if let Ok(alert) = self.sealer.close_notify() {
            self.unsent.extend_from_slice(&alert);
        }
    }

    /// Ends our direction of the TCP connection once everything is written, and forgets what the peer still sends, at
    /// most `left` bytes of it. Ready when it has ended its own, has sent too much, or the connection failed.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>, buffer: &mut [u8], left: &mut usize) -> Poll<()> {
        match self.flush(cx) {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(_) => return Poll::Ready(()),
        }
        if !std::mem::replace(&mut self.shut, true) {
            // The peer may have closed already.
            let _ = socket2::SockRef::from(&self.io).shutdown(std::net::Shutdown::Write);
        }
        loop {
            let mut space = ReadBuf::new(buffer);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut space)) {
                Ok(()) if (1..=*left).contains(&space.filled().len()) => *left -= space.filled().len(),
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Handshake messages of an established connection (RFC 8446 §4.6): tickets and key updates.
    fn post_handshake(&mut self, bytes: &[u8]) -> Result<(), TunnelError> {
        self.handshake.extend_from_slice(bytes);
        while let Some(&[kind, a, b, c]) = self.handshake.first_chunk::<4>() {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > MAX_PLAINTEXT {
                return Err(RecordError::Oversized.into());
            }
            let Some(body) = self.handshake.get(4..4 + length) else { return Ok(()) };
            self.post_handshake += 1;
            if self.post_handshake > MAX_POST_HANDSHAKE {
                return Err(RecordError::Malformed.into());
            }
            match (kind, body) {
                (NEW_SESSION_TICKET, ticket) => self.keys.session_ticket(ticket)?,
                (KEY_UPDATE, &[answer @ (0 | 1)]) => {
                    // The next record is under the new key, so nothing may follow in this one (RFC 8446 §5.1).
                    if self.handshake.len() != 4 + length {
                        return Err(RecordError::Malformed.into());
                    }
                    self.opener = self.keys.next_opener()?;
                    if answer == 1 {
                        self.update_sending_key()?;
                    }
                }
                _ => return Err(RecordError::Malformed.into()),
            }
            self.handshake.drain(..4 + length);
        }
        if self.handshake.is_empty() {
            self.handshake = Vec::new();
        }
        Ok(())
    }

    fn update_sending_key(&mut self) -> io::Result<()> {
        let message = self.sealer.key_update().map_err(io::Error::other)?;
        self.unsent.extend_from_slice(&message);
        self.sealer = self.keys.next_sealer().map_err(io::Error::other)?;
        Ok(())
    }
}
