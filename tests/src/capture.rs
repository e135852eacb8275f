//! What crossed a wire: tcpdump, and its file taken apart.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use socket2::SockRef;

use crate::deadline::eventually;
use crate::process::{Place, Process};
use crate::scope::Scope;
use crate::topology::Node;

const LIMIT: Duration = Duration::from_secs(10);
/// Where the marker of a capture's end is sent: to everyone on the wire, at the discard port (RFC 863).
const MARKER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);

/// tcpdump on an interface of a node; ended when dropped.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    place: Place,
    interface: String,
}

/// One TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it carried.
    pub payload: Vec<u8>,
}

/// What a capture saw.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// Every TCP segment that carried data, in order.
    pub segments: Vec<Segment>,
    /// The whole file, so that nothing can hide from a search in what was not understood.
    pub raw: Vec<u8>,
}

impl Capture {
    /// Starts to capture whole TCP packets and waits until tcpdump listens.
    pub fn start(scope: &Scope, node: &Node, interface: &str) -> Result<Self> {
        let file = scope.directory().join(format!("{}-{interface}.pcap", node.name()));
        let mut command = node.place().command("tcpdump")?;
        // Written packet by packet, as root: tcpdump would else give up the right to write here.
        command.args(["-i", interface, "-s", "0", "-n", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w"]);
        command.arg(&file).arg(format!("tcp or (udp and dst port {})", MARKER.port()));
        let mut process = Process::spawn("tcpdump", command)?;
        process.wait_for_line(LIMIT, "tcpdump to listen", |line| line.contains("listening on"))?;
        Ok(Self { process, file, place: node.place(), interface: interface.to_owned() })
    }

    /// Ends the capture and reads it: everything that crossed the wire before the call.
    pub fn finish(mut self) -> Result<Captured> {
        self.await_all()?;
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(LIMIT)?;
        let raw = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let segments = segments(&raw)?;
        Ok(Captured { segments, raw })
    }
}

impl Capture {
    /// Sends a marker and waits until the file has it. tcpdump writes in order, so all that went before is there then;
    /// ended at once, it would lose what it has not yet read from the kernel.
    fn await_all(&self) -> Result<()> {
        let text = format!("end of capture {}", self.file.display());
        self.place.run(|| -> Result<()> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_broadcast(true)?;
            SockRef::from(&socket).bind_device(Some(self.interface.as_bytes()))?;
            socket.send_to(text.as_bytes(), MARKER)?;
            Ok(())
        })??;
        eventually(LIMIT, "the capture to be written", || {
            let raw = fs::read(&self.file).ok()?;
            raw.windows(text.len()).rev().any(|window| window == text.as_bytes()).then_some(())
        })
    }
}

impl Captured {
    /// Whether these bytes crossed the wire: within one packet, or across the segments of one direction of a
    /// connection.
    pub fn holds(&self, needle: &[u8]) -> bool {
        let within = |haystack: &[u8]| haystack.windows(needle.len()).any(|window| window == needle);
        let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> = BTreeMap::new();
        for segment in &self.segments {
            streams.entry((segment.from, segment.to)).or_default().extend_from_slice(&segment.payload);
        }
        within(&self.raw) || streams.values().any(|stream| within(stream))
    }

    /// How many bytes of payload went to or came from this port.
    pub fn bytes_of_port(&self, port: u16) -> usize {
        let of_port = self.segments.iter().filter(|one| one.from.port() == port || one.to.port() == port);
        of_port.map(|segment| segment.payload.len()).sum()
    }

    /// How many bytes of payload crossed the wire.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.payload.len()).sum()
    }

    /// Whether what a connection's first data segments in both directions hold are TLS handshake records.
    pub fn is_tls(&self, port: u16) -> bool {
        // Type handshake, version 3.x: RFC 8446 §5.1.
        self.each_begins(port, |payload| matches!(payload, [22, 3, ..]))
    }

    /// Whether what went to or came from this port are TLS records, of connections that may have been open before.
    pub fn is_tls_records(&self, port: u16) -> bool {
        // change_cipher_spec, alert, handshake, application_data: RFC 8446 §5.1.
        self.each_begins(port, |payload| matches!(payload, [20..=23, 3, 1..=3, ..]))
    }

    fn each_begins(&self, port: u16, is_right: impl Fn(&[u8]) -> bool) -> bool {
        let mut first: BTreeMap<(SocketAddr, SocketAddr), &[u8]> = BTreeMap::new();
        for segment in self.segments.iter().filter(|one| one.from.port() == port || one.to.port() == port) {
            first.entry((segment.from, segment.to)).or_insert(&segment.payload);
        }
        !first.is_empty() && first.values().all(|payload| is_right(payload))
    }
}

/// The TCP segments with data of a pcap file with Ethernet frames.
fn segments(raw: &[u8]) -> Result<Vec<Segment>> {
    const GLOBAL_HEADER: usize = 24;
    const ETHERNET: [u8; 4] = [1, 0, 0, 0];
    if raw.get(..4) != Some(&[0xd4, 0xc3, 0xb2, 0xa1]) || raw.get(20..24) != Some(&ETHERNET) {
        bail!("not a little-endian pcap file of Ethernet frames");
    }
    let mut rest = &raw[GLOBAL_HEADER..];
    let mut found = Vec::new();
    // Per packet: seconds, microseconds, captured length, true length.
    while let Some((header, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        found.extend(segment(frame));
        rest = after;
    }
    Ok(found)
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(14..)?;
    let (source, destination, tcp) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            if packet.get(9) != Some(&6) {
                return None;
            }
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            // A total length of 0 is the kernel's way to say "larger than 64 KiB" of a segment not yet cut.
            let end = if total == 0 { packet.len() } else { total };
            (address::<4>(packet, 12)?, address::<4>(packet, 16)?, packet.get(header..end)?)
        }
        [0x86, 0xdd] if packet.get(6) == Some(&6) => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let end = if length == 0 { packet.len() } else { 40 + length };
            (address::<16>(packet, 8)?, address::<16>(packet, 24)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    (!payload.is_empty()).then_some(Segment {
        from: SocketAddr::new(source, port(0)?),
        to: SocketAddr::new(destination, port(2)?),
        payload: payload.to_vec(),
    })
}

fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    let bytes: [u8; N] = packet.get(at..at + N)?.try_into().ok()?;
    Some(IpAddr::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::topology::Topology;

    #[test]
    fn a_capture_of_plain_traffic_holds_its_payload() {
        let mut topology = Topology::new(2).unwrap();
        topology.add_pod(1, "shop", "client").unwrap();
        topology.add_pod(2, "shop", "server").unwrap();
        let (client, server) = (topology.pod("client"), topology.pod("server"));
        let wire = topology.node(1).wire_to(topology.node(2));
        for (from, to) in client.addresses().into_iter().zip(server.addresses()) {
            let server = http::Server::start(&server.place(), SocketAddr::new(to, 0), "the-server").unwrap();
            let capture = Capture::start(topology.scope(), topology.node(1), &wire).unwrap();
            let answer = client.run(|| http::get(server.address(), "/", LIMIT)).unwrap().unwrap();
            let seen = capture.finish().unwrap();
            assert_eq!(answer.body, format!("the-server saw {from}\n"));
            assert!(seen.holds(answer.body.as_bytes()));
            assert!(!seen.holds(b"something else"));
            assert!(seen.bytes_of_port(server.address().port()) > answer.body.len());
            assert!(!seen.is_tls(server.address().port()));
        }
    }
}
