//! Rules for connections.

use std::sync::Arc;

use culvert_api::networking::virtual_service::{RouteDestination, TcpRoute, TlsRoute};
use ipnet::IpNet;

use super::super::values::shown;
use super::matches::{Never, in_mesh, source};
use super::{MAX_MATCHES, MAX_RULES, Reader};
use crate::route::http::{Backend, HttpAction};
use crate::route::l4::{HostPattern, L4Match, L4Rule};

impl Reader<'_, '_> {
    pub(super) fn tls_rules(&mut self, written: &[TlsRoute], hosts: &[HostPattern]) -> Vec<Arc<L4Rule>> {
        let mut rules = Vec::new();
        for (at, route) in written.iter().take(MAX_RULES).enumerate() {
            let field = format!("spec.tls[{at}]");
            if route.matches.is_empty() {
                self.error(format!("{field}.match"), "is missing: the rule has no effect; name sniHosts");
                continue;
            }
            let mut matches = Vec::new();
            for (at, matched) in route.matches.iter().take(MAX_MATCHES).enumerate() {
                let field = format!("{field}.match[{at}]");
                if !in_mesh(&matched.gateways) {
                    continue;
                }
                let Ok(sni) = self.sni(&format!("{field}.sniHosts"), &matched.sni_hosts, hosts) else { continue };
                let rest = self.l4_match(&field, &matched.destination_subnets, "", matched.port);
                let source = source(&matched.source_namespace, &matched.source_labels);
                matches.extend(rest.ok().map(|rest| L4Match { sni: Some(sni), source, ..rest }));
            }
            rules.extend(self.l4_rule(at, &field, matches, false, &route.route));
        }
        rules
    }

    pub(super) fn tcp_rules(&mut self, written: &[TcpRoute]) -> Vec<Arc<L4Rule>> {
        let mut rules = Vec::new();
        for (at, route) in written.iter().take(MAX_RULES).enumerate() {
            let field = format!("spec.tcp[{at}]");
            let mut matches = Vec::new();
            for (at, matched) in route.matches.iter().take(MAX_MATCHES).enumerate() {
                let field = format!("{field}.match[{at}]");
                if !in_mesh(&matched.gateways) {
                    continue;
                }
                let rest = self.l4_match(&field, &matched.destination_subnets, &matched.source_subnet, matched.port);
                let source = source(&matched.source_namespace, &matched.source_labels);
                matches.extend(rest.ok().map(|rest| L4Match { source, ..rest }));
            }
            rules.extend(self.l4_rule(at, &field, matches, route.matches.is_empty(), &route.route));
        }
        rules
    }

    fn sni(&mut self, field: &str, written: &[String], hosts: &[HostPattern]) -> Result<Vec<HostPattern>, Never> {
        let mut names = Vec::new();
        for (at, text) in written.iter().enumerate() {
            match HostPattern::parse(text) {
                Some(name) if hosts.iter().any(|host| host.covers(&name)) => names.push(name),
                Some(_) => {
                    self.error(format!("{field}[{at}]"), format!("{} is not among spec.hosts: ignored", shown(text)));
                }
                None => self.error(format!("{field}[{at}]"), format!("{} is no host name: ignored", shown(text))),
            }
        }
        if written.is_empty() {
            self.error(field, "is empty, and never met: name the hosts");
        }
        if names.is_empty() { Err(Never) } else { Ok(names) }
    }

    fn l4_match(
        &mut self,
        field: &str,
        subnets: &[String],
        source_subnet: &str,
        port: Option<u32>,
    ) -> Result<L4Match, Never> {
        let mut networks = Vec::new();
        for (at, text) in subnets.iter().enumerate() {
            match network(text) {
                Some(network) => networks.push(network),
                None => {
                    let message = format!("{} is neither an address nor a network: ignored", shown(text));
                    self.error(format!("{field}.destinationSubnets[{at}]"), message);
                }
            }
        }
        if networks.is_empty() && !subnets.is_empty() {
            return Err(Never);
        }
        let source_subnet = match (source_subnet, network(source_subnet)) {
            ("", _) => None,
            (_, Some(network)) => Some(network),
            (text, None) => {
                let message = format!("{} is neither an address nor a network, and is never met", shown(text));
                self.error(format!("{field}.sourceSubnet"), message);
                return Err(Never);
            }
        };
        let port = self.port(&format!("{field}.port"), port.filter(|port| *port != 0))?;
        Ok(L4Match { subnets: networks, source_subnet, port, ..L4Match::default() })
    }

    /// The rule; `None` if it has matches, and none is for the mesh.
    fn l4_rule(
        &mut self,
        at: usize,
        field: &str,
        matches: Vec<L4Match>,
        every: bool,
        written: &[RouteDestination],
    ) -> Option<Arc<L4Rule>> {
        if matches.is_empty() && !every {
            return None;
        }
        let field = format!("{field}.route");
        let invalid = |reason: &str| vec![(Backend::Invalid(format!("{field} {reason}").into()), 1)];
        let backends = if written.is_empty() {
            self.error(&field, "is missing: connections that match are refused");
            invalid("is missing")
        } else {
            let weights: Vec<i32> = written.iter().map(|destination| destination.weight).collect();
            match self.weights(&field, &weights) {
                Err(HttpAction::Invalid(reason)) => vec![(Backend::Invalid(reason), 1)],
                Err(_) => invalid("cannot be used"),
                Ok(weights) => {
                    let shares = written.iter().zip(weights).enumerate().filter(|(_, (_, weight))| *weight > 0);
                    shares
                        .map(|(at, (destination, weight))| {
                            let field = format!("{field}[{at}].destination");
                            (self.backend(&field, &destination.destination), weight)
                        })
                        .collect()
                }
            }
        };
        Some(Arc::new(L4Rule { resource: self.findings.object.clone(), rule: at, matches, backends }))
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}
