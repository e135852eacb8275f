//! Loading the programs, attaching them and pinning their links.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockHash};
use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSock, CgroupSockAddr, CgroupSockopt, Program, ProgramError, SkLookup, SockOps};
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::{AddressKey, Ip, ListenerKey, Pod, PodRecord, PortKey, RuleKey, Settings};
use nix::fcntl::FlockArg;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;

use super::error::LoadError;
use super::link;
use super::netns::Netns;
use super::pins::{Pins, UNFINISHED};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_EBPF_OBJECT"));

/// What a program needs that old kernels lack.
struct Needs {
    program: &'static str,
    feature: &'static str,
    since: &'static str,
}

const ADDRESS: [Needs; 4] = [
    Needs { program: "connect_v4", feature: "SO_MARK in cgroup connect hooks", since: "5.8" },
    Needs { program: "connect_v6", feature: "SO_MARK in cgroup connect hooks", since: "5.8" },
    Needs { program: "send_v4", feature: "the netns cookie in cgroup sendmsg hooks", since: "5.7" },
    Needs { program: "send_v6", feature: "the netns cookie in cgroup sendmsg hooks", since: "5.7" },
];
const CREATE_SOCKET: Needs =
    Needs { program: "create_socket", feature: "the netns cookie in cgroup socket hooks", since: "5.7" };
const SET_OPTION: Needs =
    Needs { program: "set_option", feature: "the netns cookie in cgroup setsockopt hooks", since: "5.15" };
const HOST_SOCKET: Needs = Needs { program: "host_socket", feature: "the netns cookie in sock_ops", since: "5.15" };
const ARRIVE: Needs = Needs { program: "arrive", feature: "the ingress interface in sk_lookup", since: "5.17" };

/// What the programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Constants {
    /// The node's network namespace.
    pub(super) host_netns: NetnsCookie,
}

/// The pinned maps.
pub(super) struct Maps {
    pub(super) agents: HashMap<MapData, u64, u64>,
    pub(super) pods: HashMap<MapData, u64, Pod>,
    pub(super) addresses: HashMap<MapData, AddressKey, u8>,
    pub(super) records: HashMap<MapData, u64, PodRecord>,
    pub(super) listeners: SockHash<MapData, ListenerKey>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) settings: Array<MapData, Settings>,
    pub(super) destinations: LpmTrie<MapData, Ip, u8>,
    pub(super) address_rules: LpmTrie<MapData, RuleKey, u8>,
    pub(super) port_rules: HashMap<MapData, PortKey, u8>,
}

/// Loads every program once, to know that this kernel can, and attaches those that serve the whole node.
pub(super) fn attach_node(
    pins: &Pins,
    constants: Constants,
    pods: &Path,
    cgroup_mount: &Path,
) -> Result<Maps, LoadError> {
    // Agents that start together would take each other's unfinished pins away.
    let _alone = pins.lock(FlockArg::LockExclusive).map_err(pin_error(pins))?;
    let mut ebpf = load(pins, constants, NetnsCookie(0)).map_err(object_error)?;
    // The one that needs the newest kernel first: nothing is attached when it cannot be loaded.
    let arrive: &mut SkLookup = program(&mut ebpf, ARRIVE.program)?;
    arrive.load().map_err(|error| ARRIVE.lacking(&error))?;
    let pods = open(pods)?;
    for needs in ADDRESS {
        let program: &mut CgroupSockAddr = program(&mut ebpf, needs.program)?;
        let attached = program.load().and_then(|()| program.attach(&pods, CgroupAttachMode::Single));
        let link = attached.and_then(|id| program.take_link(id)).map_err(|error| needs.lacking(&error))?;
        pin(link.try_into().map_err(object_error)?, &pins.links().join(needs.program)).map_err(pin_error(pins))?;
    }
    let socket: &mut CgroupSock = program(&mut ebpf, CREATE_SOCKET.program)?;
    let attached = socket.load().and_then(|()| socket.attach(&pods, CgroupAttachMode::Single));
    let link = attached.and_then(|id| socket.take_link(id)).map_err(|error| CREATE_SOCKET.lacking(&error))?;
    pin(link.try_into().map_err(object_error)?, &pins.links().join(CREATE_SOCKET.program)).map_err(pin_error(pins))?;

    let option: &mut CgroupSockopt = program(&mut ebpf, SET_OPTION.program)?;
    option.load().map_err(|error| SET_OPTION.lacking(&error))?;
    let fd = option.fd().map_err(|error| SET_OPTION.lacking(&error))?;
    let option = link::attach_setsockopt(fd.as_fd(), pods.as_fd())
        .map_err(|io_error| SET_OPTION.lacking(&SyscallError { call: "bpf_link_create", io_error }.into()))?;
    replace(&pins.links().join(SET_OPTION.program), |new| link::pin(&option, new)).map_err(pin_error(pins))?;

    let host: &mut SockOps = program(&mut ebpf, HOST_SOCKET.program)?;
    let everyone = open(cgroup_mount)?;
    let attached = host.load().and_then(|()| host.attach(&everyone, CgroupAttachMode::Single));
    let link = attached.and_then(|id| host.take_link(id)).map_err(|error| HOST_SOCKET.lacking(&error))?;
    pin(link.try_into().map_err(object_error)?, &pins.links().join(HOST_SOCKET.program)).map_err(pin_error(pins))?;
    Maps::take(&mut ebpf)
}

/// Attaches an instance of the lookup program to a pod's network namespace and pins it, in place of an earlier one.
pub(super) fn attach_pod(pins: &Pins, constants: Constants, netns: &Netns) -> io::Result<()> {
    let mut ebpf = load(pins, constants, netns.cookie()).map_err(io::Error::other)?;
    let arrive: &mut SkLookup = program(&mut ebpf, ARRIVE.program).map_err(io::Error::other)?;
    let attached = arrive.load().and_then(|()| arrive.attach(netns.as_fd()));
    let link = attached.and_then(|id| arrive.take_link(id)).map_err(io::Error::other)?;
    pin(link.into(), &pins.pod(netns.cookie()))
}

/// Detaches it. Fine if it is not there.
pub(super) fn detach_pod(pins: &Pins, cookie: NetnsCookie) -> io::Result<()> {
    match fs::remove_file(pins.pod(cookie)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One loader for all loads. Nothing here is relocated by the kernel's own types, but making a loader reads and parses
/// them where it finds them, which takes 20 MB and most of the time of a load, and it cannot be told not to.
static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let make = || {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Mutex::new(loader)
    };
    // So it is made on a thread that does not find them: its root directory is another. Where that is not allowed, they
    // are read for nothing.
    let make_apart = move || {
        let _ = unshare(CloneFlags::CLONE_FS).and_then(|()| chroot("/dev"));
        make()
    };
    thread::spawn(make_apart).join().unwrap_or_else(|_| make())
});

fn load(pins: &Pins, constants: Constants, pod: NetnsCookie) -> Result<Ebpf, EbpfError> {
    // The loader borrows them for as long as it lives, which is for ever: 16 bytes for each pod taken in.
    let [host_netns, pod_netns] = Box::leak(Box::new([constants.host_netns.0, pod.0]));
    // It holds settings only, which are set anew here.
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    loader
        .default_map_pin_directory(pins.maps())
        .override_global("HOST_NETNS", &*host_netns, true)
        .override_global("POD_NETNS", &*pod_netns, true)
        .load(OBJECT)
}

/// Pins the new link over the old, which is attached until then: at no moment is neither.
fn pin(link: FdLink, path: &Path) -> io::Result<()> {
    replace(path, |new| link.pin(new).map(drop).map_err(io::Error::other))
}

fn replace(path: &Path, pin: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // No dot: bpffs keeps such names for itself.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!("{name}{UNFINISHED}"));
    let _ = fs::remove_file(&new);
    pin(&new)?;
    fs::rename(&new, path)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Object(format!("no program `{name}`")))?;
    program.try_into().map_err(object_error)
}

fn open(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|error| LoadError::Cgroup { path: path.to_path_buf(), reason: error.to_string() })
}

fn pin_error(pins: &Pins) -> impl FnOnce(io::Error) -> LoadError {
    let path = pins.links();
    move |error| LoadError::Pins { path, reason: error.to_string() }
}

impl Needs {
    fn lacking(&self, error: &ProgramError) -> LoadError {
        let (reason, errno) = match error {
            // The verifier's verdict is at the end of its log.
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let is_statistic =
                    |line: &str| ["processed", "stack depth", "verification time"].iter().any(|s| line.starts_with(s));
                let last = log.lines().rev().find(|line| !line.is_empty() && !is_statistic(line));
                (format!("{io_error}: {}", last.unwrap_or("the verifier said nothing")), io_error.raw_os_error())
            }
            ProgramError::SyscallError(error) => {
                (format!("{error}: {}", error.io_error), error.io_error.raw_os_error())
            }
            error => (error.to_string(), None),
        };
        // The verifier answers EACCES, a lack of privilege is EPERM.
        if errno == Some(libc::EPERM) {
            return LoadError::Privilege(reason);
        }
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        LoadError::Kernel {
            kernel: kernel.unwrap_or_default(),
            program: self.program,
            feature: self.feature,
            since: self.since,
            reason,
        }
    }
}

fn object_error(error: impl std::error::Error) -> LoadError {
    let mut cause: &dyn std::error::Error = &error;
    let mut text = error.to_string();
    while let Some(source) = cause.source() {
        cause = source;
        text = format!("{text}: {source}");
        let errno = source.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if errno == Some(libc::EPERM) {
            return LoadError::Privilege(text);
        }
    }
    LoadError::Object(text)
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        fn one<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, LoadError> {
            let map = ebpf.take_map(name).ok_or_else(|| LoadError::Object(format!("no map `{name}`")))?;
            map.try_into().map_err(object_error)
        }
        Ok(Self {
            agents: one(ebpf, "AGENTS")?,
            pods: one(ebpf, "PODS")?,
            addresses: one(ebpf, "ADDRESSES")?,
            records: one(ebpf, "RECORDS")?,
            listeners: one(ebpf, "LISTENERS")?,
            counters: one(ebpf, "COUNTERS")?,
            settings: one(ebpf, "SETTINGS")?,
            destinations: one(ebpf, "DESTINATIONS")?,
            address_rules: one(ebpf, "ADDRESS_RULES")?,
            port_rules: one(ebpf, "PORT_RULES")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(needs: &Needs, errno: i32) -> String {
        let io_error = io::Error::from_raw_os_error(errno);
        needs.lacking(&SyscallError { call: "bpf_link_create", io_error }.into()).to_string()
    }

    #[test]
    fn what_a_kernel_lacks_is_one_line_with_the_version_that_has_it_and_what_to_do() {
        for needs in ADDRESS.iter().chain([&CREATE_SOCKET, &SET_OPTION, &HOST_SOCKET, &ARRIVE]) {
            let line = said(needs, libc::EINVAL);
            let parts =
                [needs.program, needs.feature, needs.since, "run the node on such a kernel", "Invalid argument"];
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_lack_of_privilege_is_not_taken_for_a_lack_of_the_kernel() {
        let line = said(&ARRIVE, libc::EPERM);
        assert!(line.contains("needs root") && !line.contains("since Linux"), "{line}");
    }
}
