//! The rules and routes that lead marked connections to `lo`.
//!
//! In each address family: marked packets look into a table of our own, where everything is local to `lo`; and the rule
//! for table `local` moves behind that rule, or connections to the pod's own address would take that table's route,
//! and look as if they came from the wire. A family in which the pod has no address refuses marked packets instead.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_ebpf_common::{DNS_PORT, STEERING_MARK, verdict::is_loopback};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::netns::Family;
use super::record::to_key;

const MARK_RULE: u32 = 1;
const LOCAL_RULE_MOVED: u32 = 2;
const LOCAL_RULE: u32 = 0;
const TABLE_LOCAL: u32 = 255;
/// Above 255, where tables have no names and no defaults.
const TABLE: u32 = STEERING_MARK;
const LO: u32 = 1;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// An address of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterfaceAddress {
    pub(super) ip: IpAddr,
    global: bool,
}

/// Every address of the namespace's interfaces but the loopback ones.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<InterfaceAddress>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
            let pick = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            // On a point-to-point interface `Address` is the peer's.
            let ip = pick(true).or_else(|| pick(false))?;
            let global = message.header.scope == AddressScope::Universe;
            (!is_loopback(&to_key(ip))).then_some(InterfaceAddress { ip, global })
        })
        .collect())
}

/// Adds what is missing. `sources` are the pod's addresses, preferred as the source of what is led to `lo`.
pub(super) fn add(netlink: &mut Netlink, sources: &[IpAddr], present: &[InterfaceAddress]) -> io::Result<()> {
    each_family(|family| add_family(netlink, family, source(family, sources, present)))
}

/// Leads DNS over UDP to `lo`, too, or, without `wanted`, no more.
pub(super) fn set_dns(
    netlink: &mut Netlink,
    sources: &[IpAddr],
    present: &[InterfaceAddress],
    wanted: bool,
) -> io::Result<()> {
    each_family(|family| match source(family, sources, present) {
        Some(_) if wanted => add_dns(netlink, family),
        _ => remove_dns(netlink, family),
    })
}

/// Takes away what was added, and moves the rule for table `local` back.
pub(super) fn remove(netlink: &mut Netlink) -> io::Result<()> {
    each_family(|family| remove_family(netlink, family))
}

/// One family that fails does not keep the other from being seen to.
fn each_family(mut act: impl FnMut(Family) -> io::Result<()>) -> io::Result<()> {
    let mut result = Ok(());
    for family in FAMILIES {
        match act(family) {
            Err(error) if supported(&error) || family == Family::V4 => result = Err(error),
            _ => {}
        }
    }
    result
}

/// The rules that are there, and what is missing; with `dns`, the rule for DNS as well.
pub(super) fn inspect(netlink: &mut Netlink, dns: bool) -> io::Result<(Vec<String>, Vec<&'static str>)> {
    let (mut present, mut missing) = (Vec::new(), Vec::new());
    for family in FAMILIES {
        let rules = match rules(netlink, family) {
            Err(error) if !supported(&error) => continue,
            rules => rules?,
        };
        let (name, absent) = match family {
            Family::V4 => ("IPv4", "the IPv4 rule for the steering mark is missing"),
            Family::V6 => ("IPv6", "the IPv6 rule for the steering mark is missing"),
        };
        match rules.iter().find(|rule| is_ours(rule)).map(|rule| rule.header.action) {
            None => missing.push(absent),
            Some(RuleAction::ToTable) => {
                present
                    .push(format!("{name}: mark {STEERING_MARK:#x} looks into table {TABLE}, all of it local to lo"));
            }
            Some(_) => {
                present.push(format!("{name}: mark {STEERING_MARK:#x} is refused: the pod has no address"));
                continue;
            }
        }
        match (rules.iter().any(is_dns), family) {
            (true, _) => present.push(format!("{name}: UDP to port {DNS_PORT} looks into table {TABLE}")),
            (false, Family::V4) if dns => missing.push("the IPv4 rule for DNS is missing"),
            (false, Family::V6) if dns => missing.push("the IPv6 rule for DNS is missing"),
            (false, _) => {}
        }
    }
    Ok((present, missing))
}

fn supported(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn source(family: Family, sources: &[IpAddr], present: &[InterfaceAddress]) -> Option<IpAddr> {
    let of_family = |ip: &IpAddr| Family::of(*ip) == family;
    let there = |ip: &IpAddr| present.iter().any(|address| address.ip == *ip);
    let first_global = || present.iter().find(|address| address.global && of_family(&address.ip)).map(|a| a.ip);
    sources.iter().copied().find(|ip| of_family(ip) && there(ip)).or_else(first_global)
}

fn add_family(netlink: &mut Netlink, family: Family, source: Option<IpAddr>) -> io::Result<()> {
    if source.is_none() {
        netlink.create(RouteNetlinkMessage::NewRule(mark_rule(family, RuleAction::Unreachable)))?;
        return Ok(());
    }
    // The route before the rule that leads to it, the moved rule before the old one goes: at no moment is a packet
    // without its way.
    netlink.create(RouteNetlinkMessage::NewRoute(route(family, source)))?;
    netlink.create(RouteNetlinkMessage::NewRule(mark_rule(family, RuleAction::ToTable)))?;
    move_local(netlink, family, LOCAL_RULE, LOCAL_RULE_MOVED)
}

/// The rule by which DNS is led to `lo`. Unlike a connection, a datagram is routed by what its socket was when it was
/// called: a mark that a hook sets comes too late for it.
fn add_dns(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    // Loopback is not led anywhere, and keeps its own source.
    netlink.create(RouteNetlinkMessage::NewRoute(loopback(family)))?;
    netlink.create(RouteNetlinkMessage::NewRule(dns_rule(family)))?;
    Ok(())
}

fn remove_dns(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    netlink.delete(RouteNetlinkMessage::DelRule(dns_rule(family)))?;
    netlink.delete(RouteNetlinkMessage::DelRoute(loopback(family)))?;
    Ok(())
}

fn remove_family(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    remove_dns(netlink, family)?;
    move_local(netlink, family, LOCAL_RULE_MOVED, LOCAL_RULE)?;
    for action in [RuleAction::ToTable, RuleAction::Unreachable] {
        netlink.delete(RouteNetlinkMessage::DelRule(mark_rule(family, action)))?;
    }
    netlink.delete(RouteNetlinkMessage::DelRoute(route(family, None)))?;
    Ok(())
}

/// Moves the rule for table `local` as it is, and only where it is plainly the kernel's.
fn move_local(netlink: &mut Netlink, family: Family, from: u32, to: u32) -> io::Result<()> {
    let Some(rule) = rules(netlink, family)?.into_iter().find(|rule| is_local_at(rule, from)) else { return Ok(()) };
    let mut moved = rule.clone();
    moved.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
    let mut old = moved.clone();
    moved.attributes.push(RuleAttribute::Priority(to));
    old.attributes.push(RuleAttribute::Priority(from));
    netlink.create(RouteNetlinkMessage::NewRule(moved))?;
    netlink.delete(RouteNetlinkMessage::DelRule(old))?;
    Ok(())
}

fn rules(netlink: &mut Netlink, family: Family) -> io::Result<Vec<RuleMessage>> {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    let answers = netlink.dump(RouteNetlinkMessage::GetRule(message))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRule(rule) if rule.header.family == address_family(family) => Some(rule),
            _ => None,
        })
        .collect())
}

fn is_ours(rule: &RuleMessage) -> bool {
    priority(rule) == MARK_RULE && rule.attributes.contains(&RuleAttribute::FwMark(STEERING_MARK))
}

fn is_local_at(rule: &RuleMessage, at: u32) -> bool {
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let selects = rule.attributes.iter().any(|attribute| {
        matches!(attribute, RuleAttribute::FwMark(_) | RuleAttribute::Iifname(_) | RuleAttribute::Oifname(_))
    });
    priority(rule) == at
        && rule.header.action == RuleAction::ToTable
        && table.unwrap_or(rule.header.table.into()) == TABLE_LOCAL
        && (rule.header.src_len, rule.header.dst_len) == (0, 0)
        && !selects
}

/// The kernel leaves the attribute out where it is 0.
fn priority(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or(0)
}

fn mark_rule(family: Family, action: RuleAction) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = action;
    rule.attributes = vec![
        RuleAttribute::Priority(MARK_RULE),
        RuleAttribute::FwMark(STEERING_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Protocol(RouteProtocol::Static),
    ];
    if action == RuleAction::ToTable {
        rule.attributes.push(RuleAttribute::Table(TABLE));
    }
    rule
}

/// What this namespace sends to port 53 over UDP, unless it is marked, as the agent's own questions are.
fn dns_rule(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(MARK_RULE),
        // As the kernel calls what comes from its own sockets.
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::FwMark(0),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::IpProtocol(IpProtocol::Udp),
        RuleAttribute::DestinationPortRange(RulePortRange { start: DNS_PORT, end: DNS_PORT }),
        RuleAttribute::Protocol(RouteProtocol::Static),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

fn is_dns(rule: &RuleMessage) -> bool {
    priority(rule) == MARK_RULE
        && rule.attributes.contains(&RuleAttribute::IpProtocol(IpProtocol::Udp))
        && rule.attributes.contains(&RuleAttribute::Table(TABLE))
}

/// Sends whoever looks for a loopback address on to the next table.
fn loopback(family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Throw;
    let (length, address) = match family {
        Family::V4 => (8, RouteAddress::Inet(Ipv4Addr::new(127, 0, 0, 0))),
        Family::V6 => (128, RouteAddress::Inet6(Ipv6Addr::LOCALHOST)),
    };
    route.header.destination_prefix_length = length;
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Destination(address)];
    route
}

fn route(family: Family, source: Option<IpAddr>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = match family {
        Family::V4 => RouteScope::Host,
        Family::V6 => RouteScope::Universe,
    };
    route.header.kind = RouteType::Local;
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LO)];
    if let Some(source) = source {
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    }
    route.attributes.push(RouteAttribute::Destination(match family {
        Family::V4 => RouteAddress::Inet(Ipv4Addr::UNSPECIFIED),
        Family::V6 => RouteAddress::Inet6(Ipv6Addr::UNSPECIFIED),
    }));
    route
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
