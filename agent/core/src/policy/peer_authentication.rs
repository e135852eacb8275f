//! PeerAuthentication: on which ports a workload insists on an identity.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::selects;
use crate::workload::{Labels, NamespacedName, Workload};

/// Whether a call without an identity is taken. Istio's DISABLE is PERMISSIVE in ambient mode: HBONE is always mTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Plaintext is taken too.
    #[default]
    Permissive,
    /// Only calls with an identity.
    Strict,
}

/// A PeerAuthentication that says something about ambient workloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerAuthentication {
    /// The object.
    pub name: NamespacedName,
    /// When it was made, as Unix seconds: of several at one level the oldest counts. Objects without a time are
    /// the youngest.
    pub created: Option<i64>,
    /// Which workloads it speaks of.
    pub scope: PeerAuthenticationScope,
    /// The mode; `None` inherits.
    pub mode: Option<MtlsMode>,
    /// The modes of single ports of the workload, by number; `None` inherits.
    pub ports: SmallVec<[(u16, Option<MtlsMode>); 2]>,
}

/// Which workloads a PeerAuthentication speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum PeerAuthenticationScope {
    /// All: one of the root namespace, without a selector.
    Mesh,
    /// Those of its namespace.
    Namespace,
    /// Those of its namespace that carry these labels.
    Selector(Labels),
}

/// What holds for one workload, after inheritance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EffectivePeerAuthentication {
    /// The mode of every port not named.
    pub mode: MtlsMode,
    /// The object that `mode` comes from; `None` if it is the default.
    pub source: Option<NamespacedName>,
    /// The modes of single ports, sorted by port.
    pub ports: SmallVec<[(u16, MtlsMode); 2]>,
    /// The object that `ports` come from.
    pub ports_source: Option<NamespacedName>,
}

impl PeerAuthentication {
    /// Whether this object speaks of `workload`.
    pub fn applies_to(&self, workload: &Workload) -> bool {
        let same_namespace = workload.namespace == self.name.namespace;
        match &self.scope {
            PeerAuthenticationScope::Mesh => true,
            PeerAuthenticationScope::Namespace => same_namespace,
            PeerAuthenticationScope::Selector(labels) => same_namespace && selects(labels, &workload.labels),
        }
    }
}

impl EffectivePeerAuthentication {
    /// What `objects` add up to for `workload`; objects that do not apply to it are skipped.
    ///
    /// Workload before namespace before mesh; within a level the oldest counts, then the first by name. An unset mode
    /// inherits from the next level.
    pub fn resolve<'a>(objects: impl IntoIterator<Item = &'a PeerAuthentication>, workload: &Workload) -> Self {
        let (mut selected, mut namespace, mut mesh) = (None, None, None);
        for object in objects.into_iter().filter(|object| object.applies_to(workload)) {
            let level = match object.scope {
                PeerAuthenticationScope::Selector(_) => &mut selected,
                PeerAuthenticationScope::Namespace => &mut namespace,
                PeerAuthenticationScope::Mesh => &mut mesh,
            };
            let age = |object: &PeerAuthentication| (object.created.unwrap_or(i64::MAX), object.name.clone());
            if level.is_none_or(|known| age(object) < age(known)) {
                *level = Some(object);
            }
        }
        let decided = [selected, namespace, mesh].into_iter().flatten().find_map(|object| Some((object.mode?, object)));
        let mode = decided.map_or(MtlsMode::default(), |(mode, _)| mode);
        let mut ports: SmallVec<[_; 2]> = selected
            .iter()
            .flat_map(|object| &object.ports)
            .map(|(port, port_mode)| (*port, port_mode.unwrap_or(mode)))
            .collect();
        ports.sort_unstable_by_key(|(port, _)| *port);
        Self {
            mode,
            source: decided.map(|(_, object)| object.name.clone()),
            ports_source: selected.filter(|_| !ports.is_empty()).map(|object| object.name.clone()),
            ports,
        }
    }

    /// The mode of `port` (the workload's, not the service's), and the object that says so.
    pub fn port(&self, port: u16) -> (MtlsMode, Option<&NamespacedName>) {
        match self.ports.iter().find(|(known, _)| *known == port) {
            Some((_, mode)) => (*mode, self.ports_source.as_ref()),
            None => (self.mode, self.source.as_ref()),
        }
    }
}
