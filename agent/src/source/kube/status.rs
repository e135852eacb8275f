//! What is known of the connection to the API server, and who is told: the log once, the status and the metrics always.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use culvert_api::k8s_openapi::jiff;
use serde::Serialize;
use tokio::sync::watch;

use super::definitions;
use super::request::Failure;
use crate::cluster::{Notices, explain_failure, forbidden};
use crate::telemetry::Sample;

/// How many objects that cannot be read are kept for the status; all of them are counted.
const MAX_REJECTED: usize = 200;
/// What is said of everything at once when nothing can be reached.
const SERVER: &str = "the API server";

/// Where each resource stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// What cannot be reached, if so, and since when: everything goes on as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// When the objects were read that an agent started with which could not read them itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_from: Option<String>,
    /// The resources, by name.
    pub resources: BTreeMap<Arc<str>, ResourceStatus>,
    /// Objects that cannot be read, by name, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, String>,
}

/// Where a resource stands.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ResourceStatus {
    /// How far it is followed.
    pub state: State,
    /// The version it is read in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<&'static str>,
    /// How many objects there are.
    pub objects: usize,
    /// What is wrong, and the cure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Until when it is known to be as it was.
    #[serde(skip)]
    good_until: Option<SystemTime>,
    /// Whether all of its objects are known, from now or from an earlier agent.
    #[serde(skip)]
    is_complete: bool,
    /// Whether they were listed by this agent.
    #[serde(skip)]
    is_listed: bool,
}

/// How far a resource is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not been listed yet.
    #[default]
    Waiting,
    /// It has been listed, and is about to be watched.
    Listed,
    /// It is watched: what changes is known at once.
    Watched,
    /// The API server does not have it; there are no such objects.
    Absent,
    /// It cannot be listed or watched; its objects stay as they were.
    Failing,
}

/// What is known of all resources.
#[derive(Debug)]
pub(super) struct Board {
    resources: Mutex<BTreeMap<Arc<str>, ResourceStatus>>,
    rejected: Mutex<BTreeMap<String, String>>,
    rejections: std::sync::atomic::AtomicU64,
    /// When the objects on disk were last known to be right, where they are used.
    snapshot: Mutex<Option<SystemTime>>,
    notices: Notices,
    unreachable: watch::Sender<Option<String>>,
}

impl Board {
    /// Of the resources with these names, and of others that there can be a mesh without.
    pub(super) fn new(names: impl IntoIterator<Item = Arc<str>>, others: &[&'static str]) -> Self {
        let optional = ResourceStatus { is_complete: true, is_listed: true, ..ResourceStatus::default() };
        let others = others.iter().map(|name| (Arc::from(*name), optional.clone()));
        let resources = names.into_iter().map(|name| (name, ResourceStatus::default())).chain(others).collect();
        Self {
            resources: Mutex::new(resources),
            rejected: Mutex::default(),
            rejections: 0.into(),
            snapshot: Mutex::default(),
            notices: Notices::default(),
            unreachable: watch::channel(None).0,
        }
    }

    /// Why the API server cannot be reached, if it cannot.
    pub(super) fn unreachable(&self) -> watch::Receiver<Option<String>> {
        self.unreachable.subscribe()
    }

    /// How many objects a resource has.
    pub(super) fn objects(&self, name: &str) -> usize {
        lock(&self.resources).get(name).map_or(0, |resource| resource.objects)
    }

    pub(super) fn set_objects(&self, name: &str, objects: usize) {
        self.change(name, |resource| resource.objects = objects);
    }

    /// All objects of it are known from an earlier agent.
    pub(super) fn remembered(&self, name: &str) {
        self.change(name, |resource| resource.is_complete = true);
    }

    /// All objects of it are known.
    pub(super) fn complete(&self, name: &str) {
        self.change(name, |resource| {
            resource.is_complete = true;
            resource.is_listed = true;
            // Its follower says so as well, but perhaps only after whoever takes the objects has asked.
            if matches!(resource.state, State::Waiting | State::Failing) {
                resource.state = State::Listed;
                resource.problem = None;
            }
        });
        if lock(&self.resources).values().all(|resource| resource.is_listed) {
            *lock(&self.snapshot) = None;
        }
    }

    /// The objects of an earlier agent, last known to be right at `time`, are acted on.
    pub(super) fn started_from(&self, time: SystemTime) {
        *lock(&self.snapshot) = Some(time);
    }

    /// It was listed in `version`.
    pub(super) fn listed(&self, name: &str, version: &'static str) {
        self.good(name, State::Listed, Some(version));
    }

    /// It is watched in `version`.
    pub(super) fn watching(&self, name: &str, version: &'static str) {
        self.good(name, State::Watched, Some(version));
    }

    /// It is not there.
    pub(super) fn absent(&self, name: &str) {
        self.good(name, State::Absent, None);
    }

    /// It could not be listed or watched.
    pub(super) fn failed(&self, name: &str, verb: &str, failure: &Failure) {
        let problem = match failure {
            Failure::Forbidden(message) => forbidden(message, verb, name),
            Failure::Unreachable(cause) => {
                let line = format!("{SERVER} cannot be reached: {cause}");
                if self.unreachable.borrow().is_none() {
                    tracing::warn!("{line}: everything goes on as it was");
                    self.unreachable.send_replace(Some(line.clone()));
                }
                line
            }
            Failure::NotFound => format!("cannot {verb} {name}: the API server has none of its versions that are read"),
            Failure::Gone => format!("cannot {verb} {name}: what was asked for is no longer known"),
            Failure::Garbled(what) => format!("cannot {verb} {name}: {what}"),
            Failure::Refused { code, message, .. } => explain_failure(*code, message, verb, name),
        };
        if !matches!(failure, Failure::Unreachable(_)) {
            self.answered();
            self.notices.wrong(name, &problem);
        }
        self.change(name, |resource| {
            if resource.is_complete && resource.state != State::Failing {
                resource.good_until = Some(SystemTime::now());
            }
            resource.state = State::Failing;
            resource.problem = Some(problem);
        });
    }

    /// `object` cannot be read.
    pub(super) fn reject(&self, object: String, reason: String) {
        self.rejections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut rejected = lock(&self.rejected);
        if rejected.get(&object) == Some(&reason) {
            return;
        }
        if rejected.len() < MAX_REJECTED || rejected.contains_key(&object) {
            tracing::warn!("{object}: {reason}");
            rejected.insert(object, reason);
        } else {
            tracing::debug!("{object}: {reason}");
        }
    }

    /// `object` can be read, or is gone.
    pub(super) fn accept(&self, object: &str) {
        let mut rejected = lock(&self.rejected);
        if !rejected.is_empty() && rejected.remove(object).is_some() {
            tracing::info!("{object}: in order again");
        }
    }

    /// Everything that is known.
    pub(super) fn status(&self) -> Status {
        Status {
            unreachable: self.unreachable.borrow().clone(),
            started_from: lock(&self.snapshot).map(time),
            resources: lock(&self.resources).clone(),
            rejected: lock(&self.rejected).clone(),
        }
    }

    /// Whether everything there is has been read by this agent, and is followed.
    pub(super) fn is_whole(&self) -> bool {
        let is_followed = |resource: &ResourceStatus| resource.is_listed && resource.state != State::Failing;
        lock(&self.resources).values().all(is_followed)
    }

    /// Why the objects are not complete.
    pub(super) fn missing(&self) -> Vec<String> {
        let resources = lock(&self.resources);
        let missing = resources.iter().filter(|(_, resource)| !resource.is_complete);
        // What waits for the definitions waits for what keeps them.
        let definitions = resources.get(definitions::NAME).and_then(|resource| resource.problem.as_deref());
        let waits = |name: &str| match definitions {
            Some(problem) => format!("{name}: has not been read yet ({problem})"),
            None => format!("{name}: has not been read yet"),
        };
        let mut lines: Vec<String> =
            missing.map(|(name, resource)| resource.problem.clone().unwrap_or_else(|| waits(name))).collect();
        lines.dedup();
        lines
    }

    /// What a ready agent has to admit.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(since) = self.stale_since() else { return notes };
        let unreachable = self.unreachable.borrow().clone();
        let resources = lock(&self.resources);
        let problems = resources.values().filter_map(|r| r.problem.clone()).filter(|p| Some(p) != unreachable.as_ref());
        let mut reasons: Vec<String> = unreachable.iter().cloned().chain(problems).collect();
        reasons.dedup();
        let reason =
            if reasons.is_empty() { "not all of it has been read again yet".to_owned() } else { reasons.join("; ") };
        notes.push(format!("configuration from {}: {reason}", time(since)));
        notes
    }

    /// Until when the configuration is known to be as it was, if it may have changed since.
    fn stale_since(&self) -> Option<SystemTime> {
        let snapshot = *lock(&self.snapshot);
        let resources = lock(&self.resources);
        let failing = resources.values().filter(|resource| resource.state == State::Failing);
        let since = failing.filter_map(|resource| resource.good_until).min();
        [since, snapshot].into_iter().flatten().min()
    }

    /// Metrics: whether the configuration may be out of date, and for how long in seconds.
    pub(super) fn staleness(&self) -> (bool, u64) {
        let failing = lock(&self.resources).values().any(|resource| resource.state == State::Failing);
        let since = self.stale_since();
        let age = since.and_then(|since| since.elapsed().ok()).map_or(0, |age| age.as_secs());
        (failing || since.is_some(), age)
    }

    /// One sample for each resource.
    pub(super) fn samples(&self, value: impl Fn(&ResourceStatus) -> u64) -> Vec<Sample> {
        let resources = lock(&self.resources);
        let sample = |(name, resource): (&Arc<str>, &ResourceStatus)| Sample {
            labels: vec![("resource", name.to_string())],
            value: value(resource),
        };
        resources.iter().map(sample).collect()
    }

    pub(super) fn rejections(&self) -> u64 {
        self.rejections.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn good(&self, name: &str, state: State, version: Option<&'static str>) {
        self.answered();
        self.notices.right(name);
        self.change(name, |resource| {
            resource.state = state;
            resource.version = version;
            resource.problem = None;
            resource.good_until = None;
        });
    }

    /// The API server has answered.
    fn answered(&self) {
        if self.unreachable.borrow().is_some() && self.unreachable.send_replace(None).is_some() {
            tracing::info!("{SERVER} answers again");
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut ResourceStatus)) {
        if let Some(resource) = lock(&self.resources).get_mut(name) {
            change(resource);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `2026-11-21T09:30:00Z`.
fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_else(|_| "an unknown time".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn board() -> Board {
        Board::new(["pods", "services"].map(Arc::from), &[])
    }

    #[test]
    fn an_agent_that_has_not_read_everything_says_what_is_missing() {
        let board = board();
        board.listed("pods", "v1");
        board.complete("pods");
        board.failed("services", "list", &Failure::Forbidden("User \"u\" cannot".to_owned()));
        let missing = board.missing();
        assert!(missing.len() == 1 && missing[0].contains("rbac.create=true"), "{missing:?}");
        assert!(!board.is_whole() && board.staleness().0);
        board.watching("services", "v1");
        board.complete("services");
        assert!(board.missing().is_empty() && board.notes().is_empty() && board.is_whole());
        assert_eq!(board.staleness(), (false, 0));
    }

    #[test]
    fn an_agent_that_started_from_disk_says_so_until_it_has_read_everything() {
        let board = board();
        board.remembered("pods");
        board.remembered("services");
        board.started_from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        board.failed("pods", "list", &Failure::Unreachable("refused".to_owned()));
        board.failed("services", "list", &Failure::Unreachable("refused".to_owned()));
        assert!(board.missing().is_empty());
        let note = "configuration from 2001-09-09T01:46:40Z: the API server cannot be reached: refused";
        assert_eq!(board.notes(), [note]);
        let (is_stale, age) = board.staleness();
        assert!(is_stale && age > 100_000_000, "{age}");
        for name in ["pods", "services"] {
            assert!(!board.notes().is_empty());
            board.listed(name, "v1");
            board.complete(name);
        }
        assert!(board.notes().is_empty() && board.unreachable().borrow().is_none());
    }

    /// Custom resources wait for their definitions, and have no problem of their own.
    #[test]
    fn an_agent_that_waits_for_the_definitions_says_what_keeps_them() {
        let name = "serviceentries.networking.istio.io";
        let board = Board::new([name.into()], &[definitions::NAME]);
        let problem = Failure::Refused { code: 500, message: "no storage".to_owned(), retry_after: None };
        board.failed(definitions::NAME, "list", &problem);
        let missing = board.missing();
        assert!(missing.len() == 1 && missing[0].starts_with(name), "{missing:?}");
        assert!(missing[0].contains(definitions::NAME) && missing[0].contains("no storage"), "{missing:?}");
    }

    #[test]
    fn rejected_objects_are_kept_to_a_bound() {
        let board = board();
        for i in 0..1000 {
            board.reject(format!("Pod a/{i}"), "bad".to_owned());
        }
        assert_eq!((board.rejections(), board.status().rejected.len()), (1000, MAX_REJECTED));
        board.accept("Pod a/0");
        assert_eq!(board.status().rejected.len(), MAX_REJECTED - 1);
    }
}
