//! DNS over UDP.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use culvert_ebpf_common::DNS_PORT;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use tokio::io::Interest;
use tokio::sync::watch;

use super::metrics::Protocol;
use super::{MAX_WAITING, Place, PodDns, Verdict, failed, upstream};
use crate::redirect::Replies;

/// The longest question that is taken. Those that are sent are a hundred bytes long.
const MAX_REQUEST: usize = 4096;

/// A question, who asked, and which server was asked.
struct Datagram {
    message: Vec<u8>,
    client: SocketAddr,
    server: SocketAddr,
}

pub(super) async fn serve(dns: Arc<PodDns>, socket: UdpSocket, replies: Replies, mut stop: watch::Receiver<bool>) {
    let socket = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%error, "a pod's DNS cannot be served: its questions are not answered");
            return;
        }
    };
    let replies = Arc::new(replies);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            received = socket.async_io(Interest::READABLE, || receive(&socket)) => match received {
                Ok(Some(datagram)) => consider(&dns, &replies, datagram),
                Ok(None) => dns.metrics.malformed(Protocol::Udp),
                // An error of an earlier send, or none at all: nothing to answer.
                Err(_) => {}
            }
        }
    }
}

fn consider(dns: &Arc<PodDns>, replies: &Arc<Replies>, datagram: Datagram) {
    match dns.consider(&datagram.message, Protocol::Udp) {
        Verdict::Ignore => {}
        Verdict::Answer(answer) => reply(replies, &datagram, &answer),
        Verdict::Forward => {
            let Some(place) = Place::take(&dns.waiting, MAX_WAITING) else {
                dns.metrics.failure(Protocol::Udp);
                return reply(replies, &datagram, &failed(&datagram.message));
            };
            let (dns, replies) = (dns.clone(), replies.clone());
            tokio::spawn(async move {
                let Datagram { message, client, server } = &datagram;
                let asked = upstream::ask(&dns.netns, &dns.metrics, *server, client.ip(), message).await;
                drop(place);
                match asked {
                    Ok(answer) => reply(&replies, &datagram, &answer),
                    Err(error) => {
                        tracing::debug!(%server, %client, %error, "a DNS server does not answer");
                        reply(&replies, &datagram, &failed(message));
                    }
                }
            });
        }
    }
}

fn reply(replies: &Replies, to: &Datagram, answer: &[u8]) {
    if let Err(error) = replies.send(to.server, to.client, answer) {
        tracing::debug!(client = %to.client, %error, "an answer of DNS cannot be delivered");
    }
}

/// The next datagram; `None` for one that is too long, or does not say whom it was sent to.
fn receive(socket: &tokio::net::UdpSocket) -> io::Result<Option<Datagram>> {
    let mut buffer = [0; MAX_REQUEST];
    let mut control = nix::cmsg_space!(nix::libc::in_pktinfo, nix::libc::in6_pktinfo);
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    let (length, flags, client, server) = {
        let received =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vectors, Some(&mut control), MsgFlags::empty())?;
        let server = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
            }
            _ => None,
        });
        (received.bytes, received.flags, received.address.as_ref().and_then(socket_address), server)
    };
    let (Some(client), Some(server)) = (client, server) else { return Ok(None) };
    if flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    Ok(Some(Datagram {
        message: buffer[..length].to_vec(),
        client: culvert_core::address::canonical(client),
        server: SocketAddr::new(server.to_canonical(), DNS_PORT),
    }))
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}
