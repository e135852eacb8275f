//! The tasks of the pods, and which pod's a task was that died.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// One task a pod.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    uids: HashMap<Id, String>,
}

/// A task that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The pod of this uid is gone.
    Gone(String),
    /// A bug: the pod is as it is, and nobody sees to it any more.
    Died(String),
}

impl Tasks {
    /// Starts the task of the pod `uid`.
    pub(super) fn spawn(&mut self, uid: String, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.uids.insert(id, uid);
    }

    /// The next task to end; `None` while there is none.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        let ended = self.running.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(|error| error.id(), |(id, ())| *id);
        let uid = self.uids.remove(&id)?;
        Some(match ended {
            Ok(_) => Ended::Gone(uid),
            Err(error) => {
                tracing::error!(pod = uid, %error, "the task of a pod died; another one takes it up in a while");
                Ended::Died(uid)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_dies_tells_whose_it_was() {
        let mut tasks = Tasks::default();
        tasks.spawn("cart".to_owned(), async {});
        assert_eq!(tasks.ended().await, Some(Ended::Gone("cart".to_owned())));
        tasks.spawn("web".to_owned(), async { panic!("a bug") });
        assert_eq!(tasks.ended().await, Some(Ended::Died("web".to_owned())));
        assert_eq!(tasks.ended().await, None);
    }
}
