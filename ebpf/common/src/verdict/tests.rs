use super::*;
use crate::mapped;

const OUTSIDE: Ip = mapped([192, 0, 2, 1]);
const POD: Ip = mapped([10, 0, 0, 1]);

fn v6(last: u8) -> Ip {
    let mut ip = [0; 16];
    ip[15] = last;
    ip
}

#[test]
fn loopback_and_unspecified_addresses_are_loopback_in_both_families() {
    for ip in [mapped([127, 0, 0, 1]), mapped([127, 8, 9, 10]), mapped([0, 0, 0, 0]), v6(1), v6(0)] {
        assert!(is_loopback(&ip), "{ip:?}");
    }
    for ip in [POD, mapped([0, 0, 0, 1]), mapped([128, 0, 0, 1]), v6(2)] {
        assert!(!is_loopback(&ip), "{ip:?}");
    }
}

/// A `connect()` while the agent listens.
fn connect(destination: &Ip, mark: u32, bound_device: u32) -> Connect {
    super::connect(destination, mark, bound_device, || true, || *destination == POD, || Outward::Capture)
}

#[test]
fn streams_are_steered_and_freed_from_their_device() {
    assert_eq!(connect(&OUTSIDE, 0, 0), Connect::Steer { unbind: false });
    assert_eq!(connect(&OUTSIDE, 7, 2), Connect::Steer { unbind: true });
    // The pod's own address too: only marked does it arrive by lo.
    assert_eq!(connect(&POD, 0, 0), Connect::Steer { unbind: false });
}

#[test]
fn while_nobody_listens_all_but_the_pod_itself_is_refused() {
    let dead = |ip: &Ip, device| super::connect(ip, 0, device, || false, || *ip == POD, || Outward::Capture);
    assert_eq!(dead(&OUTSIDE, 0), Connect::Refuse { unbind: false, counter: Counter::OutboundNoListener });
    assert_eq!(dead(&OUTSIDE, 2), Connect::Refuse { unbind: true, counter: Counter::OutboundNoListener });
    assert_eq!(dead(&POD, 0), Connect::Steer { unbind: false });
    assert_eq!(dead(&v6(1), 0), Connect::Pass);
}

#[test]
fn link_local_destinations_which_cannot_be_steered_are_forbidden() {
    let mut ip = v6(1);
    for (start, forbidden) in [([0xfe, 0x80], true), ([0xfe, 0xbf], true), ([0xfe, 0xc0], false), ([0xfd, 0x80], false)]
    {
        [ip[0], ip[1]] = start;
        assert_eq!(connect(&ip, 0, 0) == Connect::Forbid(Counter::LinkLocal), forbidden, "{ip:?}");
    }
}

#[test]
fn loopback_is_left_alone() {
    assert_eq!(connect(&v6(1), 0, 0), Connect::Pass);
    assert_eq!(connect(&v6(1), 7, 0), Connect::Pass);
}

#[test]
fn a_socket_that_was_steered_before_reaches_loopback_unmarked() {
    assert_eq!(connect(&v6(1), STEERING_MARK, 0), Connect::Unmark);
}

#[test]
fn sockets_that_the_connect_hooks_would_miss_are_refused() {
    let table = [
        (SOCK_STREAM, 6, Ok(None)),
        (SOCK_STREAM, 262, Err(Counter::Mptcp)),
        (SOCK_STREAM, 132, Err(Counter::StreamProtocol)),
        (5, 132, Err(Counter::StreamProtocol)),
        (6, 33, Err(Counter::StreamProtocol)),
        (SOCK_DGRAM, 17, Ok(Some(Counter::Udp))),
        (SOCK_DGRAM, 1, Ok(None)),
        (SOCK_RAW, 1, Ok(None)),
        (SOCK_RAW, 58, Ok(None)),
        (SOCK_RAW, 6, Err(Counter::Raw)),
        (SOCK_RAW, 262, Err(Counter::Raw)),
        (SOCK_RAW, 132, Err(Counter::Raw)),
        (SOCK_RAW, 255, Err(Counter::Raw)),
    ];
    for (socket_type, protocol, expected) in table {
        for family in [AF_INET, AF_INET6] {
            assert_eq!(socket(family, socket_type, protocol), expected, "{socket_type} {protocol}");
        }
    }
    assert_eq!(socket(1, SOCK_STREAM, 0), Ok(None), "unix sockets are nobody's business");
}

#[test]
fn a_socket_keeps_its_mark_and_its_device_from_connect_on() {
    let (established, syn_sent, close_wait) = (1, 2, 8);
    for family in [AF_INET, AF_INET6] {
        for name in [25, 36, 62] {
            for state in [established, syn_sent, close_wait] {
                assert_eq!(option(family, SOCK_STREAM, state, 1, name), Err(Counter::Steered), "{name} in {state}");
            }
            for state in [TCP_CLOSE, TCP_LISTEN] {
                assert_eq!(option(family, SOCK_STREAM, state, 1, name), Ok(()), "{name} in {state}");
            }
            assert_eq!(option(family, SOCK_DGRAM, established, 1, name), Ok(()), "a datagram socket's {name}");
        }
        // SO_KEEPALIVE, and TCP_NODELAY, whose number another level has for something else.
        assert_eq!(option(family, SOCK_STREAM, established, 1, 9), Ok(()));
        assert_eq!(option(family, SOCK_STREAM, established, 6, 25), Ok(()));
    }
    assert_eq!(option(1, SOCK_STREAM, established, 1, SO_MARK), Ok(()), "unix sockets are nobody's business");
}

#[test]
fn a_raw_socket_does_not_write_its_own_headers() {
    assert_eq!(option(AF_INET, SOCK_RAW, TCP_CLOSE, 0, 3), Err(Counter::RawHeader));
    assert_eq!(option(AF_INET6, SOCK_RAW, TCP_CLOSE, 41, 36), Err(Counter::RawHeader));
    assert_eq!(option(AF_INET6, SOCK_RAW, TCP_CLOSE, 255, 36), Err(Counter::RawHeader));
    // IP_TTL and IPV6_CHECKSUM, which ping sets.
    assert_eq!(option(AF_INET, SOCK_RAW, TCP_CLOSE, 0, 2), Ok(()));
    assert_eq!(option(AF_INET6, SOCK_RAW, TCP_CLOSE, 41, 7), Ok(()));
    assert_eq!(option(AF_INET, SOCK_DGRAM, TCP_CLOSE, 0, 3), Ok(()));
}

#[test]
fn connections_go_where_they_belong() {
    let look = |lo, local, port, bypass, own, probe| lookup(lo, &local, port, false, bypass, || own, || probe);
    assert_eq!(look(true, OUTSIDE, 80, false, false, false), Lookup::Assign(Role::Outbound));
    assert_eq!(look(true, OUTSIDE, 15008, false, false, false), Lookup::Assign(Role::Outbound));
    assert_eq!(look(true, POD, 80, false, true, false), Lookup::Pass(None));
    assert_eq!(look(true, POD, 15008, false, true, false), Lookup::Pass(None));
    assert_eq!(look(true, mapped([127, 0, 0, 1]), 80, false, false, false), Lookup::Pass(None));
    assert_eq!(look(false, POD, 80, false, true, false), Lookup::Assign(Role::Plaintext));
    assert_eq!(look(false, POD, 15008, false, true, false), Lookup::Assign(Role::Hbone));
    assert_eq!(look(false, OUTSIDE, 80, false, false, false), Lookup::Drop(Counter::UnknownAddress));
}

#[test]
fn a_probe_reaches_the_application_but_never_the_tunnel() {
    assert_eq!(lookup(false, &POD, 80, false, false, || true, || true), Lookup::Pass(Some(Counter::Probe)));
    assert_eq!(lookup(false, &POD, 15008, false, false, || true, || true), Lookup::Assign(Role::Hbone));
}

#[test]
fn a_pod_that_bypasses_inbound_is_still_captured_outbound() {
    assert_eq!(lookup(false, &POD, 80, false, true, || true, || false), Lookup::Pass(Some(Counter::BypassInbound)));
    assert_eq!(lookup(true, &OUTSIDE, 80, false, true, || false, || false), Lookup::Assign(Role::Outbound));
}

#[test]
fn what_leaves_the_pod_is_captured_bypassed_or_refused_and_the_pod_itself_is_not_asked_about() {
    let leave = |ip: &Ip, outward| super::connect(ip, 0, 0, || true, || *ip == POD, || outward);
    let bypass = Outward::Bypass(Counter::BypassPort);
    assert_eq!(leave(&OUTSIDE, bypass), Connect::Bypass(Counter::BypassPort));
    assert_eq!(leave(&POD, bypass), Connect::Steer { unbind: false });
    let refuse = Outward::Refuse(Counter::RegistryOnly);
    assert_eq!(leave(&OUTSIDE, refuse), Connect::Refuse { unbind: false, counter: Counter::RegistryOnly });
    assert_eq!(leave(&POD, refuse), Connect::Steer { unbind: false });
}

#[test]
fn a_link_local_destination_is_on_the_link_of_others_and_not_bypassed() {
    let mut ip = v6(1);
    [ip[0], ip[1]] = [0xfe, 0x80];
    let decided = super::connect(&ip, 0, 0, || true, || false, || Outward::Bypass(Counter::BypassPort));
    assert_eq!(decided, Connect::Forbid(Counter::LinkLocal));
}

#[test]
fn dns_to_others_goes_to_the_agent_over_either_protocol() {
    let tcp = |lo, local: Ip, port, dns| lookup(lo, &local, port, dns, false, || local == POD, || false);
    let udp = |lo, local: Ip, port, dns| lookup_datagram(lo, &local, port, dns, || local == POD);
    assert_eq!(tcp(true, OUTSIDE, 53, true), Lookup::Assign(Role::DnsTcp));
    assert_eq!(tcp(true, OUTSIDE, 53, false), Lookup::Assign(Role::Outbound));
    assert_eq!(tcp(true, OUTSIDE, 853, true), Lookup::Assign(Role::Outbound));
    assert_eq!(udp(true, OUTSIDE, 53, true), Lookup::Assign(Role::DnsUdp));
    for (lo, local, port, dns) in [
        (true, OUTSIDE, 53, false),
        (true, OUTSIDE, 5353, true),
        (true, POD, 53, true),
        (true, mapped([127, 0, 0, 53]), 53, true),
        (false, OUTSIDE, 53, true),
        (false, POD, 53, true),
    ] {
        assert_eq!(udp(lo, local, port, dns), Lookup::Pass(None), "{lo} {local:?} {port} {dns}");
    }
}

#[test]
fn dns_is_refused_while_nobody_would_answer_and_localhost_is_left_alone() {
    let send = |ip: Ip, port, device, served| dns_datagram(&ip, port, device, || served, || ip == POD);
    assert_eq!(send(OUTSIDE, 53, 0, true), Ok(None));
    assert_eq!(send(OUTSIDE, 53, 0, false), Err(Counter::DnsNoListener));
    assert_eq!(send(OUTSIDE, 53, 2, false), Ok(Some(Counter::DnsBoundDevice)));
    for (ip, port) in [(POD, 53), (mapped([127, 0, 0, 53]), 53), (v6(1), 53), (OUTSIDE, 443)] {
        assert_eq!(send(ip, port, 0, false), Ok(None));
    }
}
