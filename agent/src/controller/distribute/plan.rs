//! Which ConfigMap is to be written now. No I/O, no clock of its own.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

/// The first wait after a failure, or after someone changed what was written; it doubles.
const MIN_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(5 * 60);
/// What was written and stayed for this long is not fought over.
const PEACE: Duration = Duration::from_secs(60);
/// After how many repairs in a row it is said that someone else writes.
const FIGHT: u32 = 5;
/// The longest sleep where nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// One of the two ConfigMaps of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Map {
    Roots,
    Revocations,
}

impl Map {
    /// Its name, as Istio's workloads mount it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Roots => "istio-ca-root-cert",
            Self::Revocations => "istio-ca-crl",
        }
    }

    /// The key in it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Roots => "root-cert.pem",
            Self::Revocations => "ca-crl.pem",
        }
    }

    /// What the metric calls it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Roots => "root",
            Self::Revocations => "crl",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Roots => 0,
            Self::Revocations => 1,
        }
    }
}

const MAPS: [Map; 2] = [Map::Roots, Map::Revocations];

/// What is to be done about one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Put(String),
    Delete,
}

/// What is there, and what should be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    wanted: Option<[Option<String>; 2]>,
    namespaces: BTreeMap<String, [State; 2]>,
    /// What a list in progress has not shown yet; none before the first is complete.
    unlisted_namespaces: Option<HashSet<String>>,
    unlisted_maps: [Option<HashSet<String>>; 2],
    listed: [bool; 3],
    /// ConfigMaps that were seen before their namespaces.
    early: BTreeMap<(String, Map), (String, bool)>,
}

/// One ConfigMap of one namespace.
#[derive(Debug, Default)]
struct State {
    /// A hash of its text, and whether it says that it is ours.
    found: Option<(u64, bool)>,
    written: Option<Instant>,
    repairs: u32,
    not_before: Option<Instant>,
}

impl Plan {
    /// Sets what every namespace should have.
    pub(super) fn want(&mut self, roots: String, revocations: Option<String>) {
        let wanted = [Some(roots), revocations];
        if self.wanted.as_ref() != Some(&wanted) {
            self.wanted = Some(wanted);
            for state in self.namespaces.values_mut().flatten() {
                // What differs now was changed by nobody else.
                (state.written, state.repairs, state.not_before) = (None, 0, None);
            }
        }
    }

    /// A list of all namespaces begins.
    pub(super) fn list_namespaces(&mut self) {
        self.unlisted_namespaces = Some(self.namespaces.keys().cloned().collect());
    }

    /// That list is complete.
    pub(super) fn listed_namespaces(&mut self) {
        for gone in self.unlisted_namespaces.take().unwrap_or_default() {
            self.namespaces.remove(&gone);
        }
        self.listed[2] = true;
        self.early.clear();
    }

    /// A namespace is there, or is not there any more.
    pub(super) fn namespace(&mut self, name: String, is_there: bool) {
        if let Some(unlisted) = &mut self.unlisted_namespaces {
            unlisted.remove(&name);
        }
        if !is_there {
            self.namespaces.remove(&name);
        } else if !self.namespaces.contains_key(&name) {
            let found = |map| {
                let early = self.early.remove(&(name.clone(), map));
                State { found: early.map(|(text, is_ours)| (hash(&text), is_ours)), ..State::default() }
            };
            let states = MAPS.map(found);
            self.namespaces.insert(name, states);
        }
    }

    /// A list of all ConfigMaps of this name begins.
    pub(super) fn list_maps(&mut self, map: Map) {
        self.unlisted_maps[map.index()] = Some(self.namespaces.keys().cloned().collect());
    }

    /// That list is complete.
    pub(super) fn listed_maps(&mut self, map: Map) {
        for namespace in self.unlisted_maps[map.index()].take().unwrap_or_default() {
            self.map(namespace, map, None);
        }
        self.listed[map.index()] = true;
    }

    /// A ConfigMap holds this text, and says whether it is ours; or is not there any more.
    pub(super) fn map(&mut self, namespace: String, map: Map, found: Option<(String, bool)>) {
        if let Some(unlisted) = &mut self.unlisted_maps[map.index()] {
            unlisted.remove(&namespace);
        }
        let Some(states) = self.namespaces.get_mut(&namespace) else {
            if let Some(found) = found.filter(|_| !self.listed[2]) {
                self.early.insert((namespace, map), found);
            }
            return;
        };
        states[map.index()].found = found.map(|(text, is_ours)| (hash(&text), is_ours));
    }

    /// What is to be written at `now`. Nothing before everything has been listed once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(String, Map, Act)> {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.listed.iter().all(|listed| *listed)) else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for (namespace, states) in &mut self.namespaces {
            for map in MAPS {
                let state = &mut states[map.index()];
                let Some(act) = act(wanted[map.index()].as_deref(), state.found) else { continue };
                if state.not_before.is_none() && state.written.is_some() {
                    // It was in order: someone has changed it.
                    state.fight(namespace, map, now);
                }
                if state.not_before.is_none_or(|at| at <= now) {
                    due.push((namespace.clone(), map, act));
                }
            }
        }
        due
    }

    /// It was written.
    pub(super) fn written(&mut self, namespace: &str, map: Map, act: &Act, now: Instant) {
        if let Some(states) = self.namespaces.get_mut(namespace) {
            let state = &mut states[map.index()];
            state.found = match act {
                Act::Put(text) => Some((hash(text), true)),
                Act::Delete => None,
            };
            state.written = Some(now);
            state.not_before = None;
        }
    }

    /// It could not be written; it is tried again later.
    pub(super) fn failed(&mut self, namespace: &str, map: Map, now: Instant) {
        if let Some(states) = self.namespaces.get_mut(namespace) {
            let state = &mut states[map.index()];
            state.repairs = state.repairs.saturating_add(1);
            state.not_before = Some(now + wait(state.repairs));
        }
    }

    /// The roots that every namespace has; none while one lacks them.
    pub(super) fn complete(&self) -> Option<&str> {
        let roots = self.wanted.as_ref()?[0].as_deref()?;
        let everywhere =
            self.namespaces.values().all(|states| act(Some(roots), states[Map::Roots.index()].found).is_none());
        (everywhere && self.listed.iter().all(|listed| *listed)).then_some(roots)
    }

    /// When something put off is due.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let put_off = self.namespaces.values().flatten().filter_map(|state| state.not_before);
        put_off.min().unwrap_or(now + LONG)
    }
}

impl State {
    /// Someone changed it soon after it was written: it is repaired, but ever more slowly.
    fn fight(&mut self, namespace: &str, map: Map, now: Instant) {
        let in_peace = self.written.is_none_or(|written| now.saturating_duration_since(written) >= PEACE);
        self.repairs = if in_peace { 0 } else { self.repairs.saturating_add(1) };
        if self.repairs == FIGHT {
            tracing::warn!(
                "ConfigMap {namespace}/{}: someone else keeps changing it: is an istiod still running? It is repaired \
                 more slowly from now on",
                map.name()
            );
        }
        self.not_before = (self.repairs > 0).then(|| now + wait(self.repairs));
    }
}

/// What makes `found` what is `wanted`.
fn act(wanted: Option<&str>, found: Option<(u64, bool)>) -> Option<Act> {
    match (wanted, found) {
        (Some(wanted), Some((found, true))) if hash(wanted) == found => None,
        (Some(wanted), _) => Some(Act::Put(wanted.to_owned())),
        // What others have put there is theirs to delete.
        (None, Some((_, true))) => Some(Act::Delete),
        (None, _) => None,
    }
}

fn wait(attempts: u32) -> Duration {
    (MIN_WAIT * 2_u32.saturating_pow(attempts.min(16).saturating_sub(1))).min(MAX_WAIT)
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(text: &str) -> Act {
        Act::Put(text.to_owned())
    }

    /// A plan that knows all about the namespaces `names`, none of which has anything yet.
    fn plan(names: &[&str]) -> Plan {
        let mut plan = Plan::default();
        plan.want("roots".to_owned(), None);
        plan.list_namespaces();
        names.iter().for_each(|name| plan.namespace((*name).to_owned(), true));
        plan.listed_namespaces();
        for map in MAPS {
            plan.list_maps(map);
            plan.listed_maps(map);
        }
        plan
    }

    fn write_all(plan: &mut Plan, now: Instant) {
        for (namespace, map, act) in plan.due(now) {
            plan.written(&namespace, map, &act, now);
        }
    }

    fn edit(plan: &mut Plan, text: &str) {
        plan.map("a".to_owned(), Map::Roots, Some((text.to_owned(), true)));
    }

    #[test]
    fn every_namespace_is_given_the_roots_once() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b"]);
        let due = plan.due(now);
        assert_eq!(due, [("a".to_owned(), Map::Roots, put("roots")), ("b".to_owned(), Map::Roots, put("roots"))]);
        assert_eq!(plan.complete(), None);
        write_all(&mut plan, now);
        assert_eq!(plan.due(now), []);
        assert_eq!(plan.complete(), Some("roots"));
    }

    #[test]
    fn nothing_is_written_before_everything_is_known() {
        let mut plan = Plan::default();
        plan.want("roots".to_owned(), None);
        plan.namespace("a".to_owned(), true);
        assert_eq!(plan.due(Instant::now()), []);
        assert_eq!(plan.complete(), None);
    }

    #[test]
    fn what_was_there_before_is_left_as_it_is_whichever_is_seen_first() {
        let mut plan = Plan::default();
        plan.want("roots".to_owned(), None);
        plan.list_maps(Map::Roots);
        plan.map("a".to_owned(), Map::Roots, Some(("roots".to_owned(), true)));
        plan.listed_maps(Map::Roots);
        plan.list_namespaces();
        plan.namespace("a".to_owned(), true);
        plan.listed_namespaces();
        plan.list_maps(Map::Revocations);
        plan.listed_maps(Map::Revocations);
        assert_eq!(plan.due(Instant::now()), []);
    }

    #[test]
    fn a_changed_or_deleted_map_is_repaired_at_once_and_one_that_is_fought_over_ever_more_slowly() {
        let start = Instant::now();
        let mut plan = plan(&["a"]);
        write_all(&mut plan, start);
        let later = start + PEACE;
        edit(&mut plan, "edited");
        assert_eq!(plan.due(later).len(), 1, "at once");
        write_all(&mut plan, later);
        plan.map("a".to_owned(), Map::Roots, None);
        assert_eq!(plan.due(later), [], "the second time within a minute it waits");
        assert_eq!(plan.due(later + MIN_WAIT).len(), 1);

        let mut now = later + MIN_WAIT;
        let mut writes = 0;
        while now < later + Duration::from_secs(3600) {
            if !plan.due(now).is_empty() {
                writes += 1;
                write_all(&mut plan, now);
                edit(&mut plan, "edited");
            }
            now += Duration::from_secs(1);
        }
        assert!((10..70).contains(&writes), "{writes} writes in an hour of fighting");
    }

    #[test]
    fn a_failure_is_tried_again_later_and_does_not_hold_up_others() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b"]);
        plan.failed("a", Map::Roots, now);
        assert_eq!(plan.due(now), [("b".to_owned(), Map::Roots, put("roots"))]);
        assert_eq!(plan.next_look(now), now + MIN_WAIT);
        assert_eq!(plan.due(now + MIN_WAIT).len(), 2);
    }

    #[test]
    fn new_roots_go_everywhere_at_once() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b"]);
        write_all(&mut plan, now);
        plan.want("old and new".to_owned(), None);
        assert_eq!(plan.complete(), None);
        assert_eq!(plan.due(now).len(), 2);
    }

    #[test]
    fn a_namespace_that_goes_needs_nothing_and_one_that_lists_show_gone_neither() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b", "c"]);
        plan.namespace("a".to_owned(), false);
        plan.list_namespaces();
        plan.namespace("c".to_owned(), true);
        plan.listed_namespaces();
        assert_eq!(plan.due(now), [("c".to_owned(), Map::Roots, put("roots"))]);
    }

    #[test]
    fn revocations_come_and_go_but_those_of_others_stay() {
        let now = Instant::now();
        let mut plan = plan(&["a", "b"]);
        plan.map("b".to_owned(), Map::Revocations, Some(("someone's".to_owned(), false)));
        write_all(&mut plan, now);
        assert_eq!(plan.due(now), [], "nothing to do with what others have put there");
        plan.want("roots".to_owned(), Some("lists".to_owned()));
        assert_eq!(plan.due(now).len(), 2);
        write_all(&mut plan, now);
        plan.want("roots".to_owned(), None);
        assert_eq!(plan.due(now).len(), 2, "what was written here is taken back");
        assert!(plan.due(now).iter().all(|(_, map, act)| (*map, act) == (Map::Revocations, &Act::Delete)));
    }
}
