//! How a workload describes itself to its peers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use culvert_core::hbone::Baggage;
use culvert_core::workload::Workload;

/// The `baggage` of one workload, made again only when what is known of it has changed.
#[derive(Debug)]
pub(crate) struct OwnBaggage(ArcSwap<Described>);

/// A workload, and its baggage.
type Described = (Option<Arc<Workload>>, Arc<str>);

impl OwnBaggage {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self(ArcSwap::from_pointee((None, "".into())))
    }

    /// The header of the workload as it is now; empty for one that has nothing to say.
    pub(crate) fn of(&self, workload: &Arc<Workload>) -> Arc<str> {
        let known = self.0.load();
        if known.0.as_ref().is_some_and(|known| Arc::ptr_eq(known, workload)) {
            return known.1.clone();
        }
        let text: Arc<str> = baggage_of(workload).to_string().into();
        self.0.store(Arc::new((Some(workload.clone()), text.clone())));
        text
    }
}

/// What a workload says of itself.
pub(crate) fn baggage_of(workload: &Workload) -> Baggage {
    let some = |value: &Arc<str>| (!value.is_empty()).then(|| value.clone());
    Baggage {
        cluster: some(&workload.cluster),
        namespace: some(&workload.namespace),
        workload: some(&workload.workload_name).map(|name| (workload.workload_type, name)),
        service_name: some(&workload.canonical_name),
        service_version: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}
