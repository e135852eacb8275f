//! The TLS handshake of a tunnel, and the hand-over to the record layer.

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus};
use rustls::{ClientConfig, ExtractedSecrets, HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::identity::TlsProblem;

use super::record::{Opener, RecordError, Sealer};

/// Bytes of handshake a peer may send ahead of what has been processed: a certificate chain fits many times.
const MAX_HANDSHAKE: usize = 64 * 1024;

/// Why no tunnel came up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed.
    #[error("the connection failed during the TLS handshake: {0}")]
    Io(#[from] io::Error),
    /// The peer closed before the handshake was done.
    #[error("the peer closed the connection during the TLS handshake")]
    Closed,
    /// TLS refused the peer, or was refused by it.
    #[error("TLS handshake failed: {}", TlsProblem(.0))]
    Tls(#[from] rustls::Error),
    /// The peer sent more than any handshake needs.
    #[error("the peer sent more than {MAX_HANDSHAKE} bytes of TLS handshake")]
    TooLong,
    /// The record layer cannot take over.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// An established TLS connection with its records in our hands.
pub struct Established {
    /// The socket.
    pub io: TcpStream,
    /// Seals what we send.
    pub sealer: Sealer,
    /// Opens what the peer sends.
    pub opener: Opener,
    /// rustls' key schedule, for tickets and key updates.
    pub keys: KeySchedule,
    /// Sealed bytes that arrived behind the handshake.
    pub received: Vec<u8>,
    /// Application data that rustls has opened already.
    pub plaintext: Vec<u8>,
    /// The peer's chain, leaf first. Never empty: both sides present one.
    pub peer: Vec<CertificateDer<'static>>,
    /// Whether an earlier session was resumed, which saves both sides their signatures.
    pub resumed: bool,
}

/// The part of rustls that outlives the handshake.
pub enum KeySchedule {
    /// The side that dialled.
    Client(KernelConnection<ClientConnectionData>),
    /// The side that accepted.
    Server(KernelConnection<ServerConnectionData>),
}

impl KeySchedule {
    /// The next key for what we send (RFC 8446 §4.6.3).
    pub fn next_sealer(&mut self) -> Result<Sealer, HandshakeError> {
        let (sequence, secrets) = match self {
            Self::Client(kernel) => kernel.update_tx_secret()?,
            Self::Server(kernel) => kernel.update_tx_secret()?,
        };
        Ok(Sealer::new((sequence, &secrets))?)
    }

    /// The next key for what the peer sends.
    pub fn next_opener(&mut self) -> Result<Opener, HandshakeError> {
        let (sequence, secrets) = match self {
            Self::Client(kernel) => kernel.update_rx_secret()?,
            Self::Server(kernel) => kernel.update_rx_secret()?,
        };
        Ok(Opener::new((sequence, &secrets))?)
    }

    /// Takes a session ticket; a client does not send any.
    pub fn session_ticket(&mut self, payload: &[u8]) -> Result<(), HandshakeError> {
        match self {
            Self::Client(kernel) => Ok(kernel.handle_new_session_ticket(payload)?),
            Self::Server(_) => Err(HandshakeError::Record(RecordError::Malformed)),
        }
    }
}

/// Completes a handshake as the side that dialled. `name` selects the session to resume; it is not sent.
///
/// # Errors
/// The socket, the peer or its certificate. The caller bounds the time.
pub async fn connect(
    mut io: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Established, HandshakeError> {
    let mut connection = UnbufferedClientConnection::new(config, name)?;
    let (received, plaintext) = drive(&mut *connection, &mut io).await?;
    let peer = peer_certificates(connection.peer_certificates());
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    established(io, secrets, KeySchedule::Client(kernel), received, plaintext, peer, resumed)
}

/// Completes a handshake as the side that accepted.
///
/// # Errors
/// The socket, the peer or its certificate. The caller bounds the time.
pub async fn accept(mut io: TcpStream, config: Arc<ServerConfig>) -> Result<Established, HandshakeError> {
    let mut connection = UnbufferedServerConnection::new(config)?;
    let (received, plaintext) = drive(&mut *connection, &mut io).await?;
    let peer = peer_certificates(connection.peer_certificates());
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    established(io, secrets, KeySchedule::Server(kernel), received, plaintext, peer, resumed)
}

fn peer_certificates(chain: Option<&[CertificateDer<'static>]>) -> Vec<CertificateDer<'static>> {
    chain.map(<[_]>::to_vec).unwrap_or_default()
}

fn established(
    io: TcpStream,
    secrets: ExtractedSecrets,
    keys: KeySchedule,
    received: Vec<u8>,
    plaintext: Vec<u8>,
    peer: Vec<CertificateDer<'static>>,
    resumed: bool,
) -> Result<Established, HandshakeError> {
    Ok(Established {
        io,
        sealer: Sealer::new((secrets.tx.0, &secrets.tx.1))?,
        opener: Opener::new((secrets.rx.0, &secrets.rx.1))?,
        keys,
        received,
        plaintext,
        peer,
        resumed,
    })
}

/// The two rustls connections have the same method under one name, but no trait for it.
trait Process {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn has_queued(&self) -> bool;
}

impl Process for UnbufferedConnectionCommon<ClientConnectionData> {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}

impl Process for UnbufferedConnectionCommon<ServerConnectionData> {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn has_queued(&self) -> bool {
        self.wants_write()
    }
}

enum Next {
    Again,
    Send,
    Receive,
    Done,
    Closed,
}

/// Runs the handshake; returns sealed bytes that arrived behind it, and plaintext that rustls opened already.
async fn drive<C: Process + ?Sized>(
    connection: &mut C,
    io: &mut TcpStream,
) -> Result<(Vec<u8>, Vec<u8>), HandshakeError> {
    let mut incoming: Vec<u8> = Vec::with_capacity(4096);
    let mut outgoing = Vec::new();
    let mut plaintext = Vec::new();
    loop {
        let (discard, next) = {
            let status = connection.process(&mut incoming);
            let next = status.state.and_then(|state| step(state, &mut outgoing, &mut plaintext));
            (status.discard, next)
        };
        incoming.drain(..discard);
        match next {
            Ok(Next::Again) => {}
            Ok(Next::Send) => {
                io.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Ok(Next::Receive) => {
                if incoming.len() >= MAX_HANDSHAKE {
                    return Err(HandshakeError::TooLong);
                }
                incoming.reserve(4096);
                if io.read_buf(&mut incoming).await? == 0 {
                    return Err(HandshakeError::Closed);
                }
            }
            Ok(Next::Done) => return Ok((incoming, plaintext)),
            Ok(Next::Closed) => return Err(HandshakeError::Closed),
            Err(error) => {
                send_alert(connection, io, &mut incoming).await;
                return Err(error.into());
            }
        }
    }
}

fn step<Data>(
    state: ConnectionState<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    plaintext: &mut Vec<u8>,
) -> Result<Next, rustls::Error> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let start = outgoing.len();
            let mut space = 1024;
            loop {
                outgoing.resize(start + space, 0);
                match data.encode(&mut outgoing[start..]) {
                    Ok(written) => {
                        outgoing.truncate(start + written);
                        return Ok(Next::Again);
                    }
                    Err(EncodeError::InsufficientSize(needed)) => space = needed.required_size,
                    Err(EncodeError::AlreadyEncoded) => return Ok(Next::Again),
                }
            }
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Next::Send)
        }
        ConnectionState::BlockedHandshake => Ok(Next::Receive),
        ConnectionState::WriteTraffic(_) => Ok(Next::Done),
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plaintext.extend_from_slice(record?.payload);
            }
            Ok(Next::Again)
        }
        _ => Ok(Next::Closed),
    }
}

/// Tells the peer why, as far as it can still be told: rustls has queued the alert with the error.
///
/// It hands out what is queued before it looks at `incoming` again, of which it remembers places: so it is given those
/// very bytes, and only asked while something is queued. It would stumble over the same message a second time, and
/// panic.
async fn send_alert<C: Process + ?Sized>(connection: &mut C, io: &mut TcpStream, incoming: &mut [u8]) {
    let mut outgoing = Vec::new();
    let mut plaintext = Vec::new();
    while connection.has_queued() {
        match connection.process(incoming).state.and_then(|state| step(state, &mut outgoing, &mut plaintext)) {
            Ok(Next::Again) => {}
            _ => break,
        }
    }
    if !outgoing.is_empty() {
        // The peer may be gone; its loss.
        let _ = io.write_all(&outgoing).await;
        let _ = io.shutdown().await;
    }
}
