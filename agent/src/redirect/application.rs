//! The agent's legs to applications: connections that come from the client's address, so that the application sees who
//! calls.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

use culvert_core::address::ClientAddr;
use culvert_ebpf_common::STEERING_MARK;
use rand::Rng;
use socket2::Socket;

use super::netns::{Family, PodNetns, begin_connect, set_int};

/// Their source ports: outside what clients use (32768 and up, IANA's and Linux's ephemeral ports), because
/// `(client address, client port)` may be taken by the agent's own accepted socket. `IP_LOCAL_PORT_RANGE` (Linux 6.3)
/// is no help: the kernel ignores it where it is outside the namespace's `net.ipv4.ip_local_port_range`, which is the
/// very range to be avoided.
const PORTS: RangeInclusive<u16> = 1024..=32767;
/// Ports that are tried for one leg: with nine of ten taken by one client's connections to one port, one leg in thirty
/// finds none.
const TRIES: usize = 32;

impl PodNetns {
    /// Starts to connect a nonblocking TCP socket to the application at `destination` in the pod, from the client's
    /// address and a port that clients do not use.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] when the two addresses are of different families,
    /// [`io::ErrorKind::AddrNotAvailable`] when every port tried is taken; otherwise the kernel's.
    pub fn connect_application(&self, client: ClientAddr, destination: SocketAddr) -> io::Result<Socket> {
        let (from, to) = (client.ip(), destination.ip().to_canonical());
        let family = Family::of(to);
        if Family::of(from) != family {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the client {client} and the pod {to} are of different address families"),
            ));
        }
        for port in ports() {
            let socket = self.transparent_socket(family)?;
            match connect_from(&socket, SocketAddr::new(from, port), destination) {
                Ok(()) => return Ok(socket),
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(none_left(from, destination))
    }

    fn transparent_socket(&self, family: Family) -> io::Result<Socket> {
        let socket = self.tcp_socket(family)?;
        match family {
            Family::V4 => socket.set_ip_transparent_v4(true)?,
            Family::V6 => set_int(&socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?,
        }
        socket.set_mark(STEERING_MARK)?;
        socket.set_tcp_nodelay(true)?;
        // Clients that close first leave the ports of their legs in TIME_WAIT. With this, the port can be bound again,
        // and connecting from a bound port takes the place of the old connection at once, whatever `tcp_tw_reuse` says
        // (`tcp_twsk_unique`); TCP timestamps keep the two apart. Applications can still listen on the port.
        socket.set_reuse_address(true)?;
        Ok(socket)
    }
}

/// The one that has rested longest, then any: those of connections that live long lie side by side.
fn ports() -> impl Iterator<Item = u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // u16::MAX + 1 is no multiple of their number: now and then it starts over a little early, which does no harm.
    let next = PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end() - PORTS.start() + 1);
    std::iter::once(next).chain(std::iter::repeat_with(|| rand::rng().random_range(PORTS))).take(TRIES)
}

fn connect_from(socket: &Socket, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    socket.bind(&from.into())?;
    begin_connect(socket, to)
}

/// By a listener (bind), or by a connection to the same place (connect).
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

fn none_left(client: IpAddr, to: SocketAddr) -> io::Error {
    let (first, last) = (PORTS.start(), PORTS.end());
    io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!(
            "none of {TRIES} ports tried of {first}-{last} is free from {client} to {to}: the client holds too many \
             connections, or net.ipv4.tcp_timestamps=0 in the pod keeps the ports of closed ones for a minute"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Shutdown, TcpListener};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Calls `f` in a network namespace of its own that has `lo`, as if it were a pod's.
    fn in_a_pod<T: Send>(f: impl FnOnce(PodNetns) -> T + Send) -> T {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            // The kernel's help is not needed: elsewhere than on loopback it is off by default.
            std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0").unwrap();
            f(PodNetns::current())
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn connected(netns: &PodNetns, client: &str, listener: &TcpListener) -> (Socket, std::net::TcpStream) {
        let client = ClientAddr::new(client.parse().unwrap());
        let leg = netns.connect_application(client, listener.local_addr().unwrap()).unwrap();
        let (application, peer) = listener.accept().unwrap();
        assert!(peer.ip() == client.ip() && PORTS.contains(&peer.port()), "{peer}");
        (leg, application)
    }

    #[test]
    fn a_client_that_closes_first_may_come_more_often_than_there_are_ports() {
        let cycles = 5 * PORTS.len() / 4;
        let cases = [("127.0.0.1:0", "127.0.0.2:40000"), ("[::1]:0", "[::1]:40000")];
        for (pod, client) in cases {
            in_a_pod(|netns| {
                let listener = TcpListener::bind(pod).unwrap();
                for _ in 0..cycles {
                    let (leg, mut application) = connected(&netns, client, &listener);
                    leg.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(application.read(&mut [0]).unwrap(), 0);
                }
                let sockets = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
                let waiting = sockets.split(" tw ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
                assert!(waiting.parse::<usize>().unwrap() > PORTS.len() / 2, "{sockets}");
            });
        }
    }

    #[test]
    fn ports_that_listeners_and_live_connections_have_are_passed_over() {
        in_a_pod(|netns| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let taken: Vec<_> = PORTS.step_by(4).map(|port| TcpListener::bind(("127.0.0.2", port)).unwrap()).collect();
            let live: Vec<_> = (0..1000).map(|_| connected(&netns, "127.0.0.2:40000", &listener)).collect();
            drop((taken, live));
        });
    }
}
