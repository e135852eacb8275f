//! Network namespaces: opening them, doing something in them, and the sockets the agent makes there.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use culvert_core::address::NetnsCookie;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use smallvec::SmallVec;
use socket2::{Domain, Protocol, Socket, Type};

use culvert_ebpf_common::DNS_MARK;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As sockets are made.
    pub fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// A handle on a network namespace, open for as long as it is held.
#[derive(Debug)]
pub(super) struct Netns {
    fd: OwnedFd,
    /// Where threads go back to.
    home: Arc<OwnedFd>,
    cookie: NetnsCookie,
}

impl Netns {
    /// The calling thread's own.
    pub(super) fn current() -> io::Result<Self> {
        let home: Arc<OwnedFd> = Arc::new(File::open("/proc/thread-self/ns/net")?.into());
        Ok(Self { fd: home.try_clone()?, home, cookie: current_cookie()? })
    }

    /// The one at `path`, to be entered from `self`'s threads.
    pub(super) fn open(&self, path: &Path) -> io::Result<Self> {
        // A pipe or a terminal must keep nobody waiting.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let fd: OwnedFd = File::options().read(true).custom_flags(flags).open(path)?.into();
        if fstatfs(&fd)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is another kind of file"));
        }
        let mut netns = Self { fd, home: self.home.clone(), cookie: NetnsCookie(0) };
        netns.cookie = netns.enter(current_cookie)??;
        Ok(netns)
    }

    /// The one of this cookie, if a process of the node is in it: for when the path by which it was known has gone.
    pub(super) fn find(&self, cookie: NetnsCookie) -> Option<Self> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let mut seen = std::collections::HashSet::new();
        let candidates = processes.map(|process| process.join("ns/net")).filter(|path| {
            let id = std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
            id.is_ok_and(|id| seen.insert(id))
        });
        let opened = |path: std::path::PathBuf| self.open(&path).ok();
        candidates.into_iter().filter_map(opened).find(|netns| netns.cookie == cookie)
    }

    pub(super) fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Calls `f` on this thread inside the namespace, and comes back.
    ///
    /// `f` must not wait: the thread belongs to others too, and what they open meanwhile would be opened in here.
    pub(super) fn enter<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        // Also on unwinding: a thread that stayed inside would make its next sockets in the wrong pod.
        struct Back<'a>(&'a OwnedFd);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if setns(self.0, CloneFlags::CLONE_NEWNET).is_err() {
                    std::process::abort();
                }
            }
        }
        let back = Back(&self.home);
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        let value = f();
        drop(back);
        Ok(value)
    }
}

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
fn current_cookie() -> io::Result<NetnsCookie> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // SAFETY: `cookie` and `len` are valid for the call, and `len` is the size of `cookie`.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if rc == 0 { Ok(NetnsCookie(cookie)) } else { Err(io::Error::last_os_error()) }
}

/// A pod's network namespace, and the sockets that the agent makes in it.
#[derive(Debug)]
pub struct PodNetns {
    netns: Netns,
    addresses: SmallVec<[IpAddr; 2]>,
}

impl PodNetns {
    pub(super) fn new(netns: Netns, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { netns, addresses: addresses.into_iter().collect() }
    }

    /// This thread's own, as if it were a pod's: for tests.
    #[cfg(test)]
    pub(crate) fn current() -> Self {
        Self::new(Netns::current().unwrap_or_else(|error| panic!("{error}")), [])
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The kernel's name for it.
    pub fn cookie(&self) -> NetnsCookie {
        self.netns.cookie
    }

    /// The pod's addresses, the primary one first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// A nonblocking TCP socket in the pod's network namespace that is not steered: what it connects to sees the pod.
    ///
    /// # Errors
    ///
    /// The agent is out of descriptors, or the family is switched off.
    pub fn tcp_socket(&self, family: Family) -> io::Result<Socket> {
        self.netns.enter(|| Socket::new(family.domain(), Type::STREAM.nonblocking(), Some(Protocol::TCP)))?
    }

    /// A nonblocking UDP socket in the pod's network namespace that asks DNS without being steered itself.
    ///
    /// # Errors
    ///
    /// The agent is out of descriptors, or the family is switched off.
    pub fn dns_socket(&self, family: Family) -> io::Result<Socket> {
        let open = || Socket::new(family.domain(), Type::DGRAM.nonblocking(), Some(Protocol::UDP));
        let socket = self.netns.enter(open)??;
        socket.set_mark(DNS_MARK)?;
        Ok(socket)
    }
}

/// Starts to connect a nonblocking socket, which may take until later.
///
/// # Errors
/// What the kernel says at once.
pub fn begin_connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

pub(super) fn set_int(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which lives for the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;

    #[test]
    fn what_is_no_network_namespace_is_refused_at_once() {
        let directory = TempDir::new();
        let pipe = directory.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(directory.join("file"), "").unwrap();
        let home: Arc<OwnedFd> = Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into());
        let own = Netns { fd: home.try_clone().unwrap(), home, cookie: NetnsCookie(0) };
        let (opened, result) = std::sync::mpsc::channel();
        let paths = [pipe, directory.join("file"), directory.path().to_owned(), "/dev/null".into()];
        // In a thread of its own: who waits for a pipe's writer waits for ever.
        std::thread::spawn(move || paths.iter().for_each(|path| opened.send(own.open(path).map(drop)).unwrap()));
        for _ in 0..4 {
            let error = result.recv_timeout(std::time::Duration::from_secs(10)).unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }
}
