//! What the resources say, made into changes of objects.

use std::collections::VecDeque;
use std::sync::Arc;

use culvert_api::{Kind, Object, ObjectError, ObjectRef, UnknownField, trim};
use culvert_core::mesh::Change;
use culvert_core::translate::Finding;
use serde_json::Value;

use super::ahead::Found;
use super::entries::{Entries, Entry, digest};
use super::journal::{Contents, Journal, Place};
use super::resource::Resource;
use super::sink::Piece;
use super::split::Cut;
use super::status::Board;

/// Kinds of which every field is kept, and so those that nothing reads can be told; AuthorizationPolicy, whose unknown
/// fields have a meaning, tells of them where it is translated.
const IS_WHOLE: [Kind; 3] = [Kind::PeerAuthentication, Kind::ServiceEntry, Kind::WorkloadEntry];
/// How many such fields of an object are told.
const MAX_UNKNOWN: usize = 16;

/// Knows which objects there are, and tells what has changed.
pub(super) struct Assembler {
    resources: Vec<Known>,
    board: Arc<Board>,
    journal: Option<Journal>,
}

struct Known {
    kind: Kind,
    api_version: String,
    name: Arc<str>,
    entries: Entries,
    /// The UIDs of those that the watch took away last, of kinds that are asked for.
    deleted: VecDeque<Box<str>>,
    /// Whether all of them are known: from this agent, or from an earlier one.
    is_listed: bool,
    is_complete: bool,
}

/// How many of a resource's objects that were taken away are told from new ones: more than go while an answer is on its
/// way.
const MAX_DELETED: usize = 1024;

/// An object that cannot be read.
struct Unreadable {
    key: Option<String>,
    field: String,
    message: String,
}

impl Assembler {
    /// Of `resources`, in this order, with what an earlier agent knew.
    pub(super) fn new(
        resources: &[Resource],
        board: Arc<Board>,
        journal: Option<Journal>,
        mut remembered: Option<Contents>,
    ) -> Self {
        let known = |resource: &Resource| {
            let name = resource.name();
            let contents = remembered.as_mut();
            let is_complete = contents.as_ref().is_some_and(|contents| contents.complete.contains(&name));
            let objects = contents.and_then(|contents| contents.objects.remove(&name)).unwrap_or_default();
            if is_complete {
                board.remembered(&name);
            }
            board.set_objects(&name, objects.len());
            Known {
                kind: resource.kind,
                api_version: resource.api_version(),
                name: name.into(),
                entries: Entries::remembered(objects),
                deleted: VecDeque::new(),
                is_listed: false,
                is_complete,
            }
        };
        let resources = resources.iter().map(known).collect();
        Self { resources, board, journal }
    }

    /// Whether this agent has listed everything.
    pub(super) fn is_listed(&self) -> bool {
        self.resources.iter().all(|resource| resource.is_listed)
    }

    /// Whether everything is known, from this agent or from an earlier one.
    pub(super) fn is_complete(&self) -> bool {
        self.resources.iter().all(|resource| resource.is_complete)
    }

    /// Where the objects of an earlier agent are, in the order of the file.
    pub(super) fn remembered(&mut self) -> Vec<(usize, Box<str>, Place)> {
        let all = self.resources.iter_mut().enumerate().flat_map(|(at, resource)| {
            resource.entries.iter_mut().map(move |(key, entry)| (at, key.into(), entry.place))
        });
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(.., place)| *place);
        all
    }

    /// Reads objects of an earlier agent. One that cannot be read any more is forgotten: it will be listed.
    pub(super) fn recall(&mut self, objects: &[(usize, Box<str>, Place)], changes: &mut Vec<Change>) {
        let Some(journal) = &self.journal else { return };
        for (at, key, place) in objects {
            let json = journal.read(*place).ok();
            let value = json.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
            match value.and_then(|value| Object::from_value(value).ok()) {
                Some((object, _)) => changes.push(Change::Upsert(object)),
                None => {
                    self.resources[*at].entries.remove(key);
                    // Then this resource has to be listed.
                    self.resources[*at].is_complete = false;
                }
            }
        }
    }

    /// Takes in what resource `at` says.
    pub(super) fn take(&mut self, at: usize, piece: Piece, changes: &mut Vec<Change>) {
        let Some(resource) = self.resources.get_mut(at) else { return };
        let mut context = Context { resource, board: &self.board, journal: self.journal.as_mut(), changes };
        match piece {
            Piece::Begin => context.resource.entries.begin(),
            Piece::Objects(objects) => objects.iter().for_each(|object| context.listed(object)),
            Piece::Events(events) => events.iter().for_each(|event| context.event(event)),
            Piece::End => context.end(),
        }
        self.board.set_objects(&resource.name, resource.entries.len());
    }

    /// Takes in an object that the watch has not brought yet. What it has brought, or taken away, it knows better: the
    /// answer that holds the object may be older.
    pub(super) fn take_ahead(&mut self, found: &Found, changes: &mut Vec<Change>) {
        let Some(resource) = self.resources.iter_mut().find(|resource| resource.kind == found.kind) else { return };
        let Ok(value) = trim::trim(found.kind, &found.json) else { return };
        let is_known = key(&value, found.kind).is_none_or(|key| resource.entries.has(&key));
        let is_gone = uid(&value).is_some_and(|uid| resource.deleted.iter().any(|deleted| **deleted == *uid));
        if is_known || is_gone {
            return;
        }
        let mut context = Context { resource, board: &self.board, journal: self.journal.as_mut(), changes };
        if let Err(unreadable) = context.upsert(value) {
            context.reject(&unreadable);
        }
        self.board.set_objects(&resource.name, resource.entries.len());
    }

    /// Whether there is something to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_dirty)
    }

    /// Writes what has changed to disk.
    pub(super) fn save(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        journal.flush();
        let objects = self.resources.iter_mut().flat_map(|resource| resource.entries.iter_mut());
        let live: u64 = objects.map(|(key, entry)| entry.place.size() + key.len() as u64).sum();
        if !journal.is_bloated(live) {
            return;
        }
        let complete: Vec<String> =
            self.resources.iter().filter(|r| r.is_complete).map(|resource| resource.name.to_string()).collect();
        let objects = self.resources.iter_mut().flat_map(|resource| {
            let name = resource.name.clone();
            resource.entries.iter_mut().map(move |(key, Entry { place, .. })| (name.to_string(), key, place))
        });
        journal.rewrite(complete.into_iter(), objects);
    }

    /// Notes on disk that everything is as it was.
    pub(super) fn confirm(&self) {
        if let Some(journal) = &self.journal
            && self.board.is_whole()
        {
            journal.touch();
        }
    }
}

/// What is needed to take in an object.
struct Context<'a> {
    resource: &'a mut Known,
    board: &'a Board,
    journal: Option<&'a mut Journal>,
    changes: &'a mut Vec<Change>,
}

impl Context<'_> {
    fn listed(&mut self, object: &Cut) {
        let result = match object {
            Cut::Object(json) => match trim::trim(self.resource.kind, json) {
                Ok(value) => self.upsert(value),
                Err(error) => Err(not_json(&error)),
            },
            Cut::TooLarge => Err(too_large()),
        };
        if let Err(unreadable) = result {
            self.reject(&unreadable);
        }
    }

    fn event(&mut self, event: &Cut) {
        let result = match event {
            Cut::Object(json) => match trim::trim_event(self.resource.kind, json) {
                Ok((kind, value)) if kind == "DELETED" => {
                    self.delete(&value);
                    Ok(())
                }
                Ok((_, value)) => self.upsert(value),
                Err(error) => Err(not_json(&error)),
            },
            Cut::TooLarge => Err(too_large()),
        };
        if let Err(unreadable) = result {
            self.reject(&unreadable);
        }
    }

    fn end(&mut self) {
        let gone = self.resource.entries.end();
        for key in gone.objects {
            self.remove(&key);
        }
        for key in gone.rejected {
            self.accept(&key);
        }
        if !self.resource.is_listed {
            self.resource.is_listed = true;
            self.resource.is_complete = true;
            self.board.complete(&self.resource.name);
            if let Some(journal) = &mut self.journal {
                journal.complete(&self.resource.name);
            }
        }
    }

    fn upsert(&mut self, mut value: Value) -> Result<(), Unreadable> {
        let key = key(&value, self.resource.kind);
        let Value::Object(fields) = &mut value else {
            return Err(Unreadable { key, field: String::new(), message: "not an object".to_owned() });
        };
        // The same whatever version it was served in, and for those items of a list that do not say what they are.
        fields.insert("apiVersion".to_owned(), self.resource.api_version.clone().into());
        fields.insert("kind".to_owned(), self.resource.kind.as_str().into());
        let json = serde_json::to_vec(&value).map_err(|error| not_json(&error))?;
        let digest = digest(&json);
        if let Some(key) = &key
            && self.resource.entries.is_as_it_was(key, digest)
        {
            return Ok(());
        }
        let (object, unknown) = Object::from_value(value).map_err(|error| unreadable(key, &error))?;
        let reference = object.reference();
        let key = key_of(&reference);
        for field in &unknown {
            tracing::debug!("{reference}: {}: nothing reads this field", field.path);
        }
        let place = self.journal.as_mut().map(|journal| journal.put(&self.resource.name, &key, &json));
        if self.resource.entries.put(&key, digest, place.unwrap_or_default()) {
            self.accept(&key);
        }
        self.changes.push(Change::Upsert(object));
        // What nothing reads of a policy is said where the policy is read.
        if IS_WHOLE.contains(&reference.kind) {
            let warning = |field: &UnknownField| {
                Finding::warning(reference.clone(), field.path.clone(), "nothing reads this field: it has no effect")
            };
            let list = unknown.iter().take(MAX_UNKNOWN).map(warning).collect();
            self.changes.push(Change::Report(reference.clone(), list));
        }
        Ok(())
    }

    fn delete(&mut self, value: &Value) {
        let Some(key) = key(value, self.resource.kind) else { return };
        if matches!(self.resource.kind, Kind::Pod | Kind::Namespace)
            && let Some(uid) = uid(value)
        {
            let deleted = &mut self.resource.deleted;
            deleted.truncate(MAX_DELETED - 1);
            deleted.push_front(uid.into());
        }
        let (was_there, was_rejected) = self.resource.entries.remove(&key);
        if was_rejected {
            self.accept(&key);
        }
        if was_there {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(journal) = &mut self.journal {
            journal.remove(&self.resource.name, key);
        }
        self.changes.push(Change::Remove(self.reference(key)));
    }

    fn reject(&mut self, unreadable: &Unreadable) {
        let Unreadable { key, field, message } = unreadable;
        let stays = key.as_ref().is_some_and(|key| self.resource.entries.reject(key));
        let becomes = if stays { "it stays as it was" } else { "it is left out" };
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let object = match key {
            Some(key) => self.describe(key),
            None => format!("{} (one without a usable name)", self.resource.name),
        };
        if let Some(key) = key
            && self.resource.entries.is_rejected(key)
        {
            let reference = self.reference(key);
            let message = format!("{message}: {becomes} until that is corrected");
            let finding = Finding::error(reference.clone(), unreadable.field.clone(), message);
            self.changes.push(Change::Report(reference, vec![finding]));
        }
        self.board.reject(object, format!("{field}{message}: {becomes} until that is corrected"));
    }

    /// An object can be read again, or is gone.
    fn accept(&mut self, key: &str) {
        self.board.accept(&self.describe(key));
        self.changes.push(Change::Report(self.reference(key), Vec::new()));
    }

    fn reference(&self, key: &str) -> ObjectRef {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        ObjectRef::new(self.resource.kind, namespace, name)
    }

    fn describe(&self, key: &str) -> String {
        format!("{} {key}", self.resource.kind)
    }
}

/// `namespace/name`, or `name`; `None` where it has no usable name.
fn key(value: &Value, kind: Kind) -> Option<String> {
    let metadata = value.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).filter(|text| text.len() <= 253);
    let name = text("name")?;
    Some(if kind.is_namespaced() { format!("{}/{name}", text("namespace")?) } else { name.to_owned() })
}

fn uid(value: &Value) -> Option<&str> {
    value.get("metadata")?.get("uid")?.as_str().filter(|uid| uid.len() <= 64)
}

fn key_of(object: &ObjectRef) -> String {
    if object.kind.is_namespaced() { format!("{}/{}", object.namespace, object.name) } else { object.name.to_string() }
}

fn unreadable(key: Option<String>, error: &ObjectError) -> Unreadable {
    let field = match error {
        ObjectError::Field { path, .. } => path.clone(),
        _ => String::new(),
    };
    let message = match error {
        ObjectError::Field { message, .. } => message.clone(),
        other => other.to_string(),
    };
    Unreadable { key, field, message }
}

fn not_json(error: &serde_json::Error) -> Unreadable {
    Unreadable { key: None, field: String::new(), message: format!("cannot be parsed: {error}") }
}

fn too_large() -> Unreadable {
    Unreadable { key: None, field: String::new(), message: "larger than any object may be".to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PODS: &str = "pods";

    struct Fixture {
        assembler: Assembler,
        pods: usize,
        policies: usize,
        board: Arc<Board>,
    }

    fn fixture(journal: Option<Journal>, contents: Option<Contents>) -> Fixture {
        let resources = Resource::all();
        let at = |name: &str| resources.iter().position(|resource| resource.name() == name).unwrap();
        let board = Arc::new(Board::new(resources.iter().map(|resource| resource.name().into()), &[]));
        Fixture {
            pods: at(PODS),
            policies: at("authorizationpolicies.security.istio.io"),
            assembler: Assembler::new(&resources, board.clone(), journal, contents),
            board,
        }
    }

    fn pod(name: &str, ip: &str, version: u32) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()},
            "status": {"podIP": ip},
        })
    }

    fn cuts(values: &[Value]) -> Vec<Cut> {
        values.iter().map(|value| Cut::Object(value.to_string().into_bytes())).collect()
    }

    impl Fixture {
        /// Each change: `+name` or `-name`.
        fn take(&mut self, at: usize, pieces: impl IntoIterator<Item = Piece>) -> Vec<String> {
            let mut changes = Vec::new();
            pieces.into_iter().for_each(|piece| self.assembler.take(at, piece, &mut changes));
            let mut changes: Vec<String> = changes.iter().map(show).collect();
            changes.sort();
            changes
        }

        fn list(&mut self, values: &[Value]) -> Vec<String> {
            self.take(self.pods, [Piece::Begin, Piece::Objects(cuts(values)), Piece::End])
        }

        fn ahead(&mut self, object: Value) -> Vec<String> {
            let mut changes = Vec::new();
            let found = Found { kind: Kind::Pod, json: object.to_string().into_bytes() };
            self.assembler.take_ahead(&found, &mut changes);
            changes.iter().map(show).collect()
        }

        fn event(&mut self, kind: &str, object: Value) -> Vec<String> {
            self.take(self.pods, [Piece::Events(cuts(&[json!({"type": kind, "object": object})]))])
        }
    }

    fn show(change: &Change) -> String {
        match change {
            Change::Upsert(object) => format!("+{}", object.reference()),
            Change::Remove(object) => format!("-{object}"),
            Change::Report(object, list) => format!("?{object} {}", list.len()),
        }
    }

    #[test]
    fn a_second_list_yields_what_has_changed_and_what_is_gone() {
        let mut fixture = fixture(None, None);
        let first = [pod("a", "10.0.0.1", 1), pod("b", "10.0.0.2", 2), pod("c", "10.0.0.3", 3)];
        assert_eq!(fixture.list(&first), ["+Pod shop/a", "+Pod shop/b", "+Pod shop/c"]);
        // Another resource version alone is no change.
        let second = [pod("a", "10.0.0.1", 9), pod("c", "10.0.0.4", 10), pod("d", "10.0.0.5", 11)];
        assert_eq!(fixture.list(&second), ["+Pod shop/c", "+Pod shop/d", "-Pod shop/b"]);
        assert_eq!(fixture.board.objects(PODS), 3);
    }

    #[test]
    fn a_list_that_breaks_off_takes_nothing_away() {
        let mut fixture = fixture(None, None);
        fixture.list(&[pod("a", "10.0.0.1", 1), pod("b", "10.0.0.2", 2)]);
        let broken = [Piece::Begin, Piece::Objects(cuts(&[pod("b", "10.0.0.2", 2)]))];
        assert!(fixture.take(fixture.pods, broken).is_empty());
        assert_eq!(fixture.list(&[pod("a", "10.0.0.1", 1)]), ["-Pod shop/b"]);
    }

    #[test]
    fn an_object_that_comes_ahead_of_the_watch_goes_with_it_and_undoes_nothing_that_it_said() {
        let mut fixture = fixture(None, None);
        fixture.list(&[pod("a", "10.0.0.1", 1)]);
        // The watch knows better, even if what was found is newer.
        assert!(fixture.ahead(pod("a", "10.0.0.9", 7)).is_empty());
        assert_eq!(fixture.ahead(pod("b", "10.0.0.2", 2)), ["+Pod shop/b"]);
        assert_eq!(fixture.ahead(pod("c", "10.0.0.3", 3)), ["+Pod shop/c"]);
        assert_eq!(fixture.board.objects(PODS), 3);
        // Gone before they were ever listed: by an event, and by a list.
        assert_eq!(fixture.event("DELETED", pod("b", "10.0.0.2", 4)), ["-Pod shop/b"]);
        assert_eq!(fixture.list(&[pod("a", "10.0.0.1", 5)]), ["-Pod shop/c"]);
        // An answer that was on its way while the watch took the pod away; a new pod of its name is another.
        assert!(fixture.ahead(pod("b", "10.0.0.2", 2)).is_empty());
        let mut again = pod("b", "10.0.0.4", 8);
        again["metadata"]["uid"] = "b-again".into();
        assert_eq!(fixture.ahead(again), ["+Pod shop/b"]);
    }

    #[test]
    fn events_are_followed() {
        let mut fixture = fixture(None, None);
        fixture.list(&[pod("a", "10.0.0.1", 1)]);
        assert_eq!(fixture.event("ADDED", pod("b", "10.0.0.2", 2)), ["+Pod shop/b"]);
        assert_eq!(fixture.event("MODIFIED", pod("b", "10.0.0.3", 3)), ["+Pod shop/b"]);
        assert!(fixture.event("MODIFIED", pod("b", "10.0.0.3", 4)).is_empty());
        assert_eq!(fixture.event("DELETED", pod("b", "10.0.0.3", 5)), ["-Pod shop/b"]);
        assert!(fixture.event("DELETED", pod("b", "10.0.0.3", 6)).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_stays_as_it_was_and_keeps_no_other_from_being_read() {
        let mut fixture = fixture(None, None);
        let mut broken = pod("a", "10.0.0.1", 2);
        broken["spec"] = json!({"containers": "none"});
        fixture.list(&[pod("a", "10.0.0.1", 1)]);
        let nameless = json!({"metadata": {"namespace": "shop"}});
        let deep = Cut::Object(format!("{{\"metadata\":{}1{}}}", "{\"labels\":".repeat(200), "}".repeat(200)).into());
        let mut listed = cuts(&[broken, nameless, json!(7), pod("b", "10.0.0.2", 3)]);
        listed.extend([deep, Cut::TooLarge]);
        let changes = fixture.take(fixture.pods, [Piece::Begin, Piece::Objects(listed), Piece::End]);
        assert_eq!(changes, ["+Pod shop/b", "?Pod shop/a 1"]);
        let rejected = fixture.board.status().rejected;
        let line = &rejected["Pod shop/a"];
        assert!(line.starts_with("spec.containers: ") && line.contains("it stays as it was"), "{line}");
        assert_eq!(fixture.board.rejections(), 5);
        // Put right, and as it was before.
        assert_eq!(fixture.event("MODIFIED", pod("a", "10.0.0.1", 4)), ["+Pod shop/a", "?Pod shop/a 0"]);
        assert!(!fixture.board.status().rejected.contains_key("Pod shop/a"));
    }

    #[test]
    fn an_object_that_never_could_be_read_is_forgotten_with_the_object() {
        let mut fixture = fixture(None, None);
        let policy = |action: Value| json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"action": action}});
        let listed = Piece::Objects(cuts(&[policy(json!({"no": 1}))]));
        let changes = fixture.take(fixture.policies, [Piece::Begin, listed, Piece::End]);
        assert_eq!(changes, ["?AuthorizationPolicy a/p 1"]);
        let rejected = fixture.board.status().rejected;
        let line = &rejected["AuthorizationPolicy a/p"];
        assert!(line.starts_with("spec.action: ") && line.contains("it is left out"), "{line}");
        let changes = fixture.take(fixture.policies, [Piece::Begin, Piece::End]);
        assert_eq!(changes, ["?AuthorizationPolicy a/p 0"]);
        assert!(fixture.board.status().rejected.is_empty());
    }

    #[test]
    fn an_agent_starts_from_what_an_earlier_one_wrote_and_removes_what_went_meanwhile() {
        let directory = std::env::temp_dir().join(format!("culvert-assemble-{}", std::process::id()));
        let file = directory.join("objects");
        let (journal, _) = Journal::open(&file, 1).unwrap();
        let mut first = fixture(Some(journal), None);
        first.list(&[pod("a", "10.0.0.1", 1), pod("b", "10.0.0.2", 2)]);
        first.event("MODIFIED", pod("b", "10.0.0.9", 3));
        for at in 0..Resource::all().len() {
            if at != first.pods {
                first.take(at, [Piece::Begin, Piece::End]);
            }
        }
        first.assembler.save();
        drop(first);

        let (journal, contents) = Journal::open(&file, 1).unwrap();
        let mut second = fixture(Some(journal), Some(contents.unwrap()));
        assert!(second.assembler.is_complete() && !second.assembler.is_listed());
        let remembered = second.assembler.remembered();
        let mut changes = Vec::new();
        second.assembler.recall(&remembered, &mut changes);
        assert_eq!(changes.iter().map(show).collect::<Vec<_>>(), ["+Pod shop/a", "+Pod shop/b"]);
        let ips: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Upsert(Object::Pod(pod)) => pod.status.clone().unwrap().pod_ip.unwrap(),
                _ => panic!(),
            })
            .collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.9"]);
        assert_eq!(second.list(&[pod("b", "10.0.0.9", 7), pod("c", "10.0.0.3", 8)]), ["+Pod shop/c", "-Pod shop/a"]);
        let _ = std::fs::remove_dir_all(directory);
    }

    #[test]
    fn what_is_read_of_an_object_that_is_trimmed_is_what_is_read_of_all_of_it() {
        use culvert_core::mesh::Mesh;
        let yaml = include_str!("testdata/objects.yaml");
        let whole = culvert_api::yaml::parse(yaml.as_bytes());
        assert!(whole.mistakes.is_empty(), "{:?}", whole.mistakes);
        let mut of_whole = Mesh::new();
        of_whole.apply(whole.objects.iter().map(|(object, _)| Change::Upsert(object.clone())));
        let mut kinds: Vec<Kind> = whole.objects.iter().map(|(object, _)| object.kind()).collect();
        kinds.sort();
        kinds.dedup();
        let read = Kind::ALL.iter().filter(|kind| !kind.is_of_waypoints()).count();
        assert_eq!(kinds.len(), read, "an example of each kind");

        let mut fixture = fixture(None, None);
        let mut changes = Vec::new();
        let resources = Resource::all();
        for value in documents(yaml) {
            let kind = Kind::of(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()).unwrap();
            let at = resources.iter().position(|resource| resource.kind == kind).unwrap();
            fixture.assembler.take(at, Piece::Objects(cuts(&[value])), &mut changes);
        }
        let mut of_trimmed = Mesh::new();
        of_trimmed.apply(changes);
        let dump = |mesh: &Mesh| {
            let snapshot = mesh.snapshot();
            let mut lines = vec![serde_json::to_string(&**snapshot.options()).unwrap()];
            lines.extend(snapshot.workloads().map(|item| serde_json::to_string(item).unwrap()));
            lines.extend(snapshot.services().map(|item| serde_json::to_string(item).unwrap()));
            lines.extend(snapshot.authorization_policies().map(|item| serde_json::to_string(item).unwrap()));
            lines.extend(snapshot.waypoints().map(|item| serde_json::to_string(item).unwrap()));
            lines.extend(snapshot.enrolled_pods_on("n1").map(|item| serde_json::to_string(item).unwrap()));
            lines.extend(snapshot.findings().map(|(_, finding)| finding.to_string()));
            lines.sort();
            assert!(lines.len() >= 12, "{lines:#?}");
            lines
        };
        assert_eq!(dump(&of_whole), dump(&of_trimmed));
    }

    fn documents(yaml: &str) -> Vec<Value> {
        yaml.split("\n---\n").map(|document| culvert_api::yaml::value(document).unwrap()).collect()
    }
}
