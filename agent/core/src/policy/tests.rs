//! Policies as people write them, calls, and what becomes of them.

mod explanations;
mod peer_authentication;
mod properties;
mod requests;
mod strictness;
mod table;
mod waypoints;

use std::sync::Arc;

use culvert_api::security;

use super::*;
use crate::translate::{self, Finding};

const ROOT: &str = "istio-system";

/// The policy `shop/name` with this spec, in YAML.
fn parse(name: &str, spec: &str) -> (Option<AuthorizationPolicy>, Vec<Finding>) {
    let spec = serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let mut object = security::AuthorizationPolicy::new(name, spec);
    object.metadata.namespace = Some("shop".to_owned());
    if name.starts_with("dry") {
        object.metadata.annotations = Some([("istio.io/dry-run".to_owned(), "true".to_owned())].into());
    }
    let mut findings = Vec::new();
    (translate::authorization_policy(&object, ROOT, &mut findings), findings)
}

fn policies(specs: &[&str]) -> Vec<Arc<AuthorizationPolicy>> {
    let named = specs.iter().enumerate().map(|(i, spec)| match spec.strip_prefix("dry ") {
        Some(spec) => (format!("dry{i}"), spec),
        None => (format!("p{i}"), *spec),
    });
    let read = named.filter_map(|(name, spec)| parse(&name, spec).0.map(Arc::new));
    read.filter(|policy| policy.is_for_nodes()).collect()
}

/// A call by the principal `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, or `plaintext`, from 10.0.0.1 to 10.0.1.1:8080.
#[derive(Debug)]
struct Caller {
    identity: Option<Identity>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl Caller {
    fn new(principal: &str) -> Self {
        let identity = (principal != "plaintext").then(|| format!("spiffe://{principal}").parse().unwrap());
        Self { identity, source_ip: "10.0.0.1".parse().unwrap(), destination: "10.0.1.1:8080".parse().unwrap() }
    }

    fn call(&self) -> Call<'_> {
        Call { principal: self.identity.as_ref(), source_ip: self.source_ip, destination: self.destination }
    }
}

fn settings(aliases: &[Arc<str>]) -> Settings<'_> {
    Settings { trust_domain: "cluster.local", aliases, unsupported_deny: UnsupportedDeny::Deny }
}

fn decide_for(caller: &Caller, specs: &[&str]) -> Decision {
    decide(settings(&[]), &EffectivePeerAuthentication::default(), &policies(specs), &caller.call(), None)
}

/// A fact: with these policies, whether this caller is allowed.
struct Row(&'static str, &'static [&'static str], &'static str, bool);

/// Decides each row, with every mistake shown at once.
fn check(rows: &[Row]) {
    let decide = |Row(fact, specs, caller, allowed): &Row| {
        let decision = decide_for(&Caller::new(caller), specs);
        (decision.allowed != *allowed).then(|| format!("{fact}: {caller} got: {}", decision.reason))
    };
    let wrong: Vec<_> = rows.iter().filter_map(decide).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
