//! The label sets of Istio's metrics: of L4 whole, and what those of L7 have in common with them.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use culvert_core::identity::Identity;
use culvert_core::service::Service;
use culvert_core::workload::Workload;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::connection::{ConnectionInfo, Direction, ResponseFlags, SecurityPolicy};

/// Everything that the labels are made of but `response_flags`, held by reference: printed when scraped, never before.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    direction: Direction,
    security: SecurityPolicy,
    source: Peer,
    destination: Peer,
    service: Option<Arc<Service>>,
}

/// One of the two that talk.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) principal: Option<Arc<Identity>>,
}

impl Labels {
    pub(super) fn of(info: &ConnectionInfo) -> Self {
        Self {
            direction: info.direction,
            security: info.security,
            source: Peer { workload: info.source.clone(), principal: info.source_identity.clone() },
            destination: Peer {
                workload: info.destination.clone(),
                // Istio names the server's principal from the mesh, also where the connection was plaintext.
                principal: destination_principal(info).cloned(),
            },
            service: info.service.clone(),
        }
    }

    /// The labels of connections that no longer get a series of their own.
    pub(super) fn overflow(direction: Direction) -> Self {
        let nobody = Peer { workload: None, principal: None };
        Self {
            direction,
            security: SecurityPolicy::Unknown,
            source: nobody.clone(),
            destination: nobody,
            service: None,
        }
    }

    /// Whether a connection that `info` describes has these very labels.
    pub(super) fn matches(&self, info: &ConnectionInfo) -> bool {
        self.direction == info.direction
            && self.security == info.security
            && same(self.source.workload.as_ref(), info.source.as_ref(), same_workload_labels)
            && same(self.destination.workload.as_ref(), info.destination.as_ref(), same_workload_labels)
            && same(self.source.principal.as_ref(), info.source_identity.as_ref(), Identity::eq)
            && same(self.destination.principal.as_ref(), destination_principal(info), Identity::eq)
            && same(self.service.as_ref(), info.service.as_ref(), |a, b| a.key == b.key && a.name == b.name)
    }
}

/// The hash of the labels that `info` leads to. Enough of them to tell series apart well, not all: equality decides.
pub(super) fn hash(state: &impl BuildHasher, info: &ConnectionInfo) -> u64 {
    let mut hasher = state.build_hasher();
    (info.direction, info.security).hash(&mut hasher);
    for workload in [&info.source, &info.destination] {
        match workload {
            Some(w) => (&w.namespace, &w.workload_name, &w.canonical_revision).hash(&mut hasher),
            None => hasher.write_u8(0),
        }
    }
    (info.source_identity.as_ref(), destination_principal(info)).hash(&mut hasher);
    info.service.as_ref().map(|service| &service.key).hash(&mut hasher);
    hasher.finish()
}

fn destination_principal(info: &ConnectionInfo) -> Option<&Arc<Identity>> {
    info.destination_identity.as_ref().or_else(|| info.destination.as_ref().map(|w| &w.identity))
}

pub(super) fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>, equal: impl Fn(&T, &T) -> bool) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || equal(a, b),
        _ => false,
    }
}

pub(super) fn same_workload_labels(a: &Workload, b: &Workload) -> bool {
    a.workload_name == b.workload_name
        && a.namespace == b.namespace
        && a.canonical_name == b.canonical_name
        && a.canonical_revision == b.canonical_revision
        && a.cluster == b.cluster
}

/// [`Labels`] with the `response_flags` of one series: what is printed.
#[derive(Debug)]
pub(super) struct WithFlags<'a>(pub(super) &'a Labels, pub(super) ResponseFlags);

impl EncodeLabelSet for WithFlags<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, flags) = self;
        put_peers(
            encoder,
            labels.direction.reporter(),
            &labels.source,
            &labels.destination,
            labels.service.as_deref(),
        )?;
        put(encoder, "request_protocol", "tcp")?;
        put(encoder, "response_flags", flags.as_str())?;
        put(encoder, "connection_security_policy", labels.security.as_str())
    }
}

/// A label. A missing value and an empty one are both `unknown` in Istio.
pub(super) fn put(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> fmt::Result {
    (name, if value.is_empty() { "unknown" } else { value }).encode(encoder.encode_label())
}

/// The labels of who reports, and of who talks to whom.
pub(super) fn put_peers(
    encoder: &mut LabelSetEncoder<'_>,
    reporter: &str,
    source: &Peer,
    destination: &Peer,
    service: Option<&Service>,
) -> fmt::Result {
    let mut put = |name, value: &str| put(encoder, name, value);
    put("reporter", reporter)?;
    let source = source.texts();
    put("source_workload", source.workload)?;
    put("source_canonical_service", source.canonical_service)?;
    put("source_canonical_revision", source.canonical_revision)?;
    put("source_workload_namespace", source.namespace)?;
    put("source_principal", &source.principal)?;
    put("source_app", source.canonical_service)?;
    put("source_version", source.canonical_revision)?;
    put("source_cluster", source.cluster)?;
    put("destination_service", service.map_or("", |s| &s.key.hostname))?;
    put("destination_service_namespace", service.map_or("", |s| &s.key.namespace))?;
    put("destination_service_name", service.map_or("", |s| &s.name))?;
    let destination = destination.texts();
    put("destination_workload", destination.workload)?;
    put("destination_canonical_service", destination.canonical_service)?;
    put("destination_canonical_revision", destination.canonical_revision)?;
    put("destination_workload_namespace", destination.namespace)?;
    put("destination_principal", &destination.principal)?;
    put("destination_app", destination.canonical_service)?;
    put("destination_version", destination.canonical_revision)?;
    put("destination_cluster", destination.cluster)
}

struct Texts<'a> {
    workload: &'a str,
    canonical_service: &'a str,
    canonical_revision: &'a str,
    namespace: &'a str,
    cluster: &'a str,
    principal: String,
}

impl Peer {
    fn texts(&self) -> Texts<'_> {
        let workload = self.workload.as_deref();
        Texts {
            workload: workload.map_or("", |w| &w.workload_name),
            canonical_service: workload.map_or("", |w| &w.canonical_name),
            canonical_revision: workload.map_or("", |w| &w.canonical_revision),
            namespace: workload.map_or("", |w| &w.namespace),
            cluster: workload.map_or("", |w| &w.cluster),
            principal: self.principal.as_deref().map(Identity::to_string).unwrap_or_default(),
        }
    }
}
