//! The object that holds the programs: loading it, and its maps.

use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockHash};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::{AddressKey, Ip, ListenerKey, Pod, PodRecord, PortKey, RuleKey, Settings};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;

use crate::redirect::error::LoadError;
use crate::redirect::pins::Pins;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_EBPF_OBJECT"));

/// What the programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub(in crate::redirect) struct Constants {
    /// The node's network namespace.
    pub(in crate::redirect) host_netns: NetnsCookie,
}

/// The pinned maps.
pub(in crate::redirect) struct Maps {
    pub(in crate::redirect) agents: HashMap<MapData, u64, u64>,
    pub(in crate::redirect) pods: HashMap<MapData, u64, Pod>,
    pub(in crate::redirect) addresses: HashMap<MapData, AddressKey, u8>,
    pub(in crate::redirect) records: HashMap<MapData, u64, PodRecord>,
    pub(in crate::redirect) listeners: SockHash<MapData, ListenerKey>,
    pub(in crate::redirect) counters: PerCpuArray<MapData, u64>,
    pub(in crate::redirect) settings: Array<MapData, Settings>,
    pub(in crate::redirect) destinations: LpmTrie<MapData, Ip, u8>,
    pub(in crate::redirect) address_rules: LpmTrie<MapData, RuleKey, u8>,
    pub(in crate::redirect) port_rules: HashMap<MapData, PortKey, u8>,
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

/// Loads the object for one pod, or for the node.
pub(super) fn load(pins: &Pins, constants: Constants, pod: NetnsCookie) -> Result<Ebpf, EbpfError> {
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

/// One of its programs.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Object(format!("no program `{name}`")))?;
    program.try_into().map_err(object_error)
}

/// What is wrong with the object, with every cause.
pub(super) fn object_error(error: impl std::error::Error) -> LoadError {
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
    /// The maps of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
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
