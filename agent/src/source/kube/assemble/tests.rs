use serde_json::json;

use super::*;
use crate::files::testing::TempDir;
use crate::source::Reader;
use crate::source::kube::split::Cut;

const PODS: &str = "pods";

struct Fixture {
    assembler: Assembler,
    pods: usize,
    policies: usize,
    board: Arc<Board>,
}

fn fixture(journal: Option<Journal>, contents: Option<Contents>) -> Fixture {
    let resources = Resource::read_by(Reader::Node);
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
    let mut listed = cuts(&[broken, nameless, json!(7), pod("b", "10.0.0.2", 3)]);
    listed.extend([Cut::Object(too_deep("{}").into()), Cut::TooLarge(Vec::new())]);
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

fn too_deep(metadata: &str) -> String {
    format!(r#"{{"metadata":{metadata},"spec":{{"nodeName":{}1{}}}}}"#, "[".repeat(200), "]".repeat(200))
}

/// JSON that no parser takes is told by its name: it stays as it was, and goes when it is gone.
#[test]
fn an_object_whose_json_cannot_be_parsed_is_not_taken_for_gone() {
    const METADATA: &str = r#"{"name":"a","namespace":"shop","uid":"a"}"#;
    let too_large = || format!(r#"{{"metadata":{METADATA},"spec":"xxx"#);
    type Make = fn(Vec<u8>) -> Cut;
    for (make, json) in [(Cut::Object as Make, too_deep(METADATA)), (Cut::TooLarge, too_large())] {
        let mut fixture = fixture(None, None);
        let event = |kind: &str| Piece::Events(vec![make(format!(r#"{{"type":"{kind}","object":{json}}}"#).into())]);
        fixture.list(&[pod("a", "10.0.0.1", 1), pod("b", "10.0.0.2", 1)]);
        let pods = fixture.pods;
        assert_eq!(fixture.take(pods, [event("MODIFIED")]), ["?Pod shop/a 1"]);
        let listed = Piece::Objects(vec![make(json.clone().into())]);
        assert_eq!(fixture.take(pods, [Piece::Begin, listed, Piece::End]), ["-Pod shop/b", "?Pod shop/a 1"]);
        let line = fixture.board.status().rejected["Pod shop/a"].clone();
        assert!(line.contains("it stays as it was"), "{line}");
        assert_eq!(fixture.take(pods, [event("DELETED")]), ["-Pod shop/a", "?Pod shop/a 0"]);
        assert!(fixture.board.status().rejected.is_empty());
    }
}

/// What cannot even be told by its name may be anything: a list that holds it takes nothing away.
#[test]
fn a_list_with_an_object_without_a_name_takes_nothing_away() {
    let mut fixture = fixture(None, None);
    fixture.list(&[pod("a", "10.0.0.1", 1)]);
    assert!(fixture.list(&[json!({"metadata": {}})]).is_empty());
    assert_eq!(fixture.list(&[]), ["-Pod shop/a"]);
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
    let directory = TempDir::new();
    let file = directory.join("objects");
    let (journal, _) = Journal::open(&file, 1).unwrap();
    let mut first = fixture(Some(journal), None);
    first.list(&[pod("a", "10.0.0.1", 1), pod("b", "10.0.0.2", 2)]);
    first.event("MODIFIED", pod("b", "10.0.0.9", 3));
    for at in 0..Resource::read_by(Reader::Node).len() {
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
}

#[test]
fn what_is_read_of_an_object_that_is_trimmed_is_what_is_read_of_all_of_it() {
    use culvert_core::mesh::Mesh;
    let yaml = include_str!("../testdata/objects.yaml");
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
    let resources = Resource::read_by(Reader::Node);
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
