//! Which pods of the node are in the mesh, and the life of each from here on.
//!
//! One task a pod walks it through its life (`pod`): certificate, network namespace, proxies, commit; and back. This
//! file says which pods there should be.

mod announce;
mod discovery;
mod identities;
mod place;
mod pod;
mod pods;
mod report;
mod tasks;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::identity::Identity;
use culvert_core::mesh::{PodEnrolment, Snapshot};
use culvert_core::workload::WorkloadUid;
use tokio::sync::watch;

pub use announce::{Announcer, Said};
pub use identities::Identities;
pub use pods::Pods;
pub use report::{PodState, States};
use tasks::{Ended, Tasks};

use crate::charge::{Turn, taken_after};
use crate::identity::CertificateStore;
use crate::redirect::{EnrolError, Listeners, PodNetns, Redirect};

/// How long a pod whose task died waits for another.
const AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether every pod has been taken over from another version.
const LOOK: Duration = Duration::from_millis(500);

/// A pod whose traffic is about to be captured.
pub struct ProxyPod {
    /// The pod.
    pub uid: String,
    /// Its workload.
    pub workload: WorkloadUid,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Its network namespace.
    pub netns: Arc<PodNetns>,
    /// Its listeners.
    pub listeners: Listeners,
}

/// Starts and stops the proxies of a pod.
pub trait ProxyControl: Send + Sync + 'static {
    /// Starts serving the pod's listeners, in place of an earlier proxy of the pod, which stops as in [`Self::stop`].
    fn start(&self, pod: ProxyPod);

    /// Stops: accepts nothing more, lets what is open finish for a while, then ends it.
    fn stop(&self, uid: &str) -> impl Future<Output = ()> + Send;
}

/// What enrolment needs of the rest of the agent.
pub struct Context<P> {
    /// The programs.
    pub redirect: Arc<Redirect>,
    /// The certificates.
    pub certificates: CertificateStore,
    /// The proxies.
    pub proxies: P,
    /// How each pod is doing.
    pub states: States,
    /// Who tells the cluster.
    pub announcer: Announcer,
    /// Who knows more of a pod than the mesh does, where there is an API server.
    pub pods: Option<Pods>,
    /// Whether the node's pods are this agent's.
    pub turns: watch::Receiver<Turn>,
    /// How many pods have each identity.
    pub identities: Identities,
}

/// The task of one pod, and what it is told.
struct Life {
    wish: watch::Sender<Option<Arc<PodEnrolment>>>,
    /// What the pod was last wished for as.
    last: Arc<PodEnrolment>,
}

/// Takes in and lets go the pods of `node`, following `snapshots`, until their sender goes. The pods stay enrolled
/// then: the next agent takes them over. What an earlier agent enrolled and the first snapshot does not want is let go:
/// call this only once there is a snapshot of what has been read.
pub async fn run<P: ProxyControl>(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    node: String,
    context: Arc<Context<P>>,
) {
    let mut lives: HashMap<String, Life> = HashMap::new();
    let mut tasks = Tasks::default();
    let mut strangers = Strangers::Unknown;
    let mut turns = context.turns.clone();
    let mut is_upgrade = context.redirect.has_other_layouts();
    loop {
        let (wanted, is_whole): (HashMap<String, Arc<PodEnrolment>>, bool) = {
            let snapshot = snapshots.borrow_and_update();
            let wanted = snapshot.enrolled_pods_on(&node).map(|pod| (pod.uid.to_string(), pod.clone())).collect();
            (wanted, snapshot.is_whole())
        };
        let taken = turns.borrow_and_update().taken;
        strangers = match strangers {
            Strangers::Forgotten(turn) if turn == taken => Strangers::Forgotten(turn),
            _ if is_whole => {
                context.announcer.wanted(wanted.keys().cloned());
                // Those on their way out see to themselves.
                forget_strangers(&context, wanted.keys().chain(lives.keys()).cloned().collect()).await;
                Strangers::Forgotten(taken)
            }
            Strangers::Unknown => {
                tracing::warn!("not all of the configuration can be read: pods of an earlier agent stay captured");
                Strangers::Kept
            }
            Strangers::Kept | Strangers::Forgotten(_) => Strangers::Kept,
        };
        for (uid, life) in &lives {
            if !wanted.contains_key(uid) {
                life.wish.send_replace(None);
            }
        }
        for (uid, pod) in wanted {
            match lives.get_mut(&uid) {
                // Only a change wakes the task; a life that is ending takes the pod up again.
                Some(life) => {
                    life.last = pod.clone();
                    life.wish.send_if_modified(|known| {
                        let changed = known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &pod));
                        *known = Some(pod.clone());
                        changed
                    });
                }
                None => {
                    // Before anyone can ask whether the agent is ready, not when the task gets to run.
                    let name = pod.workload.namespaced_name();
                    context.states.set(&uid, &name, PodState::Pending, pod.netns.clone());
                    let (wish, wishes) = watch::channel(Some(pod.clone()));
                    lives.insert(uid.clone(), Life { wish, last: pod });
                    tasks.spawn(uid.clone(), pod::live(context.clone(), uid, wishes, None));
                }
            }
        }
        context.states.set_considered();
        if is_upgrade && matches!(strangers, Strangers::Forgotten(_)) && context.states.are_all_enrolled() {
            is_upgrade = !remove_other_layouts(&context).await;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK), if is_upgrade => {}
            changed = snapshots.changed() => if changed.is_err() { return },
            // What left while another agent had the pods was that one's to let go, and it may have died over it.
            _ = taken_after(&mut turns, taken) => {}
            Some(ended) = tasks.ended() => match ended {
                Ended::Gone(uid) => {
                    lives.remove(&uid);
                }
                Ended::Died(uid) => {
                    let Some(life) = lives.get(&uid) else { continue };
                    let (name, pod) = (life.last.workload.namespaced_name(), life.last.clone());
                    let why = "its task died, which is a bug; it is tried again".to_owned();
                    context.states.set(&uid, &name, PodState::Failed(why), pod.netns.clone());
                    let (context, own, wishes) = (context.clone(), uid.clone(), life.wish.subscribe());
                    tasks.spawn(uid, async move {
                        tokio::time::sleep(AGAIN).await;
                        // It may have been taken in: it is let go, or taken in anew over what it was.
                        pod::live(context, own, wishes, Some(pod)).await;
                    });
                }
            },
        }
    }
}

/// Detaches what another version left, which refuses the pods that are not this agent's yet; says whether it has.
async fn remove_other_layouts<P: ProxyControl>(context: &Context<P>) -> bool {
    let redirect = context.redirect.clone();
    let removed = tokio::task::spawn_blocking(move || redirect.remove_other_layouts()).await;
    let is_done = matches!(removed, Ok(Ok(())));
    if is_done {
        tracing::info!("the programs of another version of Culvert are detached: this one has every pod");
    }
    is_done
}

/// What has become of the pods that another agent enrolled and that are not wanted now.
enum Strangers {
    /// Nobody has looked yet.
    Unknown,
    /// They stay captured: the object that wants them may be one that cannot be read.
    Kept,
    /// They were let go, in this turn of the agent.
    Forgotten(u64),
}

/// Lets go of every captured pod but these.
async fn forget_strangers<P: ProxyControl>(context: &Context<P>, keep: HashSet<String>) {
    let redirect = context.redirect.clone();
    let retained = tokio::task::spawn_blocking(move || redirect.retain(&|uid| keep.contains(uid))).await;
    if let Ok(Err(error)) = retained
        && !matches!(error, EnrolError::NotInCharge)
    {
        tracing::warn!(%error, "a pod that has left the mesh could not be let go entirely");
    }
}
