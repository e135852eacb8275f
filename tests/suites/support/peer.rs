//! HBONE clients that are not ours: the `h2` crate for what is well-formed, bare frames for what is not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_tests::Place;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::authority::Leaf;

const LIMIT: Duration = Duration::from_secs(15);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// The TLS of a peer that presents `leaf` and believes whoever answers: these tests are about the server's judgement.
pub(crate) fn tls(leaf: Option<&Leaf>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config.into())
}

/// The status of one request by the `h2` crate; the stream is given up after it.
pub(crate) fn status(
    place: &Place,
    to: SocketAddr,
    tls: &Arc<ClientConfig>,
    request: http::Request<()>,
) -> Result<u16> {
    let asked = async {
        let tcp = tokio::net::TcpStream::connect(to).await?;
        let name = ServerName::IpAddress(to.ip().into());
        let tls = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await?;
        let (client, connection) = h2::client::handshake(tls).await?;
        tokio::spawn(connection);
        let (response, _stream) = client.ready().await?.send_request(request, false)?;
        anyhow::Ok(response.await?.status().as_u16())
    };
    place.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(LIMIT, asked).await.context("no answer")? })
    })?
}

/// A CONNECT to `authority`.
pub(crate) fn connect(authority: &str) -> http::Request<()> {
    http::Request::builder().method("CONNECT").uri(authority).body(()).expect("an authority")
}

/// A TLS connection on which frames are written by hand.
pub(crate) struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    /// Connects, and sends the preface and empty SETTINGS.
    pub(crate) fn connect(place: &Place, to: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Self> {
        Self::over(plain(place, to)?, to, tls)
    }

    /// The same over a connection to `to` that is there.
    pub(crate) fn over(tcp: TcpStream, to: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Self> {
        let connection = ClientConnection::new(tls.clone(), ServerName::IpAddress(to.ip().into()))?;
        let mut raw = Self { stream: StreamOwned::new(connection, tcp) };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        raw.send(&frame(SETTINGS, 0, 0, &[]))?;
        Ok(raw)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Result<Frame> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header)?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// The next frame for which `wanted` holds.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        loop {
            let frame = self.next()?;
            if wanted(&frame) {
                return Ok(frame);
            }
        }
    }

    /// The error code of the GOAWAY that ends the connection.
    pub(crate) fn goaway(&mut self) -> Result<u32> {
        let frame = self.wait_for(|frame| frame.kind == GOAWAY)?;
        let code = frame.payload.get(4..8).context("a GOAWAY that is too short")?;
        Ok(u32::from_be_bytes(code.try_into()?))
    }

    /// Whether the connection is over, however it ended.
    pub(crate) fn ends(&mut self) -> bool {
        while self.next().is_ok() {}
        let mut byte = [0];
        !matches!(self.stream.sock.read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream.sock
    }
}

impl Frame {
    /// The error code of a RST_STREAM.
    pub(crate) fn code(&self) -> Result<u32> {
        match <[u8; 4]>::try_from(&self.payload[..]) {
            Ok(code) if self.kind == RST_STREAM => Ok(u32::from_be_bytes(code)),
            _ => bail!("{self:?} is no RST_STREAM"),
        }
    }
}

/// A TCP connection and no more.
pub(crate) fn plain(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let tcp = place.run(|| TcpStream::connect_timeout(&to, LIMIT))??;
    tcp.set_read_timeout(Some(LIMIT))?;
    tcp.set_write_timeout(Some(LIMIT))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block, every field literal and not indexed (RFC 7541 §6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut out = Vec::new();
        // Lengths from 127 on continue in further bytes (RFC 7541 §5.1).
        if let Some(mut rest) = text.len().checked_sub(127) {
            out.push(127);
            while rest >= 128 {
                out.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            out.push(rest as u8);
        } else {
            out.push(text.len() as u8);
        }
        out.extend_from_slice(text.as_bytes());
        out
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// The HEADERS of a CONNECT.
pub(crate) fn connect_frame(stream: u32, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&[(":method", "CONNECT"), (":authority", authority)]))
}

/// Believes everyone.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
