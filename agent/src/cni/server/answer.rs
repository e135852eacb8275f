//! What each request comes to.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use culvert_api::k8s_openapi::api::core::v1::{Namespace, Pod};
use culvert_api::names::annotation;
use culvert_core::enrolment::{EnrolmentRules, PodTraits, Why, eligibility};
use culvert_core::mesh::{Sandbox, SandboxVerdict, Snapshot};
use culvert_core::workload::NamespacedName;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::netconf::is_container_id;
use super::super::protocol::{Answer, Attachment, Command, Request, VERSION};
use super::super::sandboxes::{pod, sandbox};
use super::{Current, Shared, Told};
use crate::enrolment::PodState;

#[cfg(test)]
mod tests;

/// How long an ADD may take; less than the plugin waits.
const ADD: Duration = Duration::from_secs(25);
/// How long the watch has to bring a pod and its namespace before the API server is asked for them.
const WATCH: Duration = Duration::from_millis(500);
/// How long a pod that could not be taken in may be tried again before the runtime is told; it tries again too.
const FAILING: Duration = Duration::from_secs(5);

/// What the API server says of a pod.
enum Word {
    /// All that there is to say.
    Final(Answer),
    /// That it belongs to the mesh, which knows it soon: a watch that lags behind must not let it start in clear.
    Belongs,
    /// Nothing certain: the mesh knows more soon, or the API server is away.
    Nothing,
}

impl Shared {
    pub(super) async fn answer(&self, request: Request) -> Answer {
        let invalid = |reason: &str| Answer::Invalid { reason: reason.to_owned() };
        if request.version != VERSION {
            return invalid("the plugin is another version's than the agent: the agent installs its own in a moment");
        }
        match request.command {
            Command::Add(attachment) | Command::Check(attachment) | Command::Del(attachment)
                if !is_container_id(&attachment.container_id) =>
            {
                invalid("the container ID is not one")
            }
            Command::Add(attachment) => match attachment.netns.clone() {
                Some(netns) if !attachment.addresses.is_empty() => self.add(attachment, netns).await,
                _ => invalid("an ADD needs a network namespace and addresses"),
            },
            Command::Check(attachment) => self.check(&attachment),
            Command::Del(attachment) => {
                self.del(&attachment).await;
                Answer::Done
            }
            Command::Gc { valid } => self.gc(valid).await,
            Command::Status => Answer::Done,
        }
    }

    async fn add(&self, attachment: Attachment, netns: String) -> Answer {
        let pod = pod(&attachment);
        if self.context.rules.excludes(&pod.namespace) {
            return not_in_mesh(&Why::ExcludedNamespace);
        }
        let (records, written) = (self.records.clone(), attachment.clone());
        let written = tokio::task::spawn_blocking(move || records.write(&written)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%pod, %error, "the sandbox cannot be written down: a new agent would have to look for it");
        }
        let current = Current { container_id: attachment.container_id.clone(), is_down: false };
        self.current().insert(pod.clone(), current);
        match tokio::time::timeout(ADD, self.take_in(&pod, &attachment, &netns)).await {
            Ok(answer) => answer,
            Err(_) => self.overdue(&pod),
        }
    }

    /// Waits until the pod is in the mesh, or is known to be outside.
    async fn take_in(&self, pod: &NamespacedName, attachment: &Attachment, netns: &str) -> Answer {
        let (seen, is_seen) = oneshot::channel();
        self.tell(pod, Some(sandbox(attachment)), Some(seen)).await;
        // What was said before of an earlier sandbox is of no interest.
        if is_seen.await.is_err() {
            return refused(pod, "the agent is stopping");
        }
        let (mut snapshots, mut states) = (self.context.snapshots.clone(), self.context.states.subscribe());
        let mut ask_at = Some(Instant::now() + WATCH);
        let mut failing = None;
        // The API server has said so, whatever the mesh still thinks of it.
        let mut belongs = false;
        loop {
            states.borrow_and_update();
            let snapshot = snapshots.borrow_and_update().clone();
            let mut until = None;
            match snapshot.sandbox(pod) {
                // The pod may have come before the label of its namespace: of two watches either may lag. Where nobody
                // answers, the mesh's word counts, as others are to start then.
                Some(SandboxVerdict::Out(why)) if why.is_of_labels() && ask_at.take().is_some() => {
                    match self.ask(pod, attachment.uid.as_deref(), &snapshot).await {
                        Word::Final(answer) => return answer,
                        Word::Belongs => belongs = true,
                        Word::Nothing => return not_in_mesh(why),
                    }
                    continue;
                }
                Some(SandboxVerdict::Out(why)) if !belongs => return not_in_mesh(why),
                Some(SandboxVerdict::Out(_)) => {}
                Some(SandboxVerdict::In(uid)) => match self.context.states.outcome(uid, netns) {
                    Some(PodState::Enrolled) => return Answer::Enrolled,
                    Some(PodState::Failed(reason)) => {
                        let since = *failing.get_or_insert_with(Instant::now);
                        if since.elapsed() >= FAILING {
                            return refused(pod, &reason);
                        }
                        until = Some(since + FAILING);
                    }
                    _ => {}
                },
                Some(SandboxVerdict::NoPod | SandboxVerdict::NoNamespace) | None => match ask_at {
                    Some(at) if at <= Instant::now() => {
                        ask_at = None;
                        match self.ask(pod, attachment.uid.as_deref(), &snapshot).await {
                            Word::Final(answer) => return answer,
                            Word::Belongs => belongs = true,
                            Word::Nothing => {}
                        }
                    }
                    at => until = at,
                },
            }
            let alarm = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() {
                    return refused(pod, "the agent is stopping");
                },
                _ = states.changed() => {}
                () = alarm => {}
            }
        }
    }

    /// Has the API server say what the watch has not brought yet.
    async fn ask(&self, pod: &NamespacedName, uid: Option<&str>, snapshot: &Snapshot) -> Word {
        let Some((pods, ahead)) = &self.context.pods else {
            // Objects of files: a namespace that is in none has no labels, and asks for nothing.
            return match snapshot.sandbox(pod) {
                Some(SandboxVerdict::NoNamespace) => Word::Final(not_in_mesh(&Why::NotLabelled)),
                _ => Word::Nothing,
            };
        };
        let (found, namespace) = tokio::join!(pods.find(pod), pods.find_namespace(&pod.namespace));
        let on_node = |found: &Pod| {
            let mirrored = found.metadata.annotations.as_ref().and_then(|known| known.get(annotation::MIRROR));
            mirrored.or(found.metadata.uid.as_ref()).cloned()
        };
        let found = found.filter(|found| uid.is_none_or(|uid| on_node(found).as_deref() == Some(uid)));
        let belongs = match (&found, &namespace) {
            (Some(found), Some(namespace)) => belongs(&self.context.rules, found, namespace),
            _ => false,
        };
        if let Some(namespace) = &namespace {
            ahead.namespace(namespace).await;
        }
        if let Some(found) = &found {
            ahead.pod(found).await;
        }
        if belongs { Word::Belongs } else { Word::Nothing }
    }

    fn overdue(&self, pod: &NamespacedName) -> Answer {
        let what = match self.context.snapshots.borrow().sandbox(pod) {
            Some(SandboxVerdict::NoPod) | None => "the API server has not told the agent of it",
            Some(SandboxVerdict::NoNamespace) => "the API server has not told the agent of its namespace",
            Some(SandboxVerdict::In(_)) => "it is still being enrolled",
            Some(SandboxVerdict::Out(_)) => "the agent has not been told of the labels that put it into the mesh",
        };
        refused(pod, &format!("{what}, after {} s; see the agent's log", ADD.as_secs()))
    }

    fn check(&self, attachment: &Attachment) -> Answer {
        let pod = pod(attachment);
        let snapshot = self.context.snapshots.borrow().clone();
        match (snapshot.sandbox(&pod), attachment.netns.as_deref()) {
            (Some(SandboxVerdict::Out(why)), _) => not_in_mesh(why),
            (Some(SandboxVerdict::In(uid)), Some(netns)) => match self.context.states.outcome(uid, netns) {
                Some(PodState::Enrolled) => Answer::Enrolled,
                Some(PodState::Failed(reason)) => refused(&pod, &reason),
                _ => refused(&pod, "it is being enrolled"),
            },
            // It was there before the plugin: enrolled by other means, or not at all.
            _ => Answer::Done,
        }
    }

    async fn del(&self, attachment: &Attachment) {
        let (records, id) = (self.records.clone(), attachment.container_id.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || records.remove(&id)).await {
            tracing::warn!(%error, "a sandbox that is gone cannot be struck out");
        }
        let pod = pod(attachment);
        let is_current = match self.current().get_mut(&pod) {
            Some(current) if current.container_id == attachment.container_id && !current.is_down => {
                current.is_down = true;
                true
            }
            // Of an earlier sandbox: the pod has another by now.
            _ => false,
        };
        if is_current {
            let down = Sandbox { netns: None, ..sandbox(attachment) };
            self.tell(&pod, Some(down), None).await;
        }
        self.sweep().await;
    }

    async fn gc(&self, valid: Vec<String>) -> Answer {
        let records = self.records.clone();
        let gone = match tokio::task::spawn_blocking(move || records.collect_garbage(&valid)).await {
            Ok(Ok(gone)) => gone,
            Ok(Err(error)) => return Answer::Refused { reason: format!("sandboxes cannot be struck out: {error}") },
            Err(_) => return Answer::Refused { reason: "the agent is stopping".to_owned() },
        };
        for attachment in gone {
            self.del(&attachment).await;
        }
        Answer::Done
    }

    /// Forgets sandboxes that were taken down once their pods are gone too.
    pub(super) async fn sweep(&self) {
        let snapshot = self.context.snapshots.borrow().clone();
        let is_gone = |pod: &NamespacedName| matches!(snapshot.sandbox(pod), Some(SandboxVerdict::NoPod));
        let gone: Vec<NamespacedName> = {
            let mut current = self.current();
            let gone: Vec<_> =
                current.iter().filter(|(pod, now)| now.is_down && is_gone(pod)).map(|(pod, _)| pod.clone()).collect();
            for pod in &gone {
                current.remove(pod);
            }
            gone
        };
        for pod in gone {
            self.tell(&pod, None, None).await;
        }
    }

    async fn tell(&self, pod: &NamespacedName, sandbox: Option<Sandbox>, seen: Option<oneshot::Sender<()>>) {
        // Without a mesh the agent is stopping.
        let _ = self.context.mesh.send(Told { pod: pod.clone(), sandbox, seen }).await;
    }

    fn current(&self) -> MutexGuard<'_, std::collections::HashMap<NamespacedName, Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn belongs(rules: &EnrolmentRules, pod: &Pod, namespace: &Namespace) -> bool {
    let meta = &pod.metadata;
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let traits = PodTraits::read(&meta.annotations.as_ref(), host_network);
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    eligibility(rules, name, &namespace.metadata.labels.as_ref(), &meta.labels.as_ref(), traits).is_ok()
}

fn not_in_mesh(why: &Why) -> Answer {
    Answer::NotInMesh { reason: why.to_string() }
}

fn refused(pod: &NamespacedName, reason: &str) -> Answer {
    Answer::Refused { reason: format!("pod {pod} belongs to the mesh and cannot be taken in: {reason}") }
}
