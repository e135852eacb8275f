//! What becomes of a connection that leaves the pod: captured, bypassed, or refused.
//!
//! | destination | rule | what becomes of it |
//! |---|---|---|
//! | in the mesh | any | captured: no rule about addresses or ports takes it out of the tunnel |
//! | of a namespace that is bypassed by name | | bypassed; captured while no agent listens, as only the agent knows whose the address is by now |
//! | any other | the port is bypassed | bypassed |
//! | any other | the address is bypassed: the pod's longest prefix, or else everyone's | bypassed |
//! | unknown | none, under `REGISTRY_ONLY` | refused |
//! | any other | none | captured |
//!
//! While the map of destinations is not complete, only the first two rows hold and all else is captured.

use crate::{Counter, Destination, Settings};

/// What becomes of a connection that leaves the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outward {
    /// It goes to the agent.
    Capture,
    /// It goes straight to its destination.
    Bypass(Counter),
    /// It is refused.
    Refuse(Counter),
}

/// Decides it.
///
/// `is_served`, that the agent listens for what the pod dials, and `port_rule` and `address_rule`, that a rule bypasses
/// the port and the address, are asked only where it matters. `is_dns`: it goes to the port of DNS, in a pod that captures DNS, so that the agent answers it.
#[inline(always)]
pub fn outward(
    settings: Settings,
    destination: Option<Destination>,
    is_served: impl FnOnce() -> bool,
    is_dns: bool,
    port_rule: impl FnOnce() -> bool,
    address_rule: impl FnOnce() -> bool,
) -> Outward {
    if is_dns {
        return Outward::Capture;
    }
    match destination {
        Some(Destination::Mesh) => return Outward::Capture,
        Some(Destination::Named) if is_served() => return Outward::Bypass(Counter::BypassNamespace),
        Some(Destination::Named) => return Outward::Capture,
        Some(Destination::Known) | None => {}
    }
    if settings.flags & Settings::COMPLETE == 0 {
        return Outward::Capture;
    }
    if port_rule() {
        return Outward::Bypass(Counter::BypassPort);
    }
    if address_rule() {
        return Outward::Bypass(Counter::BypassAddress);
    }
    if destination.is_none() && settings.flags & Settings::REGISTRY_ONLY != 0 {
        return Outward::Refuse(Counter::RegistryOnly);
    }
    Outward::Capture
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn settings(flags: u32) -> Settings {
        Settings { flags }
    }

    const COMPLETE: Settings = settings(Settings::COMPLETE);
    const REGISTRY: Settings = settings(Settings::COMPLETE | Settings::REGISTRY_ONLY);

    fn decide(settings: Settings, destination: Option<Destination>, port: bool, address: bool) -> Outward {
        outward(settings, destination, || true, false, || port, || address)
    }

    #[test]
    fn no_rule_takes_what_is_in_the_mesh_out_of_the_tunnel() {
        for settings in [settings(0), COMPLETE, REGISTRY] {
            assert_eq!(decide(settings, Some(Destination::Mesh), true, true), Outward::Capture);
        }
    }

    #[test]
    fn a_namespace_is_bypassed_by_its_name_while_the_agent_knows_whose_the_address_is() {
        let named = Some(Destination::Named);
        assert_eq!(decide(settings(0), named, false, false), Outward::Bypass(Counter::BypassNamespace));
        assert_eq!(outward(COMPLETE, named, || false, false, || true, || true), Outward::Capture);
    }

    #[test]
    fn ports_and_addresses_bypass_what_is_outside_the_mesh() {
        for destination in [None, Some(Destination::Known)] {
            for settings in [COMPLETE, REGISTRY] {
                let bypassed = |port, address| decide(settings, destination, port, address);
                assert_eq!(bypassed(true, false), Outward::Bypass(Counter::BypassPort));
                assert_eq!(bypassed(false, true), Outward::Bypass(Counter::BypassAddress));
            }
        }
    }

    #[test]
    fn bypassing_by_rule_does_not_need_the_agent() {
        assert_eq!(outward(COMPLETE, None, || false, false, || true, || false), Outward::Bypass(Counter::BypassPort));
    }

    #[test]
    fn while_destinations_are_missing_from_the_map_nothing_is_decided_by_their_absence() {
        for flags in [0, Settings::REGISTRY_ONLY, Settings::RULES] {
            for destination in [None, Some(Destination::Known)] {
                assert_eq!(decide(settings(flags), destination, true, true), Outward::Capture);
            }
        }
    }

    #[test]
    fn registry_only_refuses_what_nobody_knows_and_no_rule_lets_out() {
        assert_eq!(decide(REGISTRY, None, false, false), Outward::Refuse(Counter::RegistryOnly));
        assert_eq!(decide(REGISTRY, Some(Destination::Known), false, false), Outward::Capture);
        assert_eq!(decide(COMPLETE, None, false, false), Outward::Capture);
    }

    #[test]
    fn dns_that_the_agent_answers_is_never_bypassed_or_refused() {
        for destination in [None, Some(Destination::Named)] {
            assert_eq!(outward(REGISTRY, destination, || true, true, || true, || true), Outward::Capture);
        }
    }

    #[test]
    fn a_value_that_nobody_wrote_is_captured() {
        for value in [0, 1, 4, 255] {
            assert_eq!(Destination::from_value(value), Destination::Mesh);
        }
        for known in [Destination::Mesh, Destination::Known, Destination::Named] {
            assert_eq!(Destination::from_value(known as u8), known);
        }
    }
}
