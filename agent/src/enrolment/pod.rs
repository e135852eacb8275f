//! The life of one pod in the mesh.

use std::sync::Arc;
use std::time::Duration;

use culvert_core::mesh::PodEnrolment;
use tokio::sync::watch;

use super::identities::Needed;
use super::place::{self, PlaceError};
use super::{Context, PodState, ProxyControl, ProxyPod, Said};
use crate::charge::taken_after;
use crate::redirect::EnrolError;

/// The pause after a first failure, doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// Why a pod could not be taken in.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Certificate(#[from] crate::identity::FetchError),
    #[error("{0}")]
    Place(#[from] PlaceError),
    #[error("{0}")]
    Redirect(#[from] EnrolError),
    #[error("the agent is stopping")]
    Stopping,
}

impl Failure {
    /// Whether it is another agent's affair.
    fn is_of_another(&self) -> bool {
        let (Self::Redirect(error) | Self::Place(PlaceError::Redirect(error))) = self else { return false };
        matches!(error, EnrolError::NotInCharge)
    }

    /// Whether it is because of how the pod is, and so not what every other pod of the node would fail by.
    fn is_of_the_pod(&self) -> bool {
        match self {
            Self::Place(
                PlaceError::NoProcess { .. } | PlaceError::ForeignKernel { .. } | PlaceError::ForeignClass { .. },
            ) => true,
            Self::Place(PlaceError::Redirect(error)) | Self::Redirect(error) => error.is_of_the_pod(),
            Self::Place(PlaceError::Stopping) | Self::Certificate(_) | Self::Stopping => false,
        }
    }

    /// Whether trying again is of no use as long as the pod is as it is.
    fn is_final(&self) -> bool {
        matches!(self, Self::Place(PlaceError::ForeignKernel { .. } | PlaceError::ForeignClass { .. }))
    }
}

/// Takes the pod in when it is wished for, follows its changes, and lets it go. Returns when it is gone. `held` is what
/// it may have been taken in as already.
pub(super) async fn live<P: ProxyControl>(
    context: Arc<Context<P>>,
    uid: String,
    mut wishes: watch::Receiver<Option<Arc<PodEnrolment>>>,
    mut held: Option<Arc<PodEnrolment>>,
) {
    let mut pause = RETRY_FIRST;
    // Before its certificate is asked for, or who leaves meanwhile would take it along; and until the pod is gone.
    let mut needed: Vec<Needed> = Vec::new();
    let mut turns = context.turns.clone();
    loop {
        let taken = turns.borrow_and_update().taken;
        let wish = wishes.borrow_and_update().clone();
        let Some(pod) = wish else {
            let Some(pod) = held.take() else {
                context.states.remove(&uid);
                context.announcer.say(&uid, None, Said::Left);
                return;
            };
            leave(&context, &uid, &pod).await;
            tracing::info!(pod = %pod.workload.namespaced_name(), "left the mesh");
            continue;
        };
        let name = pod.workload.namespaced_name();
        let report = |state: PodState| context.states.set(&uid, &name, state, pod.netns.clone());
        report(PodState::Pending);
        let identity = &pod.workload.identity;
        needed.retain(|needed| {
            let is_held = held.as_ref().is_some_and(|held| held.workload.identity == *needed.identity());
            is_held || needed.identity() == identity
        });
        if needed.iter().all(|needed| needed.identity() != identity) {
            needed.push(context.identities.need(identity, &context.certificates));
        }
        let failure = match enrol(&context, &uid, &pod).await {
            Ok(()) => {
                pause = RETRY_FIRST;
                report(PodState::Enrolled);
                context.announcer.say(&uid, Some(&name), Said::Enrolled);
                tracing::info!(pod = %name, "enrolled");
                held = Some(pod.clone());
                needed.retain(|needed| needed.identity() == identity);
                // Changed, it is taken in anew over what it was: captured all the time, never in clear.
                tokio::select! {
                    () = until_changed(&mut wishes, &pod) => continue,
                    // Another agent has had the pod meanwhile, and its listeners are gone with it.
                    _ = taken_after(&mut turns, taken) => continue,
                    foreign = place::until_foreign_kernel(&uid, &pod) => {
                        held = None;
                        leave(&context, &uid, &pod).await;
                        Failure::from(foreign)
                    }
                }
            }
            Err(failure) if failure.is_of_another() => {
                tokio::select! {
                    _ = taken_after(&mut turns, taken) => continue,
                    changed = wishes.changed() => if changed.is_err() { return } else { continue },
                }
            }
            Err(failure) => failure,
        };
        tracing::warn!(pod = %name, "cannot be enrolled: {failure}");
        report(PodState::Failed(failure.to_string()));
        if failure.is_of_the_pod() && !is_captured(&context, &uid).await {
            context.states.is_own_affair(&uid);
        }
        let said = if failure.is_final() { Said::Refused } else { Said::Failed };
        context.announcer.say(&uid, Some(&name), said(failure.to_string()));
        tokio::select! {
            _ = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LAST),
            changed = wishes.changed() => {
                if changed.is_err() {
                    return;
                }
                pause = RETRY_FIRST;
            }
        }
    }
}

/// Whether the pod is captured, be it by an earlier agent: then its traffic is refused until it is served.
async fn is_captured<P: ProxyControl>(context: &Context<P>, uid: &str) -> bool {
    let (redirect, uid) = (context.redirect.clone(), uid.to_owned());
    let captured = tokio::task::spawn_blocking(move || redirect.captured().contains(&uid));
    // A panic in it has been reported by the runtime.
    captured.await.unwrap_or(true)
}

/// Certificate, namespace, proxies, and last the row that captures the pod: it is never captured before it is served.
async fn enrol<P: ProxyControl>(context: &Context<P>, uid: &str, pod: &PodEnrolment) -> Result<(), Failure> {
    context.certificates.fetch(&pod.workload.identity).await?;
    let prepared = place::prepare(&context.redirect, context.pods.as_ref(), uid, pod).await?;
    let enrolled = tokio::task::spawn_blocking(move || prepared.commit()).await.map_err(|_| Failure::Stopping)??;
    // Connections that came in between wait in the listeners' queues.
    context.proxies.start(ProxyPod {
        uid: uid.to_owned(),
        workload: pod.workload.uid.clone(),
        identity: pod.workload.identity.clone(),
        netns: enrolled.netns,
        listeners: enrolled.listeners,
    });
    Ok(())
}

/// Waits until the pod is not wished for, or is so different that it has to be taken in anew.
async fn until_changed(wishes: &mut watch::Receiver<Option<Arc<PodEnrolment>>>, enrolled: &PodEnrolment) {
    loop {
        if wishes.changed().await.is_err() {
            // The agent stops: the pod stays enrolled for the next one.
            std::future::pending::<()>().await;
        }
        if !wishes.borrow_and_update().as_ref().is_some_and(|now| is_same(now, enrolled)) {
            return;
        }
    }
}

/// Whether what the pod was taken in as still holds. The API server may list the addresses in another order than the
/// CNI plugin did.
fn is_same(now: &PodEnrolment, enrolled: &PodEnrolment) -> bool {
    let (mine, theirs) = (&now.workload.addresses, &enrolled.workload.addresses);
    now.netns == enrolled.netns
        && now.bypass_inbound == enrolled.bypass_inbound
        && now.dns_capture == enrolled.dns_capture
        && now.workload.outbound_rules == enrolled.workload.outbound_rules
        && now.workload.identity == enrolled.workload.identity
        && mine.len() == theirs.len()
        && mine.iter().all(|ip| theirs.contains(ip))
}

/// The way back: new connections go as if there were no mesh, open ones may finish, then nothing is left.
async fn leave<P: ProxyControl>(context: &Context<P>, uid: &str, pod: &PodEnrolment) {
    let name = pod.workload.namespaced_name();
    let step = |what: fn(&crate::redirect::Redirect, &str) -> Result<(), EnrolError>| {
        let (redirect, uid, name) = (context.redirect.clone(), uid.to_owned(), name.clone());
        tokio::task::spawn_blocking(move || {
            match what(&redirect, &uid) {
                // It lets the pod go as well.
                Ok(()) | Err(EnrolError::NotInCharge) => {}
                Err(error) => tracing::warn!(pod = %name, %error, "could not be let go entirely"),
            }
        })
    };
    // A panic in it has been reported by the runtime.
    let _ = step(|redirect, uid| redirect.release(uid)).await;
    if context.turns.borrow().is_ours {
        context.announcer.say(uid, Some(&name), Said::Left);
    }
    context.proxies.stop(uid).await;
    let _ = step(|redirect, uid| redirect.remove(uid)).await;
    context.states.remove(uid);
}
