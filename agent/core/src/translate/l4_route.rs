//! TCPRoute and TLSRoute into rules (Gateway API `apis/v1alpha2/tcproute_types.go`, `apis/v1/tlsroute_types.go`).

use std::sync::Arc;

use culvert_api::{ObjectRef, TCPRoute, TLSRoute};

use super::gateway_route::{self, BackendRef, GatewayRouteFacts, MAX_RULES, RouteReader, Surroundings, backend_ref};
use super::values::shown;
use crate::route::http::Backend;
use crate::route::l4::{HostPattern, L4Match, L4Rule};

/// Reads `object`.
pub(crate) fn tcp(object: &TCPRoute, reference: ObjectRef, around: &Surroundings<'_>) -> GatewayRouteFacts {
    let mut reader = RouteReader::new(reference, super::metadata::created(&object.metadata), around);
    for (at, rule) in reader.at_most(MAX_RULES, "spec.rules", &object.spec.rules).iter().enumerate() {
        let backends = rule.backend_refs.iter().map(|backend| (backend_ref!(backend), backend.weight));
        let rule = reader.l4_rule(at, Vec::new(), backends);
        reader.facts.tcp.push(rule);
    }
    reader.finish(object.spec.parent_refs.as_ref())
}

/// Reads `object`.
pub(crate) fn tls(object: &TLSRoute, reference: ObjectRef, around: &Surroundings<'_>) -> GatewayRouteFacts {
    let mut reader = RouteReader::new(reference, super::metadata::created(&object.metadata), around);
    let mut names = Vec::new();
    for text in &object.spec.hostnames {
        match HostPattern::parse(text) {
            Some(name) => names.push(name),
            None => {
                reader.unsupported("UnsupportedValue", format!("spec.hostnames: {} is no host", shown(text)));
            }
        }
    }
    // Names that are none must not turn into every name.
    if object.spec.hostnames.is_empty() {
        names.push(HostPattern::Any);
    }
    for (at, rule) in reader.at_most(MAX_RULES, "spec.rules", &object.spec.rules).iter().enumerate() {
        let backends = rule.backend_refs.iter().map(|backend| (backend_ref!(backend), backend.weight));
        let matches = vec![L4Match { sni: Some(names.clone()), ..L4Match::default() }];
        let rule = reader.l4_rule(at, matches, backends);
        reader.facts.tls.push(rule);
    }
    reader.finish(object.spec.parent_refs.as_ref())
}

impl RouteReader<'_> {
    fn l4_rule<'r>(
        &mut self,
        at: usize,
        matches: Vec<L4Match>,
        written: impl Iterator<Item = (BackendRef<'r>, Option<i32>)>,
    ) -> Arc<L4Rule> {
        let mut backends: Vec<(Backend, u32)> = Vec::new();
        for (position, (backend, weight)) in written.enumerate() {
            let field = format!("spec.rules[{at}].backendRefs[{position}]");
            let weight = gateway_route::weight(weight);
            let backend = self.backend(&field, &backend);
            if weight > 0 {
                backends.push((backend, weight));
            }
        }
        Arc::new(L4Rule { resource: self.object.clone(), rule: at, matches, backends })
    }
}
