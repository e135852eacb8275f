//! Every kind of socket that an application may connect with is captured or refused, never silently in clear.
//!
//! The far pod takes plaintext too (PERMISSIVE): a connection that escapes would succeed, be seen on the wire, and
//! count as plaintext there.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]
#![allow(unsafe_code, reason = "socket options and flags that no safe wrapper has")]

mod datapath;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::{Capture, eventually};
use datapath::{Counts, LIMIT, Mesh, PORT, at, carried, counts};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// What each connection says, and the wire must not hold.
const SECRET: &str = "not-for-the-wire";

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It reaches the application through the agent.
    Captured,
    /// The kernel refuses it.
    Refused(&'static str),
}
use Fate::{Captured, Refused};

/// A way to connect: given where to, it opens a stream.
type Way = fn(SocketAddr) -> io::Result<TcpStream>;

/// A way to lead a socket elsewhere.
type Attempt = Box<dyn Fn(&Socket) -> io::Result<()> + Sync>;

const SO_BINDTOIFINDEX: libc::c_int = 62;
const MPTCP: libc::c_int = 262;

const WAYS: &[(&str, Way, Fate)] = &[
    ("blocking", |to| connected(tcp(to)?, to), Captured),
    ("non-blocking", non_blocking, Captured),
    ("TCP_FASTOPEN_CONNECT", fast_open_connect, Captured),
    ("sendto with MSG_FASTOPEN", fast_open_send, Captured),
    ("bound to the pod's address", |to| bound(to, 0), Captured),
    ("bound to a port", |to| bound(to, 4321), Captured),
    ("IPv6 socket to a mapped address", mapped, Captured),
    ("SO_BINDTODEVICE", bound_to_device, Captured),
    ("IPv6 socket with SO_BINDTODEVICE to a mapped address", mapped_and_bound_to_device, Captured),
    ("SO_DONTROUTE", dont_route, Captured),
    ("SO_MARK of its own", marked, Captured),
    ("connected before, elsewhere", connected_again, Captured),
    ("MPTCP", |to| other(to, Type::STREAM, MPTCP), Refused("socket_mptcp")),
    ("SCTP stream", |to| other(to, Type::STREAM, 132), Refused("socket_stream_protocol")),
    ("SCTP packets", |to| other(to, Type::SEQPACKET, 132), Refused("socket_stream_protocol")),
    ("raw TCP", |to| other(to, Type::RAW, 6), Refused("socket_raw")),
    ("raw with a header of its own", |to| other(to, Type::RAW, 255), Refused("socket_raw")),
];

#[test]
fn each_kind_of_socket_is_captured_or_refused() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c"), (2, "outside", "o")])?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c, o] = ["a", "c", "o"].map(|name| mesh.pod(name));
    // Or a client sends no data with its SYN.
    a.netns().sysctl(&[("ipv4/tcp_fastopen", "1")])?;
    let node = mesh.topology.node(1);
    let wire = node.wire_to(mesh.topology.node(2));
    let capture = Capture::start(mesh.topology.scope(), node, &wire)?;

    for (name, way, fate) in WAYS {
        for (own, ip) in a.addresses().into_iter().zip(c.addresses()) {
            let before = Counts::of(&near)?;
            let result = a.run(|| way(at(ip)).and_then(converse))?;
            let grown = Counts::of(&near)?.since(&before);
            let what = format!("{name} to {ip}: {result:?}, counted {grown:?}\n{}{}", near.log(), far.log());
            match fate {
                Captured => {
                    ensure!(result.as_ref().is_ok_and(|said| said.contains(&format!("c saw {own}\n"))), "{what}");
                    ensure!(grown.get("outbound") == Some(&1), "{what}");
                }
                // A kernel without the protocol refuses it before anyone counts.
                Refused(reason) => {
                    let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
                    let missing = [libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT].map(Some).contains(&errno);
                    ensure!(missing || (errno == Some(libc::EPERM) && grown == counts([(reason, 1)])), "{what}");
                    println!("{name}: {}", if missing { "not in this kernel" } else { "refused" });
                }
            }
        }
    }
    ensure!(carried(&far, "destination", "unknown")? == 0.0, "something came in clear");
    // What the programs count is a metric.
    let counted = |event, reason| near.metric("culvert_redirection_total", &[("event", event), ("reason", reason)]);
    ensure!(
        counted("captured", "outbound")? >= 22.0 && counted("refused", "socket_raw")? == 4.0,
        "{}",
        near.metrics()?
    );
    let seen = capture.finish()?;
    ensure!(seen.bytes_of_port(15008) > 0 && seen.is_tls(15008) && seen.bytes_of_port(PORT) == 0);
    ensure!(!seen.holds(SECRET.as_bytes()), "the wire carried what was said in clear");

    // The same from a pod outside the mesh is seen: the assertions above can fail.
    let capture = Capture::start(mesh.topology.scope(), node, &wire)?;
    o.run(|| connected(tcp(at(a.ipv4()))?, at(a.ipv4())).and_then(converse))??;
    ensure!(capture.finish()?.holds(SECRET.as_bytes()));
    Ok(())
}

#[test]
fn a_socket_is_not_led_past_the_agent_once_it_connects() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c")])?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let (a, c) = (mesh.pod("a"), mesh.pod("c"));
    let eth0 = a.run(|| nix::net::if_::if_nametoindex("eth0"))??;
    let attempts: [(&str, Attempt); 3] = [
        ("SO_MARK", Box::new(|socket: &Socket| socket.set_mark(0))),
        ("SO_BINDTODEVICE", Box::new(|socket: &Socket| socket.bind_device(Some(b"eth0")))),
        (
            "SO_BINDTOIFINDEX",
            Box::new(move |socket: &Socket| set(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, eth0 as i32)),
        ),
    ];
    let node = mesh.topology.node(1);
    let capture = Capture::start(mesh.topology.scope(), node, &node.wire_to(mesh.topology.node(2)))?;
    for (name, attempt) in &attempts {
        for (own, ip) in a.addresses().into_iter().zip(c.addresses()) {
            for established in [false, true] {
                let before = Counts::of(&near)?;
                let (refused, said) = a.run(|| {
                    let socket = tcp(at(ip))?;
                    socket.set_nonblocking(!established)?;
                    match socket.connect(&at(ip).into()) {
                        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                        result => result?,
                    }
                    let refused = attempt(&socket).err().and_then(|error| error.raw_os_error());
                    io::Result::Ok((refused, converse(finished(socket)?)))
                })??;
                let grown = Counts::of(&near)?.since(&before);
                let what = format!("{name} to {ip}, established {established}: {refused:?}, {said:?}, {grown:?}");
                ensure!(refused == Some(libc::EPERM) && grown.get("setsockopt_steered") == Some(&1), "{what}");
                ensure!(said.is_ok_and(|said| said.contains(&format!("c saw {own}\n"))), "{what}");
            }
        }
    }
    ensure!(carried(&far, "destination", "unknown")? == 0.0, "something came in clear");
    let seen = capture.finish()?;
    ensure!(seen.bytes_of_port(15008) > 0 && seen.bytes_of_port(PORT) == 0 && !seen.holds(SECRET.as_bytes()));
    Ok(())
}

#[test]
fn an_mptcp_socket_from_before_the_enrolment_is_captured() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c")])?;
    mesh.enrol(false)?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let (a, c) = (mesh.pod("a"), mesh.pod("c"));
    let early = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP)));
    let socket = match a.run(early)? {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            println!("MPTCP: not in this kernel");
            return Ok(());
        }
        socket => socket?,
    };
    mesh.enrol(true)?;
    eventually(LIMIT, "the pod to be captured", || a.run(early).ok()?.is_err().then_some(()))?;
    eventually(LIMIT, "the other pod to be captured", || {
        a.run(|| connected(tcp(at(c.ipv4()))?, at(c.ipv4()))).ok()?.ok()?;
        (carried(&far, "destination", "mutual_tls").ok()? > 0.0).then_some(())
    })?;
    let before = Counts::of(&near)?;
    let said = a.run(|| connected(socket, at(c.ipv4())).and_then(converse))??;
    let grown = Counts::of(&near)?.since(&before);
    ensure!(said.contains(&format!("c saw {}\n", a.ipv4())) && grown.get("outbound") == Some(&1), "{said}, {grown:?}");
    ensure!(carried(&far, "destination", "unknown")? == 0.0, "something came in clear");
    Ok(())
}

#[test]
fn what_cannot_be_steered_is_refused_and_what_is_no_stream_passes() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c")])?;
    let near = mesh.agent(1)?;
    let (a, c) = (mesh.pod("a"), mesh.pod("c"));

    // A link-local destination is on the link alone: the mark would be passed by.
    let before = Counts::of(&near)?;
    let link_local = SocketAddrV6::new("fe80::1".parse()?, PORT, 0, a.run(|| nix::net::if_::if_nametoindex("eth0"))??);
    let refused = a.run(|| TcpStream::connect_timeout(&link_local.into(), LIMIT))?;
    assert_eq!(refused.err().and_then(|error| error.raw_os_error()), Some(libc::EPERM));
    assert_eq!(Counts::of(&near)?.since(&before), counts([("connect_link_local", 1)]));

    // UDP is not carried, and counted; ping is no stream.
    for (own, ip) in a.addresses().into_iter().zip(c.addresses()) {
        let before = Counts::of(&near)?;
        let there = c.run(|| std::net::UdpSocket::bind((ip, 5353)))??;
        there.set_read_timeout(Some(LIMIT))?;
        a.run(|| std::net::UdpSocket::bind((own, 0))?.send_to(b"hello", (ip, 5353)))??;
        let mut heard = [0; 5];
        assert_eq!(there.recv_from(&mut heard)?.1.ip(), own);
        assert_eq!(Counts::of(&near)?.since(&before), counts([("udp_socket", 1)]));
        let (icmp, level, header) = if ip.is_ipv4() { (1, libc::IPPROTO_IP, 3) } else { (58, libc::IPPROTO_IPV6, 36) };
        a.run(|| other(at(ip), Type::RAW, icmp))??;
        // But not with a header of its own, which may name any protocol.
        let before = Counts::of(&near)?;
        let refused = a.run(|| set(&Socket::from(other(at(ip), Type::RAW, icmp)?), level, header, 1))?;
        assert_eq!(refused.err().and_then(|error| error.raw_os_error()), Some(libc::EPERM));
        assert_eq!(Counts::of(&near)?.since(&before), counts([("setsockopt_raw_header", 1)]));
    }
    Ok(())
}

#[test]
fn localhost_and_the_pod_itself_are_left_alone_by_every_kind_of_socket() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a")])?;
    let near = mesh.agent(1)?;
    let a = mesh.pod("a");
    let before = Counts::of(&near)?;
    for (name, way, fate) in WAYS.iter().filter(|(name, _, fate)| *fate == Captured && !name.contains("DEVICE")) {
        for to in [at(a.ipv4()), at(a.ipv6()), SocketAddr::from(([127, 0, 0, 1], PORT))] {
            if to.ip().is_loopback() && name.contains("bound to") {
                continue;
            }
            let said = a.run(|| way(to).and_then(converse))?.with_context(|| format!("{name} to {to}, {fate:?}"))?;
            ensure!(said.contains(&format!("a saw {}\n", to.ip())), "{name} to {to}: {said}");
        }
    }
    // A socket that was steered once is not steered to localhost.
    let said = a.run(|| {
        let socket = tcp(SocketAddr::from(([127, 0, 0, 1], PORT)))?;
        let _ = socket.connect_timeout(&SocketAddr::from(([192, 0, 2, 9], 9)).into(), Duration::from_millis(500));
        disconnect(&socket)?;
        socket.set_nonblocking(false)?;
        converse(connected(socket, SocketAddr::from(([127, 0, 0, 1], PORT)))?)
    })??;
    ensure!(said.contains("a saw 127.0.0.1\n"), "{said}");
    assert_eq!(Counts::of(&near)?.since(&before).get("outbound"), Some(&1));
    Ok(())
}

/// Says the secret to an HTTP server and returns what it answers.
fn converse(mut stream: TcpStream) -> io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET / HTTP/1.1\r\nCookie: {SECRET}\r\nConnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn tcp(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
}

fn connected(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.connect(&to.into())?;
    let peer = socket.peer_addr()?.as_socket().map(|peer| peer.ip().to_canonical());
    if peer != Some(to.ip().to_canonical()) {
        return Err(io::Error::other(format!("getpeername() says {peer:?} of {to}")));
    }
    Ok(socket.into())
}

fn non_blocking(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => result?,
    }
    finished(socket)
}

/// Waits until a connect that was started has ended.
fn finished(socket: Socket) -> io::Result<TcpStream> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid entry, for the time of the call.
    unsafe { libc::poll(&raw mut poll, 1, 5000) };
    socket.take_error()?.map_or(Ok(socket.into()), Err)
}

fn fast_open_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    set(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    connected(socket, to)
}

fn fast_open_send(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    socket.send_to_with_flags(b"", &SockAddr::from(to), libc::MSG_FASTOPEN)?;
    Ok(socket.into())
}

fn bound(to: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    socket.set_reuse_address(true)?;
    let own = if port == 0 { own_address(to)? } else { unspecified(to) };
    socket.bind(&SocketAddr::new(own, port).into())?;
    let stream = connected(socket, to)?;
    let local = stream.local_addr()?;
    if port != 0 && local.port() != port {
        return Err(io::Error::other(format!("bound to {port}, and {local} now")));
    }
    Ok(stream)
}

/// The address that this netns uses towards `to`.
fn own_address(to: SocketAddr) -> io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn as_mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

fn mapped(to: SocketAddr) -> io::Result<TcpStream> {
    let to = as_mapped(to);
    connected(tcp(to)?, to)
}

fn bound_to_device(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    socket.bind_device(Some(b"eth0"))?;
    connected(socket, to)
}

fn mapped_and_bound_to_device(to: SocketAddr) -> io::Result<TcpStream> {
    bound_to_device(as_mapped(to))
}

fn dont_route(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_DONTROUTE, 1)?;
    connected(socket, to)
}

fn marked(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    socket.set_mark(7)?;
    connected(socket, to)
}

/// A socket that was connected to loopback first.
fn connected_again(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    let nobody = SocketAddr::new(if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }, 1);
    let _ = socket.connect(&nobody.into());
    disconnect(&socket)?;
    connected(socket, to)
}

/// Any other kind of socket: made, and if that succeeds, connected.
fn other(to: SocketAddr, kind: Type, protocol: i32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::from(protocol)))?;
    let target = if kind == Type::RAW { SocketAddr::new(to.ip(), 0) } else { to };
    socket.connect(&target.into())?;
    Ok(socket.into())
}

fn disconnect(socket: &Socket) -> io::Result<()> {
    let nothing = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is valid for the call.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nothing, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
