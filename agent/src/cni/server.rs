//! The agent's side of the CNI plugin: a Unix socket for root alone.
//!
//! An ADD is answered when the pod is captured, served and has its certificate, or when it is certain that it does not
//! belong to the mesh. What the plugin says of the sandbox goes into the mesh, and the pod is taken in by the same path
//! as any other; all that is done here is to wait for the outcome.

mod answer;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert_core::enrolment::EnrolmentRules;
use culvert_core::mesh::{Sandbox, Snapshot};
use culvert_core::workload::NamespacedName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::keep::Problem;
use super::protocol::{self, Answer, Request};
use super::sandboxes::{Records, pod};
use crate::charge::{Turn, taken_after};
use crate::enrolment::{Pods, States};
use crate::source::kube::Ahead;
use crate::telemetry::Telemetry;

/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// How many requests are worked on at a time: a node whose pods all start at once.
const MAX_REQUESTS: usize = 256;
/// How often a socket that cannot be bound is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether pods whose sandbox was taken down are gone.
const SWEEP: Duration = Duration::from_secs(60);

/// What the plugin's requests tell the mesh of a pod's sandbox.
#[derive(Debug)]
pub struct Told {
    /// Whose it is.
    pub pod: NamespacedName,
    /// What is known of it; `None` to forget it.
    pub sandbox: Option<Sandbox>,
    /// Told when readers of the mesh see it.
    pub seen: Option<oneshot::Sender<()>>,
}

/// What answering takes.
#[derive(Clone)]
pub struct Context {
    /// How pods are chosen.
    pub rules: Arc<EnrolmentRules>,
    /// Where sandboxes are written down.
    pub state_dir: PathBuf,
    /// The mesh as it changes.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How each pod is doing.
    pub states: States,
    /// Where the mesh is told.
    pub mesh: mpsc::Sender<Told>,
    /// The API server, where there is one, and where what it has goes ahead of the watch.
    pub pods: Option<(Pods, Ahead)>,
    /// Whether the node's pods are this agent's.
    pub turns: watch::Receiver<Turn>,
}

/// A socket that is bound, or will be.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// When it is to be bound, where that has failed.
    retry_at: Option<Instant>,
    problem: watch::Sender<Problem>,
}

/// What all requests share.
struct Shared {
    context: Context,
    records: Records,
    /// The sandbox that each pod has now, by its ID.
    current: Mutex<HashMap<NamespacedName, Current>>,
    requests: Family<Labels, Counter>,
}

struct Current {
    container_id: String,
    /// It was taken down, and its pod may still be there.
    is_down: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    command: &'static str,
    result: &'static str,
}

impl Server {
    /// With `at_once`, binds the socket, in the place of an earlier agent's. Needs a tokio runtime.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn new(path: &Path, at_once: bool) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let listener = if at_once { Some(Self::bind(path)?) } else { None };
        Ok(Self { path: path.to_path_buf(), listener, retry_at: None, problem: watch::Sender::new(None) })
    }

    /// Why the plugin is not answered, for readiness; `None` while it is, or another agent is to answer it.
    pub fn problem(&self) -> watch::Receiver<Problem> {
        self.problem.subscribe()
    }

    fn bind(path: &Path) -> io::Result<UnixListener> {
        // Bound beside it and moved there: nobody but root may connect at any moment, and there is none at which nobody
        // listens while one agent takes over from another.
        let hidden = path.with_extension(format!("{}.part", std::process::id()));
        crate::files::remove_file(&hidden)?;
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
        fs::rename(&hidden, path)?;
        Ok(listener)
    }

    /// Binds the socket where it is not this agent's, or no longer; if it cannot, it is to be tried again.
    fn take(&mut self) {
        let problem = match Self::bind(&self.path) {
            Ok(listener) => {
                self.listener = Some(listener);
                None
            }
            Err(error) => {
                let path = self.path.display();
                Some(format!(
                    "--cni-socket {path}: cannot be bound: {error}: remove what is there, or name another path"
                ))
            }
        };
        self.retry_at = problem.as_ref().map(|_| Instant::now() + RETRY);
        if let Some(problem) = problem.as_ref().filter(|_| self.problem.borrow().as_ref() != problem.as_ref()) {
            tracing::error!("the CNI plugin is not answered: {problem}");
        }
        self.problem.send_replace(problem);
    }

    /// Binds it at last, unless that is another agent's affair by now.
    fn try_again(&mut self, is_ours: bool) {
        if is_ours {
            return self.take();
        }
        self.retry_at = None;
        self.problem.send_replace(None);
    }

    /// A connection to the socket, once there is one.
    async fn accept(&self) -> io::Result<UnixStream> {
        match &self.listener {
            Some(listener) => listener.accept().await.map(|(stream, _)| stream),
            None => std::future::pending().await,
        }
    }

    /// Answers until the task is dropped.
    pub async fn serve(mut self, context: Context, telemetry: &Telemetry) {
        let requests = Family::<Labels, Counter>::default();
        telemetry.registry(|registry| {
            registry.register("culvert_cni_requests", "Requests of the CNI plugin", requests.clone());
        });
        let records = Records::new(&context.state_dir);
        let known = records.load();
        let current = known.iter().map(|attachment| {
            (pod(attachment), Current { container_id: attachment.container_id.clone(), is_down: false })
        });
        let current = Mutex::new(current.collect());
        let shared = Arc::new(Shared { context, records, current, requests });
        let places = Arc::new(Semaphore::new(MAX_REQUESTS));
        let mut turns = shared.context.turns.clone();
        let mut bound_in = 1;
        if self.listener.is_none() {
            self.take();
        }
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                // Another agent had bound it meanwhile.
                taken = taken_after(&mut turns, bound_in) => {
                    bound_in = taken;
                    self.take();
                    continue;
                }
                () = at(self.retry_at) => {
                    let is_ours = turns.borrow().is_ours;
                    self.try_again(is_ours);
                    continue;
                }
                _ = sweep.tick() => {
                    shared.sweep().await;
                    continue;
                }
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the CNI plugin cannot be answered");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Who waits for a place finds out by its own time-out.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let shared = shared.clone();
            tokio::spawn(async move {
                shared.converse(stream).await;
                drop(place);
            });
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    async fn converse(&self, mut stream: UnixStream) {
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            return self.count("unknown", "forbidden");
        }
        let request = match tokio::time::timeout(REQUEST, protocol::receive::<Request>(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => {
                self.count("unknown", "invalid");
                let reason = format!("the request cannot be read: {error}");
                let _ = protocol::send(&mut stream, &Answer::Invalid { reason }).await;
                return;
            }
            Err(_) => return self.count("unknown", "timeout"),
        };
        let name = request.command.name();
        let answer = self.answer(request).await;
        self.count(name, answer.name());
        if let Answer::Refused { reason } | Answer::Invalid { reason } = &answer {
            tracing::warn!(command = name, "CNI plugin: {reason}");
        }
        // A plugin that has given up asks again.
        let _ = tokio::time::timeout(REQUEST, protocol::send(&mut stream, &answer)).await;
    }

    fn count(&self, command: &'static str, result: &'static str) {
        self.requests.get_or_create_owned(&Labels { command, result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;
    use crate::telemetry::AccessLog;

    #[tokio::test]
    async fn a_socket_that_cannot_be_bound_keeps_the_agent_from_being_ready_and_is_tried_again() {
        let directory = TempDir::new();
        let path = directory.join("cni.sock");
        // Nothing can be moved there.
        fs::create_dir_all(path.join("in-the-way")).unwrap();
        let server = Server::new(&path, false).unwrap();
        let mut problem = server.problem();
        assert_eq!(*problem.borrow(), None);
        let (_snapshots, snapshots) = watch::channel(culvert_core::mesh::Mesh::new().snapshot());
        let (mesh, _told) = mpsc::channel(1);
        let (_turn, turns) = watch::channel(Turn { is_ours: true, taken: 1 });
        let context = Context {
            rules: Arc::default(),
            state_dir: directory.path().to_owned(),
            snapshots,
            states: States::default(),
            mesh,
            pods: None,
            turns,
        };
        let serving = tokio::spawn(async move { server.serve(context, &Telemetry::new(AccessLog::off())).await });
        let why = problem.wait_for(Option::is_some).await.unwrap().clone();
        assert!(
            why.as_deref().is_some_and(|why| why.contains("cni.sock") && why.contains("cannot be bound")),
            "{why:?}"
        );

        fs::remove_dir_all(&path).unwrap();
        tokio::time::timeout(10 * RETRY, problem.wait_for(Option::is_none)).await.unwrap().unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = Request { version: protocol::VERSION, command: protocol::Command::Status };
        protocol::send(&mut stream, &request).await.unwrap();
        assert_eq!(protocol::receive::<Answer>(&mut stream).await.unwrap(), Answer::Done);
        serving.abort();
    }

    #[tokio::test]
    async fn what_another_agent_is_to_answer_is_no_problem_of_this_one() {
        let directory = TempDir::new();
        let path = directory.join("cni.sock");
        fs::create_dir_all(path.join("in-the-way")).unwrap();
        let mut server = Server::new(&path, false).unwrap();
        server.take();
        assert!(server.problem().borrow().is_some() && server.retry_at.is_some());
        fs::remove_dir_all(&path).unwrap();
        server.try_again(false);
        assert!(server.problem().borrow().is_none() && server.retry_at.is_none() && !path.exists());
    }
}
