use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use culvert_api::Object;

use super::*;
use crate::files::testing::TempDir;

/// A watched directory of a test's own.
struct Watched(TempDir);

impl Watched {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn write(&self, name: &str, text: &str) {
        // As editors and tools do it.
        let temporary = self.0.join(format!(".{name}.tmp"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.0.join(name)).unwrap();
    }

    /// Where the last good contents of its files go: hidden, so not read as objects.
    fn copies(&self) -> PathBuf {
        self.0.join(".copies")
    }

    /// A scanner as an agent that starts has it.
    fn scanner(&self) -> Scanner {
        Scanner::new(self.0.to_path_buf()).keeping(LastGood::new(self.copies()))
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

fn pod(name: &str, account: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [], serviceAccountName: {account}}}\n"
    )
}

/// Pods by name with their accounts, as the changes so far leave them.
#[derive(Default)]
struct Seen(BTreeMap<String, String>);

impl Seen {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Upsert(Object::Pod(pod)) => {
                    let account = pod.spec.unwrap().service_account_name.unwrap();
                    self.0.insert(pod.metadata.name.unwrap(), account);
                }
                Change::Upsert(other) => panic!("{other:?}"),
                Change::Report(..) => {}
                Change::Remove(object) => {
                    self.0.remove(&*object.name).expect("removed what was there");
                }
            }
        }
    }

    fn is(&self, expected: &[(&str, &str)]) -> bool {
        self.0.iter().map(|(name, account)| (name.as_str(), account.as_str())).eq(expected.iter().copied())
    }
}

/// Looks once.
fn look(scanner: &mut Scanner) -> Vec<Change> {
    let mut changes = Vec::new();
    scanner.scan(|change| changes.push(change));
    changes
}

/// Looks until nothing is being written any more.
fn scan(scanner: &mut Scanner, seen: &mut Seen) {
    loop {
        seen.apply(look(scanner));
        if !scanner.is_unsettled() {
            return;
        }
    }
}

fn errors(scanner: &Scanner) -> Vec<String> {
    let name = |error: FileError| {
        let file = error.path.rsplit('/').next().unwrap().to_owned();
        format!("{file}:{}:{:?}", error.mistake.place, error.mistake.gravity)
    };
    scanner.status().errors().map(name).collect()
}

#[test]
fn files_come_change_and_go() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &(pod("a", "x") + &pod("b", "x")));
    directory.write("b.yml", &pod("c", "x"));
    directory.write("c.json", &pod("d", "x"));
    directory.write(".hidden.yaml", &pod("e", "x"));
    std::fs::create_dir(directory.0.join("sub")).unwrap();
    std::fs::write(directory.0.join("sub/d.yaml"), pod("f", "x")).unwrap();
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x"), ("b", "x"), ("c", "x"), ("f", "x")]), "{:?}", seen.0);

    directory.write("a.yaml", &pod("a", "y"));
    directory.remove("b.yml");
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "y"), ("f", "x")]), "{:?}", seen.0);
    assert!(look(&mut scanner).is_empty());
}

/// What is said of objects, by object: how many findings, and the first.
fn reports(scanner: &mut Scanner) -> Vec<(String, usize, String)> {
    let mut told = Vec::new();
    loop {
        for change in look(scanner) {
            if let Change::Report(object, list) = change {
                let first = list.first().map(ToString::to_string).unwrap_or_default();
                told.push((object.to_string(), list.len(), first));
            }
        }
        if !scanner.is_unsettled() {
            return told;
        }
    }
}

#[test]
fn what_is_wrong_with_an_object_is_said_of_it_until_it_is_mended_or_gone() {
    let directory = Watched::new();
    let mut scanner = Scanner::new(directory.0.to_path_buf());
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {spec}\n"
        )
    };
    let name = "PeerAuthentication shop/p".to_owned();
    directory.write("a.yaml", &policy("{mtsl: {mode: STRICT}}"));
    let told = reports(&mut scanner);
    assert_eq!((&told[0].0, told[0].1, told.len()), (&name, 1, 1));
    assert!(told[0].2.starts_with("warning: ") && told[0].2.contains("unknown field spec.mtsl"), "{told:?}");
    directory.write("a.yaml", &policy("{mtls: {mode: [STRICT]}}"));
    let told = reports(&mut scanner);
    assert!(told.len() == 1 && told[0].2.starts_with("error: ") && told[0].2.contains("a.yaml:4:"), "{told:?}");
    directory.write("a.yaml", &policy("{mtls: {mode: STRICT}}"));
    assert_eq!(reports(&mut scanner), [(name.clone(), 0, String::new())]);
    directory.write("a.yaml", &policy("{mtsl: {mode: STRICT}}"));
    assert_eq!(reports(&mut scanner).len(), 1);
    directory.remove("a.yaml");
    assert_eq!(reports(&mut scanner), [(name, 0, String::new())]);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_no_other_files() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &pod("a", "x"));
    directory.write("b.yaml", &pod("b", "x"));
    scan(&mut scanner, &mut seen);

    directory.write("a.yaml", &format!("{}---\nkind: [\n", pod("c", "y")));
    directory.write("b.yaml", &pod("b", "y"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x"), ("b", "y")]), "{:?}", seen.0);
    assert!(scanner.status().files[0].stale);
    assert_eq!(errors(&scanner).len(), 1);

    directory.write("a.yaml", &pod("c", "y"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("b", "y"), ("c", "y")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner), [""; 0]);
}

#[test]
fn a_file_that_was_never_whole_is_taken_as_far_as_it_goes() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &format!("{}---\nkind: [\n{}", pod("a", "x"), pod("b", "x")));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x"), ("b", "x")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner).len(), 1);
}

#[test]
fn an_unknown_kind_does_not_hold_up_the_rest_of_its_file() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &pod("a", "x"));
    scan(&mut scanner, &mut seen);
    directory
        .write("a.yaml", &format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n{}", pod("a", "y")));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "y")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner), ["a.yaml:2:7:LeftOut"]);
}

#[test]
fn an_object_in_two_files_is_the_first_ones_until_that_lets_go() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("b.yaml", &pod("a", "b"));
    scan(&mut scanner, &mut seen);
    directory.write("a.yaml", &pod("a", "a"));
    directory.write("c.yaml", &pod("a", "c"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "a")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner), ["b.yaml:2:1:LeftOut", "c.yaml:2:1:LeftOut"]);

    directory.remove("a.yaml");
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "b")]), "{:?}", seen.0);
    directory.remove("b.yaml");
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "c")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner), [""; 0]);
}

#[test]
fn a_directory_that_disappears_keeps_its_objects_and_says_so() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &pod("a", "x"));
    scan(&mut scanner, &mut seen);
    std::fs::remove_dir_all(directory.0.path()).unwrap();
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x")]), "{:?}", seen.0);
    assert!(scanner.status().problem.unwrap().contains("stay as they were"));

    std::fs::create_dir_all(directory.0.path()).unwrap();
    directory.write("b.yaml", &pod("b", "x"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("b", "x")]), "{:?}", seen.0);
    assert_eq!(scanner.status().problem, None);
}

#[test]
fn what_is_not_a_file_of_bounded_size_is_refused_in_one_line() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("big.yaml", &"# x\n".repeat(3 << 20));
    std::fs::write(directory.0.join("binary.yaml"), [0xff, 0xfe, 0, 1]).unwrap();
    directory.write("empty.yaml", "");
    nix::unistd::mkfifo(&directory.0.join("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/nowhere", directory.0.join("link.yaml")).unwrap();
    directory.write("z.yaml", &pod("a", "x"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x")]), "{:?}", seen.0);
    let expected = ["big.yaml", "binary.yaml", "fifo.yaml", "link.yaml"].map(|file| format!("{file}:1:1:Broken"));
    assert_eq!(errors(&scanner), expected);
}

/// Takes changes until the pods are `expected`.
async fn until(source: &mut Directory, seen: &mut Seen, expected: &[(&str, &str)]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !seen.is(expected) {
        let update = tokio::time::timeout_at(deadline, source.next()).await;
        seen.apply(update.unwrap_or_else(|_| panic!("{:?} is not {expected:?}", seen.0)).unwrap().changes);
    }
}

#[test]
fn a_file_that_is_broken_when_an_agent_starts_holds_what_it_did_when_it_was_last_in_order() {
    let directory = Watched::new();
    directory.write("a.yaml", &(pod("a", "x") + &pod("b", "x")));
    directory.write("b.yaml", &pod("c", "x"));
    scan(&mut directory.scanner(), &mut Seen::default());

    directory.write("a.yaml", &(pod("b", "y") + &pod("d", "y") + "---\nkind: ["));
    let (mut scanner, mut seen) = (directory.scanner(), Seen::default());
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x"), ("b", "x"), ("c", "x")]), "{:?}", seen.0);
    let status = scanner.status();
    assert!(status.files[0].stale && status.incomplete().is_none());
    assert_eq!(errors(&scanner).len(), 1);

    directory.write("a.yaml", &pod("b", "z"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("b", "z"), ("c", "x")]), "{:?}", seen.0);
    assert!(!scanner.status().files[0].stale);

    directory.remove("a.yaml");
    scan(&mut scanner, &mut seen);
    assert_eq!(std::fs::read_dir(directory.copies()).unwrap().count(), 1, "what is gone is not kept");
}

#[test]
fn objects_may_be_missing_until_a_file_is_mended_of_which_nothing_is_known() {
    let directory = Watched::new();
    directory.write("a.yaml", &(pod("a", "x") + "---\nkind: ["));
    let (mut scanner, mut seen) = (directory.scanner(), Seen::default());
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x")]), "{:?}", seen.0);
    let why = scanner.status().incomplete().unwrap();
    assert!(why.contains("a.yaml:") && why.contains("unclosed bracket"), "{why}");

    directory.write("a.yaml", &(pod("a", "x") + "---\nkind: {"));
    scan(&mut scanner, &mut seen);
    assert!(scanner.status().incomplete().is_some());
    directory.write("a.yaml", &pod("a", "x"));
    scan(&mut scanner, &mut seen);
    assert!(scanner.status().incomplete().is_none());
}

#[test]
fn a_file_that_comes_broken_hides_nothing_also_from_the_next_agent() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (directory.scanner(), Seen::default());
    scan(&mut scanner, &mut seen);
    directory.write("a.yaml", &(pod("a", "x") + "---\nkind: ["));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x")]) && scanner.status().incomplete().is_none());

    let (mut scanner, mut seen) = (directory.scanner(), Seen::default());
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "x")]) && scanner.status().incomplete().is_none());
}

#[tokio::test]
async fn an_edit_takes_effect_within_a_second() {
    let directory = Watched::new();
    directory.write("a.yaml", &pod("a", "x"));
    let (mut source, mut seen) = (Directory::open(&directory.0, directory.copies()).unwrap(), Seen::default());
    let first = source.next().await.unwrap();
    assert!(first.settled);
    seen.apply(first.changes);
    assert!(seen.is(&[("a", "x")]), "{:?}", seen.0);

    let started = std::time::Instant::now();
    directory.write("a.yaml", &pod("a", "y"));
    until(&mut source, &mut seen, &[("a", "y")]).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_first_changes_come_even_if_there_are_none() {
    let directory = Watched::new();
    let mut source = Directory::open(&directory.0, directory.copies()).unwrap();
    let first = tokio::time::timeout(Duration::from_secs(10), source.next()).await.unwrap().unwrap();
    assert!(first.changes.is_empty() && first.settled);
}

#[tokio::test]
async fn many_objects_come_in_bounded_pieces_of_which_the_last_is_settled() {
    let directory = Watched::new();
    let count = 3 * PIECE + 1;
    let pods = |range: std::ops::Range<usize>| range.map(|n| pod(&format!("p-{n:05}"), "x")).collect::<String>();
    directory.write("a.yaml", &pods(0..count - 10));
    directory.write("b.yaml", &pods(count - 20..count));
    let (mut source, mut seen) = (Directory::open(&directory.0, directory.copies()).unwrap(), Seen::default());
    loop {
        let update = tokio::time::timeout(Duration::from_secs(10), source.next()).await.unwrap().unwrap();
        assert!(update.changes.len() <= PIECE);
        seen.apply(update.changes);
        if update.settled {
            break;
        }
    }
    assert_eq!(seen.0.len(), count);
    assert_eq!(source.status().borrow().errors().count(), 10);
}

#[test]
fn what_a_broken_file_holds_passes_to_the_next_only_when_it_is_gone() {
    let directory = Watched::new();
    let (mut scanner, mut seen) = (Scanner::new(directory.0.to_path_buf()), Seen::default());
    directory.write("a.yaml", &pod("a", "a"));
    directory.write("b.yaml", &pod("a", "b"));
    scan(&mut scanner, &mut seen);
    directory.write("a.yaml", "kind: [");
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "a")]), "{:?}", seen.0);
    directory.write("a.yaml", &pod("c", "a"));
    scan(&mut scanner, &mut seen);
    assert!(seen.is(&[("a", "b"), ("c", "a")]), "{:?}", seen.0);
    assert_eq!(errors(&scanner), [""; 0]);
}

#[tokio::test]
async fn a_config_map_volume_is_followed_through_its_links() {
    let directory = Watched::new();
    let revision = |name: &str, account: &str| {
        std::fs::create_dir(directory.0.join(name)).unwrap();
        std::fs::write(directory.0.join(name).join("a.yaml"), pod("a", account)).unwrap();
        std::os::unix::fs::symlink(name, directory.0.join("..data_tmp")).unwrap();
        std::fs::rename(directory.0.join("..data_tmp"), directory.0.join("..data")).unwrap();
    };
    revision("..1", "x");
    std::os::unix::fs::symlink("..data/a.yaml", directory.0.join("a.yaml")).unwrap();
    let (mut source, mut seen) = (Directory::open(&directory.0, directory.copies()).unwrap(), Seen::default());
    until(&mut source, &mut seen, &[("a", "x")]).await;
    revision("..2", "y");
    until(&mut source, &mut seen, &[("a", "y")]).await;
}

#[tokio::test]
async fn a_directory_that_comes_back_is_watched_again() {
    let directory = Watched::new();
    directory.write("a.yaml", &pod("a", "x"));
    let (mut source, mut seen) = (Directory::open(&directory.0, directory.copies()).unwrap(), Seen::default());
    until(&mut source, &mut seen, &[("a", "x")]).await;
    let mut status = source.status();
    std::fs::remove_dir_all(directory.0.path()).unwrap();
    let gone = status.wait_for(|status| status.problem.is_some());
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    std::fs::create_dir_all(directory.0.path()).unwrap();
    directory.write("a.yaml", &pod("a", "y"));
    until(&mut source, &mut seen, &[("a", "y")]).await;
    directory.write("a.yaml", &pod("a", "z"));
    until(&mut source, &mut seen, &[("a", "z")]).await;
}
