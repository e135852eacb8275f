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
    /// DNS over TCP that the pod sends.
    DnsTcp,
    /// DNS over UDP that the pod sends.
    DnsUdp,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Outbound, Self::Hbone, Self::Plaintext, Self::DnsTcp, Self::DnsUdp];
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
    /// [`Pod::BYPASS_INBOUND`], [`Pod::CAPTURE_DNS`], [`Pod::RULES`].
    pub flags: u32,
}

impl Pod {
    /// What the pod receives is left alone.
    pub const BYPASS_INBOUND: u32 = 1;
    /// What the pod asks of port 53 goes to the agent.
    pub const CAPTURE_DNS: u32 = 2;
    /// The pod has rules of its own in the maps of outbound rules.
    pub const RULES: u32 = 4;

    /// Whether what the pod receives is left alone.
    #[inline(always)]
    pub const fn bypasses_inbound(&self) -> bool {
        self.flags & Self::BYPASS_INBOUND != 0
    }

    /// Whether what the pod asks of port 53 goes to the agent.
    #[inline(always)]
    pub const fn captures_dns(&self) -> bool {
        self.flags & Self::CAPTURE_DNS != 0
    }

    /// Whether the pod has outbound rules of its own.
    #[inline(always)]
    pub const fn has_rules(&self) -> bool {
        self.flags & Self::RULES != 0
    }
}

/// What holds for every pod; the only row of its map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The constants of this type.
    pub flags: u32,
}

impl Settings {
    /// Every destination of the mesh is in the map of destinations. Without it nothing is bypassed or refused by what
    /// is *not* in that map.
    pub const COMPLETE: u32 = 1;
    /// Destinations that are not in the map are refused.
    pub const REGISTRY_ONLY: u32 = 2;
    /// There are outbound rules for every pod.
    pub const RULES: u32 = 4;
}

/// What is known of a destination: the value in the map of destinations, an LPM trie keyed by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Destination {
    /// It is in the mesh: no rule about addresses or ports takes it out of the tunnel.
    Mesh = 1,
    /// It is known to the mesh, and not in it.
    Known = 2,
    /// It belongs to a namespace that is bypassed by its name.
    Named = 3,
}

impl Destination {
    /// What `value` stands for; what nobody wrote is taken for [`Destination::Mesh`], which is captured.
    #[inline(always)]
    pub const fn from_value(value: u8) -> Self {
        match value {
            2 => Self::Known,
            3 => Self::Named,
            _ => Self::Mesh,
        }
    }
}

/// An outbound rule about addresses: the key of an LPM trie, where the namespace is always whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RuleKey {
    /// The cookie of the pod's network namespace, or [`RuleKey::EVERYONE`].
    pub netns: u64,
    /// The network.
    pub ip: Ip,
}

impl RuleKey {
    /// Stands for every pod of the node.
    pub const EVERYONE: u64 = 0;
    /// The length of a prefix that holds one address.
    pub const WHOLE: u32 = 64 + 128;
    /// The value of a rule that bypasses; any other captures.
    pub const BYPASS: u8 = 1;
    /// The value of a rule that captures.
    pub const CAPTURE: u8 = 2;
}

/// An outbound rule that bypasses a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// The cookie of the pod's network namespace, or [`RuleKey::EVERYONE`].
    pub netns: u64,
    port: u32,
    _pad: u32,
}

impl PortKey {
    /// The rule about `port`.
    #[inline(always)]
    pub const fn new(netns: u64, port: u16) -> Self {
        Self { netns, port: port as u32, _pad: 0 }
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port as u16
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
    use super::{AddressKey, ListenerKey, Pod, PodRecord, PortKey, Probe, RuleKey, Settings};

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
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RuleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortKey {}
}

// A hidden byte in a key would make equal keys differ.
const _: () = {
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<AddressKey>() == 24);
    assert!(size_of::<Probe>() == 36);
    assert!(size_of::<Pod>() == 4);
    assert!(size_of::<RuleKey>() == 24);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<PodRecord>() == 128 + 256 + 128 + 12);
};
