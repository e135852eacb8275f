//! The clusters there are, found by what a route goes to.
//!
//! Each worker remembers what it has asked for, by the places in memory of what routes go to; that is a hash lookup and
//! a look at the version. After a change of the mesh the first to ask compares what the cluster is made of, once for
//! all workers, and puts together another if it has to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_core::mesh::Snapshot;
use culvert_core::route::decide::Target;
use culvert_core::service::ServiceKey;
use culvert_core::workload::{Workload, WorkloadUid};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::cluster::{Cluster, MadeOf, Parts, Shared, State, Subject};
use super::worker::PerWorker;

/// What a worker remembers before it forgets what is out of date.
const REMEMBERED: usize = 1024;

/// The clusters.
pub(super) struct Registry {
    shared: Arc<Shared>,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    remembered: PerWorker<Mutex<Remembered>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Service(ServiceKey, u16, Option<Arc<str>>),
    Workload(WorkloadUid, u16),
}

/// Where the cluster of a target is.
struct Slot {
    state: Arc<State>,
    current: Mutex<Option<Current>>,
}

struct Current {
    /// The latest of the mesh that it was compared with.
    version: u64,
    cluster: Arc<Cluster>,
}

/// By the place in memory of the service or workload, which the entry holds, and the port.
type Remembered = HashMap<(usize, u16), SmallVec<[Entry; 1]>>;

struct Entry {
    version: u64,
    subset: Option<Arc<str>>,
    cluster: Arc<Cluster>,
    _subject: Subject,
}

impl Registry {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let workers = shared.dialler.workers();
        Self { shared, slots: Mutex::default(), remembered: PerWorker::new(workers, |_| Mutex::default()) }
    }

    /// The cluster of a target.
    pub(super) fn target(&self, snapshot: &Snapshot, target: &Target) -> Arc<Cluster> {
        let place = (Arc::as_ptr(&target.service) as usize, target.port);
        self.remembered(snapshot, place, target.subset.as_deref()).unwrap_or_else(|| {
            let key = Key::Service(target.service.key.clone(), target.port, target.subset.clone());
            let subject = Subject::Service(target.service.clone(), target.port, target.subset.clone());
            self.look(snapshot, place, key, subject)
        })
    }

    /// The cluster of a workload alone.
    pub(super) fn workload(&self, snapshot: &Snapshot, workload: &Arc<Workload>, port: u16) -> Arc<Cluster> {
        let place = (Arc::as_ptr(workload) as usize, port);
        self.remembered(snapshot, place, None).unwrap_or_else(|| {
            let key = Key::Workload(workload.uid.clone(), port);
            self.look(snapshot, place, key, Subject::Workload(workload.clone(), port))
        })
    }

    fn remembered(&self, snapshot: &Snapshot, place: (usize, u16), subset: Option<&str>) -> Option<Arc<Cluster>> {
        let remembered = lock(self.remembered.here().1);
        let mut entries = remembered.get(&place)?.iter();
        let found = entries.find(|entry| entry.subset.as_deref() == subset)?;
        // Who still looks at an earlier mesh is better served by what is known since.
        (found.version >= snapshot.version()).then(|| found.cluster.clone())
    }

    fn look(&self, snapshot: &Snapshot, place: (usize, u16), key: Key, subject: Subject) -> Arc<Cluster> {
        let subset = match &key {
            Key::Service(_, _, subset) => subset.clone(),
            Key::Workload(..) => None,
        };
        let slot = lock(&self.slots).entry(key).or_insert_with(|| Slot::new(subject.name())).clone();
        let version = snapshot.version();
        let cluster = slot.cluster(snapshot, &self.shared, subject.clone());
        let mut remembered = lock(self.remembered.here().1);
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, entries| {
                entries.retain(|entry| entry.version >= version);
                !entries.is_empty()
            });
        }
        let entries = remembered.entry(place).or_default();
        entries.retain(|entry| entry.subset != subset);
        entries.push(Entry { version, subset, cluster: cluster.clone(), _subject: subject });
        cluster
    }

    /// Every cluster there is.
    pub(super) fn clusters(&self) -> Vec<Arc<Cluster>> {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        slots.iter().filter_map(|slot| Some(lock(&slot.current).as_ref()?.cluster.clone())).collect()
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn expire(&self, now: Instant) {
        self.clusters().iter().for_each(|cluster| cluster.expire(now));
    }

    /// Forgets the clusters of what the mesh has no more.
    pub(super) fn forget(&self) {
        let snapshot = self.shared.mesh.load_full();
        let mut gone = Vec::new();
        lock(&self.slots).retain(|key, slot| {
            let is_there = match key {
                Key::Service(key, ..) => snapshot.service(key).is_some(),
                Key::Workload(uid, _) => snapshot.workload(uid).is_some(),
            };
            if !is_there {
                gone.push(slot.clone());
            }
            is_there
        });
        for remembered in self.remembered.iter() {
            let old = std::mem::take(&mut *lock(remembered));
            drop(old);
        }
        for slot in gone {
            if let Some(current) = lock(&slot.current).take() {
                current.cluster.retire();
            }
        }
    }
}

impl Slot {
    fn new(name: String) -> Arc<Self> {
        Arc::new(Self { state: State::new(name), current: Mutex::default() })
    }

    /// The cluster as it is in `snapshot`, or in a later one.
    fn cluster(&self, snapshot: &Snapshot, shared: &Arc<Shared>, subject: Subject) -> Arc<Cluster> {
        let mut current = lock(&self.current);
        let version = snapshot.version();
        if let Some(known) = current.as_ref().filter(|known| known.version >= version) {
            return known.cluster.clone();
        }
        let made_of = MadeOf::new(snapshot, &shared.own, subject);
        let before = current.as_ref().map(|known| &*known.cluster);
        let cluster = match current.as_ref().filter(|known| known.cluster.is_made_of(&made_of)) {
            Some(known) => known.cluster.clone(),
            None => Cluster::build(snapshot, shared, made_of, Parts { state: self.state.clone(), before }),
        };
        *current = Some(Current { version, cluster: cluster.clone() });
        cluster
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
