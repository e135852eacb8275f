//! VirtualService into rules (Istio `pilot/pkg/networking/core/route/route.go`).
//!
//! What is wrong is found here, once, and then costs as little as can be: a condition that cannot be read is never met,
//! an operation that cannot be carried out is left out, and a rule that would send requests elsewhere than it says
//! answers with 500. The other rules, and other objects, stay as they are.

mod action;
mod delegate;
mod headers;
mod l4;
mod matches;
mod policy;

use std::sync::Arc;

use culvert_api::networking::VirtualService as Written;
use culvert_api::networking::virtual_service::HttpRoute;
use culvert_api::{Kind, ObjectRef};

use super::values::{self, ExportTo, shown};
use super::{Findings, metadata};
use crate::route::http::{HttpRule, ServiceRef};
use crate::route::l4::{HostPattern, L4Rule};
use crate::workload::{Created, NamespacedName};

/// The most rules of an object, and the most matches of a rule: what is beyond them has no effect.
const MAX_RULES: usize = 4096;
const MAX_MATCHES: usize = 1024;

/// What a VirtualService says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VirtualServiceFacts {
    pub(crate) name: NamespacedName,
    pub(crate) created: Created,
    /// None for a delegate.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) export_to: ExportTo,
    /// Whether it is for the mesh; others are for gateways only.
    pub(crate) in_mesh: bool,
    pub(crate) http: Vec<Arc<HttpRule>>,
    pub(crate) tls: Vec<Arc<L4Rule>>,
    pub(crate) tcp: Vec<Arc<L4Rule>>,
    /// The VirtualServices that its rules are filled in from.
    pub(crate) delegates: Vec<NamespacedName>,
}

/// What rules are read with.
struct Reader<'a, 'f> {
    namespace: Arc<str>,
    cluster_domain: &'a str,
    findings: &'a mut Findings<'f>,
}

/// Reads `object`. `delegate` finds the VirtualServices that it names.
pub(crate) fn translate<'d>(
    object: &Written,
    cluster_domain: &str,
    delegate: &dyn Fn(&NamespacedName) -> Option<&'d Written>,
    findings: &mut Findings<'_>,
) -> VirtualServiceFacts {
    let spec = &object.spec;
    let namespace = findings.object.namespace.clone();
    let name = NamespacedName { namespace: namespace.clone(), name: findings.object.name.clone() };
    let hosts = hosts(&spec.hosts, &namespace, cluster_domain, findings);
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh");
    let delegates = delegate::named(spec, &namespace);
    if spec.hosts.is_empty() && (!spec.tls.is_empty() || !spec.tcp.is_empty()) {
        findings
            .error("spec.hosts", "a VirtualService without hosts is a delegate, which has only http: name the hosts");
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        findings.error("spec", "says nothing: add http, tls or tcp");
    }
    let mut reader = Reader { namespace: namespace.clone(), cluster_domain, findings };
    let (http, tls, tcp) = if hosts.is_empty() {
        // What a delegate says is reported where it is read as one, and once here.
        reader.http_rules(&spec.http, &|_| None, true);
        (Vec::new(), Vec::new(), Vec::new())
    } else {
        (
            reader.http_rules(&spec.http, delegate, false),
            reader.tls_rules(&spec.tls, &hosts),
            reader.tcp_rules(&spec.tcp),
        )
    };
    VirtualServiceFacts {
        name,
        created: metadata::created(&object.metadata),
        hosts,
        export_to: ExportTo::new(&spec.export_to, &namespace),
        in_mesh,
        http,
        tls,
        tcp,
        delegates,
    }
}

fn hosts(written: &[String], namespace: &str, cluster_domain: &str, findings: &mut Findings<'_>) -> Vec<HostPattern> {
    let mut hosts: Vec<HostPattern> = Vec::new();
    for (at, text) in written.iter().enumerate() {
        let field = format!("spec.hosts[{at}]");
        match HostPattern::parse(&values::host(text, namespace, cluster_domain)) {
            None => findings.error(field, format!("{} is no host name: ignored", shown(text))),
            Some(HostPattern::Any) => {
                findings.error(field, "* is only for gateways: ignored; name hosts, or *. and a domain");
            }
            Some(host) if hosts.contains(&host) => findings.warning(field, format!("{} is there twice", shown(text))),
            Some(host) => hosts.push(host),
        }
    }
    hosts
}

impl Reader<'_, '_> {
    fn http_rules<'d>(
        &mut self,
        written: &[HttpRoute],
        delegate: &dyn Fn(&NamespacedName) -> Option<&'d Written>,
        is_delegate: bool,
    ) -> Vec<Arc<HttpRule>> {
        if written.len() > MAX_RULES {
            self.findings.error("spec.http", format!("more than {MAX_RULES} rules: the rest has no effect; divide it"));
        }
        let mut rules: Vec<Arc<HttpRule>> = Vec::new();
        let mut catch_all = None;
        for (at, route) in written.iter().take(MAX_RULES).enumerate() {
            let field = format!("spec.http[{at}]");
            if let Some(before) = catch_all {
                self.findings.warning(
                    field.clone(),
                    format!("is never reached: spec.http[{before}] takes every request; put it last"),
                );
            }
            let made = match &route.delegate {
                Some(_) if is_delegate => {
                    let message = "a delegate cannot delegate further: its rule has no effect; write the route here";
                    self.findings.error(format!("{field}.delegate"), message);
                    continue;
                }
                Some(to) => self.delegated(at, &field, route, to, delegate),
                None => self.http_rule(at, &field, route).into_iter().collect(),
            };
            if catch_all.is_none() && made.iter().any(HttpRule::is_catch_all) {
                catch_all = Some(at);
            }
            rules.extend(made.into_iter().map(Arc::new));
        }
        rules
    }

    /// The rule that `route` writes; `None` if it is for no request of the mesh.
    fn http_rule(&mut self, at: usize, field: &str, route: &HttpRoute) -> Option<HttpRule> {
        let matches = self.matches(field, &route.matches)?;
        let action = self.action(field, route);
        let mut rule = HttpRule::new(self.findings.object.clone(), at, action);
        rule.name = route.name.as_str().into();
        rule.matches = matches;
        self.headers(field, route, &mut rule);
        self.rewrite(field, route, &mut rule);
        self.policies(field, route, &mut rule);
        Some(rule)
    }

    fn service(&self, host: &str) -> ServiceRef {
        ServiceRef {
            host: values::host(host, &self.namespace, self.cluster_domain),
            namespace: self.namespace.clone(),
            only_there: false,
            subset: None,
            port: None,
        }
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.error(field, message);
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.warning(field, message);
    }
}

/// What names the VirtualService `name`.
pub(crate) fn reference(name: &NamespacedName) -> ObjectRef {
    ObjectRef::new(Kind::VirtualService, name.namespace.clone(), name.name.clone())
}
