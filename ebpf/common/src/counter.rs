//! What the programs count.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal / $reason:literal,)*) => {
        /// One counter for every path that refuses, gives up, or lets something by; the index into the counters' map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All of them, in order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// What happened: `refused`, `failed`, `passed`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where and why.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason,)* }
            }
        }
    };
}

counters! {
    /// The agent does not listen: what the pod dials is refused.
    OutboundNoListener = "refused" / "outbound_no_listener",
    /// The agent does not listen: a tunnel to the pod is refused.
    HboneNoListener = "refused" / "hbone_no_listener",
    /// The agent does not listen: plaintext to the pod is refused.
    PlaintextNoListener = "refused" / "plaintext_no_listener",
    /// A connection from outside to an address that the pod did not have when it was enrolled.
    UnknownAddress = "refused" / "inbound_unknown_address",
    /// A socket that the connect hooks would not see: MPTCP.
    Mptcp = "refused" / "socket_mptcp",
    /// A socket that the connect hooks would not see: SCTP, DCCP and other streams.
    StreamProtocol = "refused" / "socket_stream_protocol",
    /// A raw socket that could carry TCP past the hooks.
    Raw = "refused" / "socket_raw",
    /// A socket bound to a device that could not be unbound.
    DeviceBinding = "refused" / "connect_device_binding",
    /// The mark could not be set.
    Mark = "refused" / "connect_mark",
    /// An IPv6 link-local destination, which is on the link that the socket names and nowhere else.
    LinkLocal = "refused" / "connect_link_local",
    /// A steered connection was to be taken from its path: its mark or its device changed while it is open.
    Steered = "refused" / "setsockopt_steered",
    /// A raw socket was to write IP headers of its own, with which it could carry TCP past the hooks.
    RawHeader = "refused" / "setsockopt_raw_header",
    /// Nobody knows the destination, and the mesh lets nothing else out (`REGISTRY_ONLY`).
    RegistryOnly = "refused" / "registry_only",
    /// The agent does not listen: what the pod asks of DNS is refused.
    DnsNoListener = "refused" / "dns_no_listener",
    /// A connection could not be handed to the listener.
    Assign = "refused" / "assign_failed",
    /// A host socket's connection could not be recorded, and will be taken for plaintext.
    ProbeRecord = "failed" / "probe_record",
    /// A socket was unbound from its device to be captured.
    DeviceUnbound = "passed" / "device_unbound",
    /// A destination in a namespace that is bypassed by its name.
    BypassNamespace = "passed" / "bypass_namespace",
    /// A destination port that is bypassed.
    BypassPort = "passed" / "bypass_port",
    /// A destination address that is bypassed.
    BypassAddress = "passed" / "bypass_address",
    /// DNS from a socket that is bound to a device, which the rule for DNS does not lead to the agent.
    DnsBoundDevice = "passed" / "dns_bound_device",
    /// A UDP socket: not carried by the mesh.
    Udp = "passed" / "udp_socket",
    /// A connection of a host socket (a kubelet probe) went straight to the application.
    Probe = "passed" / "host_probe",
    /// A connection to a pod that bypasses inbound capture.
    BypassInbound = "passed" / "bypass_inbound",
    /// A connection was steered to the outbound listener.
    Outbound = "captured" / "outbound",
    /// A DNS datagram was steered to the agent.
    DnsUdp = "captured" / "dns_udp",
    /// A DNS connection was steered to the agent.
    DnsTcp = "captured" / "dns_tcp",
    /// A tunnel was handed to the pod's listener.
    Hbone = "captured" / "hbone",
    /// A plaintext connection was handed to the pod's listener.
    Plaintext = "captured" / "plaintext",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_counter_is_its_place() {
        for (at, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, at);
        }
    }

    #[test]
    fn no_two_counters_share_their_labels() {
        for (at, a) in Counter::ALL.iter().enumerate() {
            for b in &Counter::ALL[at + 1..] {
                assert_ne!((a.name(), a.reason()), (b.name(), b.reason()));
            }
        }
    }
}
