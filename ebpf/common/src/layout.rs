//! What the maps hold. Every address is 16 bytes, IPv4 mapped into IPv6, in network order.

/// An address as the maps hold it.
pub type Ip = [u8; 16];

/// A pod's UID, padded with zeroes.
pub type Uid = [u8; 128];

/// An IPv4 address as the maps hold it: `::ffff:a.b.c.d`.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Ip {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// What the pod dials.
    Outbound,
    /// Tunnels to the pod.
    Hbone,
    /// Everything else to the pod.
    Plaintext,
}

/// The key of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// The cookie of the pod's network namespace.
    pub netns: u64,
    role: u32,
    _pad: u32,
}

impl ListenerKey {
    /// The listener of the pod in `netns` for `role`.
    #[inline(always)]
    pub const fn new(netns: u64, role: Role) -> Self {
        Self { netns, role: role as u32, _pad: 0 }
    }
}

/// A captured pod, keyed by the cookie of its network namespace. Writing it is what captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// [`Pod::BYPASS_INBOUND`].
    pub flags: u32,
}

impl Pod {
    /// What the pod receives is left alone.
    pub const BYPASS_INBOUND: u32 = 1;

    /// Whether what the pod receives is left alone.
    #[inline(always)]
    pub const fn bypasses_inbound(&self) -> bool {
        self.flags & Self::BYPASS_INBOUND != 0
    }
}

/// An address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddressKey {
    /// The cookie of the pod's network namespace, or [`AddressKey::ANY`].
    pub netns: u64,
    /// The address.
    pub ip: Ip,
}

impl AddressKey {
    /// Stands for "some pod of this node": what a host socket knows of its peer.
    pub const ANY: u64 = 0;
}

/// A connection of a host socket to a pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Probe {
    /// The pod's address.
    pub pod: Ip,
    /// The host's.
    pub host: Ip,
    /// The pod's port, host order.
    pub pod_port: u16,
    /// The host's port, host order.
    pub host_port: u16,
}

/// What the agent must remember of a pod to let it go after a restart. The programs do not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PodRecord {
    /// The pod's UID.
    pub uid: Uid,
    /// The path of its network namespace, padded with zeroes.
    pub netns: [u8; 256],
    /// The pod's addresses.
    pub addresses: [Ip; 8],
    /// How many of them there are.
    pub address_count: u32,
    /// [`Pod::flags`].
    pub flags: u32,
    /// What `net.ipv4.tcp_fwmark_accept` and `fwmark_reflect`, of IPv4 and IPv6, were: a byte each.
    pub mark_sysctls: u32,
}

#[cfg(feature = "user")]
mod user {
    use super::{AddressKey, ListenerKey, Pod, PodRecord, Probe};

    // SAFETY: each is `repr(C)`, of integers only, without implicit padding (asserted below).
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AddressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Probe {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodRecord {}
}

// A hidden byte in a key would make equal keys differ.
const _: () = {
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<AddressKey>() == 24);
    assert!(size_of::<Probe>() == 36);
    assert!(size_of::<Pod>() == 4);
    assert!(size_of::<PodRecord>() == 128 + 256 + 128 + 12);
};
