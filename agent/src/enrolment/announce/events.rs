//! Which Events are worth being written, and how each looks.

use std::collections::HashMap;
use std::time::Duration;

use culvert_api::k8s_openapi::api::core::v1::ObjectReference;
use culvert_api::k8s_openapi::api::events::v1::Event;
use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use culvert_api::k8s_openapi::jiff::Timestamp;
use culvert_core::workload::NamespacedName;
use tokio::time::Instant;

use super::Said;

/// Who reports.
const CONTROLLER: &str = "culvert.dev/node";
/// How long the same is not said again of a pod.
const REPEAT: Duration = Duration::from_secs(10 * 60);
/// How many Events may come at once from a node, and how long it takes until there may be one more.
const BURST: f64 = 50.0;
const REFILL: Duration = Duration::from_secs(1);
/// How many different things are said of one pod within [`REPEAT`].
const PER_POD: usize = 8;
/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;
/// The longest part of a pod's name that becomes part of an Event's.
const MAX_NAME: usize = 200;

/// Keeps a pod that fails again and again from filling the cluster with Events.
#[derive(Debug)]
pub(super) struct Filter {
    said: HashMap<String, Vec<(Instant, &'static str, String)>>,
    tokens: f64,
    refilled: Instant,
}

impl Filter {
    pub(super) fn new(now: Instant) -> Self {
        Self { said: HashMap::new(), tokens: BURST, refilled: now }
    }

    /// Whether this is news, and not too much of it.
    pub(super) fn admits(&mut self, uid: &str, said: &Said, now: Instant) -> bool {
        let (_, reason, note) = describe(said, "");
        let known = self.said.entry(uid.to_owned()).or_default();
        known.retain(|(at, _, _)| now.duration_since(*at) < REPEAT);
        // Enrolled again is news after a failure, not after the same.
        let is_known = match said {
            Said::Enrolled | Said::Left => known.last().is_some_and(|(_, last, _)| *last == reason),
            Said::Failed(_) | Said::Refused(_) => known.iter().any(|(_, r, n)| *r == reason && *n == note),
        };
        if is_known || known.len() >= PER_POD {
            return false;
        }
        let gained = now.duration_since(self.refilled).as_secs_f64() / REFILL.as_secs_f64();
        self.tokens = (self.tokens + gained).min(BURST);
        self.refilled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        known.push((now, reason, note));
        true
    }

    /// Forgets what was said of a pod that is gone, unless it was just said.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.said.retain(|_, known| known.iter().any(|(at, _, _)| now.duration_since(*at) < REPEAT));
    }
}

/// The Event that says it.
pub(super) fn event(uid: &str, pod: &NamespacedName, said: &Said, node: &str) -> Event {
    let now = Timestamp::now();
    let (kind, reason, note) = describe(said, node);
    let name: String = pod.name.chars().take(MAX_NAME).collect();
    Event {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.to_string()),
            name: Some(format!("{}.{:x}", name.trim_end_matches(['.', '-']), now.as_nanosecond())),
            ..Default::default()
        },
        action: Some("Enrol".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(uid.to_owned()),
            ..Default::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        type_: Some(kind.to_owned()),
        ..Default::default()
    }
}

/// Type, reason and note.
fn describe(said: &Said, node: &str) -> (&'static str, &'static str, String) {
    let cut = |text: &str| {
        let mut end = text.len().min(MAX_NOTE);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default().to_owned()
    };
    match said {
        Said::Enrolled => ("Normal", "Enrolled", cut(&format!("in the mesh, served by the agent of node {node}"))),
        Said::Failed(why) => ("Warning", "EnrolmentFailed", cut(why)),
        Said::Refused(why) => ("Warning", "EnrolmentRefused", cut(why)),
        Said::Left => ("Normal", "LeftMesh", "not in the mesh any more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_and_again_when_it_is_news() {
        let start = Instant::now();
        let mut filter = Filter::new(start);
        let failed = |why: &str| Said::Failed(why.to_owned());
        assert!(filter.admits("u", &failed("a"), start));
        assert!(!filter.admits("u", &failed("a"), start + Duration::from_secs(30)));
        assert!(filter.admits("u", &failed("b"), start));
        assert!(filter.admits("v", &failed("a"), start), "another pod");
        assert!(filter.admits("u", &Said::Enrolled, start));
        assert!(!filter.admits("u", &Said::Enrolled, start));
        assert!(filter.admits("u", &Said::Left, start));
        assert!(filter.admits("u", &Said::Enrolled, start), "taken in again");
        assert!(filter.admits("u", &failed("a"), start + REPEAT), "after a while");
    }

    #[test]
    fn neither_one_pod_nor_all_of_them_can_flood_the_cluster() {
        let start = Instant::now();
        let mut filter = Filter::new(start);
        let said = (0..100).filter(|n| filter.admits("u", &Said::Failed(n.to_string()), start)).count();
        assert_eq!(said, PER_POD);
        let said = (0..100).filter(|n| filter.admits(&format!("pod-{n}"), &Said::Enrolled, start)).count();
        assert_eq!(said, BURST as usize - PER_POD);
        let later = start + REFILL * 3;
        let said = (0..100).filter(|n| filter.admits(&format!("later-{n}"), &Said::Enrolled, later)).count();
        assert_eq!(said, 3);
        filter.forget_old(later + REPEAT);
        assert!(filter.said.is_empty());
    }

    #[test]
    fn an_event_fits_what_the_api_server_takes() {
        let long = "ü".repeat(2000);
        let pod = NamespacedName::new("shop", "x".repeat(253));
        let event = event("u", &pod, &Said::Refused(long), "n1");
        assert!(event.note.unwrap().len() <= MAX_NOTE);
        assert!(event.metadata.name.unwrap().len() <= 253);
        assert_eq!(event.regarding.unwrap().name.unwrap().len(), 253);
    }
}
