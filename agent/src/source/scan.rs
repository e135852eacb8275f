//! One look at a directory: what has changed since the last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::ObjectRef;
use culvert_api::yaml::{self, Gravity, Mistake, Place};
use culvert_core::mesh::Change;
use culvert_core::translate::Finding;

use super::{FileStatus, LastGood, Status};

/// How many levels of directories are read.
const MAX_DEPTH: usize = 8;
/// How young a file may be to count as still being written, and how often one that keeps changing is put off: its
/// writer may have emptied it and not filled it yet.
const SETTLING: Duration = Duration::from_millis(50);
const MAX_PUT_OFF: u32 = 5;

/// What is known of a directory.
///
/// An object that several files hold is taken from the first of them by name. The files are gone through in that
/// order, so that this is known of an object as soon as it is read: each is handed on at once, and no more than one
/// document is held at a time, whatever the directory holds.
#[derive(Debug)]
pub struct Scanner {
    directory: PathBuf,
    problem: Option<String>,
    files: BTreeMap<Arc<Path>, FileState>,
    unsettled: bool,
    last_good: Option<LastGood>,
    has_looked: bool,
}

#[derive(Debug, Default)]
struct FileState {
    stamp: Option<Stamp>,
    objects: Vec<Held>,
    mistakes: Vec<Mistake>,
    /// Objects that another file holds already.
    duplicates: Vec<Mistake>,
    /// Objects of which something is said to whoever reads the mesh.
    reported: Vec<ObjectRef>,
    stale: bool,
    unknown: bool,
    put_off: u32,
}

/// An object that a file holds.
#[derive(Debug)]
struct Held {
    object: ObjectRef,
    place: Place,
    /// Whether it is this file's that counts.
    counts: bool,
}

/// What to do about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It is as it was.
    Unchanged,
    /// It has changed, perhaps not for the last time: soon.
    Later,
    /// It has changed, or was never read.
    Now,
}

/// What tells that a file has changed; another inode after an atomic rename, the target's behind a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Scanner {
    /// A scanner that has not looked yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, problem: None, files: BTreeMap::new(), unsettled: false, last_good: None, has_looked: false }
    }

    /// The same, and what each file held when it was in order is kept for the next start.
    pub(super) fn keeping(self, last_good: LastGood) -> Self {
        Self { last_good: Some(last_good), ..self }
    }

    /// Looks at the directory, and hands to `each` what has changed since the last look: first what is there, in the
    /// order of the files, then what is gone. When the directory cannot be read everything stays as it was.
    pub fn scan(&mut self, mut each: impl FnMut(Change)) {
        self.unsettled = false;
        let found = match find(&self.directory) {
            Ok(found) => found,
            Err(error) => {
                let message = format!("{}: {error}: the objects stay as they were", self.directory.display());
                self.problem = Some(message);
                return;
            }
        };
        self.problem = None;
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        let looks: Vec<Look> = found.iter().map(|(path, metadata)| self.look(path, metadata)).collect();
        let is_gone = |path: &Arc<Path>| !found.contains_key(path);
        if looks.contains(&Look::Now) || self.files.keys().any(is_gone) {
            self.sweep(found.into_iter().zip(looks), is_first, &mut each);
        }
    }

    /// Whether a file was still being written, so that another look is due soon.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// What is known of the directory and its files.
    pub fn status(&self) -> Status {
        let file = |(path, state): (&Arc<Path>, &FileState)| FileStatus {
            path: path.display().to_string(),
            objects: state.objects.len(),
            stale: state.stale,
            unknown: state.unknown,
            mistakes: state.mistakes.iter().chain(&state.duplicates).cloned().collect(),
        };
        Status { problem: self.problem.clone(), files: self.files.iter().map(file).collect() }
    }

    /// Whether a file is to be read.
    fn look(&mut self, path: &Path, metadata: &std::io::Result<Metadata>) -> Look {
        let Some(state) = self.files.get_mut(path) else { return Look::Now };
        if state.stamp == metadata.as_ref().ok().map(Stamp::of) {
            return Look::Unchanged;
        }
        if state.put_off < MAX_PUT_OFF && metadata.as_ref().is_ok_and(is_settling) {
            state.put_off += 1;
            self.unsettled = true;
            return Look::Later;
        }
        Look::Now
    }

    /// Goes through the files that are there: reads those that have changed, and works out which file each object is
    /// taken from.
    fn sweep(
        &mut self,
        found: impl Iterator<Item = ((Arc<Path>, std::io::Result<Metadata>), Look)>,
        is_first: bool,
        each: &mut dyn FnMut(Change),
    ) {
        let mut known = std::mem::take(&mut self.files);
        let last_good = self.last_good.as_ref();
        let mut sweep = Sweep { owners: HashMap::new(), let_go: Vec::new(), each, last_good, is_first };
        for ((path, metadata), look) in found {
            let state = match known.remove(&path) {
                None => {
                    let mut state = sweep.read_new(&path, &metadata);
                    sweep.report(&path, &mut state);
                    state
                }
                Some(state) if look == Look::Now => {
                    let mut state = sweep.read_again(&path, &metadata, state);
                    sweep.report(&path, &mut state);
                    state
                }
                Some(mut state) => {
                    sweep.keep(&path, &mut state);
                    state
                }
            };
            self.files.insert(path, state);
        }
        let is_smaller = !known.is_empty();
        for state in known.into_values() {
            for object in state.reported {
                (sweep.each)(Change::Report(object, Vec::new()));
            }
            sweep.let_go(state.objects);
        }
        sweep.finish();
        if let Some(last_good) = &self.last_good
            && (is_first || is_smaller)
        {
            last_good.retain(self.files.keys().map(|path| &**path));
        }
    }
}

/// One pass over the files, in their order.
struct Sweep<'a> {
    /// Where each object of the files so far was found first.
    owners: HashMap<ObjectRef, Arc<Path>>,
    /// Objects that counted until now, and which are gone unless another file holds them.
    let_go: Vec<ObjectRef>,
    each: &'a mut dyn FnMut(Change),
    last_good: Option<&'a LastGood>,
    /// Whether nothing was known before.
    is_first: bool,
}

impl Sweep<'_> {
    /// Takes in a file that was not there before. If it is broken, what an earlier agent knew of it counts; if there is
    /// none, it is taken as far as it goes, for without any of it its pods would be outside the mesh.
    fn read_new(&mut self, path: &Arc<Path>, metadata: &std::io::Result<Metadata>) -> FileState {
        let mut state = FileState { stamp: metadata.as_ref().ok().map(Stamp::of), ..FileState::default() };
        match contents(path, metadata) {
            Ok(bytes) => {
                self.take(path, &bytes, &mut state);
                if !yaml::is_broken(&state.mistakes) {
                    self.keep_good(path, &bytes);
                    return state;
                }
            }
            Err(mistake) => state.mistakes = vec![mistake],
        }
        let before = self.last_good.filter(|_| self.is_first).map(|last_good| last_good.read(path));
        match before {
            // It was broken when it came.
            Some(Some(good)) if good.is_empty() => {}
            Some(Some(good)) => self.go_back(path, &good, &mut state),
            Some(None) => state.unknown = true,
            // A file that comes broken has never said anything.
            None => self.keep_good(path, &[]),
        }
        state
    }

    /// Takes what a broken file held before in the place of what could be read of it.
    fn go_back(&mut self, path: &Arc<Path>, good: &[u8], state: &mut FileState) {
        for held in std::mem::take(&mut state.objects).into_iter().filter(|held| held.counts) {
            self.owners.remove(&held.object);
            self.let_go.push(held.object);
        }
        let mistakes = std::mem::take(&mut state.mistakes);
        self.take(path, good, state);
        state.mistakes = mistakes;
        state.stale = true;
    }

    /// Says of a file's objects what is wrong with them, and no longer what was.
    fn report(&mut self, path: &Path, state: &mut FileState) {
        let mut findings: BTreeMap<ObjectRef, Vec<Finding>> = BTreeMap::new();
        for mistake in &state.mistakes {
            let Some(object) = &mistake.object else { continue };
            let message = format!("{}:{mistake}", path.display());
            let finding = match mistake.gravity {
                Gravity::Broken => Finding::error(object.clone(), "", message),
                Gravity::UnknownField | Gravity::LeftOut => Finding::warning(object.clone(), "", message),
            };
            findings.entry(object.clone()).or_default().push(finding);
        }
        for object in std::mem::take(&mut state.reported) {
            if !findings.contains_key(&object) {
                (self.each)(Change::Report(object, Vec::new()));
            }
        }
        for (object, list) in findings {
            state.reported.push(object.clone());
            (self.each)(Change::Report(object, list));
        }
    }

    fn keep_good(&self, path: &Path, bytes: &[u8]) {
        if let Some(last_good) = self.last_good {
            last_good.keep(path, bytes);
        }
    }

    /// Takes in a file that has changed; if it is broken, its objects stay as they were.
    fn read_again(
        &mut self,
        path: &Arc<Path>,
        metadata: &std::io::Result<Metadata>,
        mut state: FileState,
    ) -> FileState {
        state.stamp = metadata.as_ref().ok().map(Stamp::of);
        state.put_off = 0;
        let contents = contents(path, metadata);
        // Whether it is broken has to be known before anything of it is handed on: so it is read twice, rather than
        // held.
        state.mistakes = match &contents {
            Ok(bytes) => yaml::for_each(bytes, |_, _| {}),
            Err(mistake) => vec![mistake.clone()],
        };
        match contents {
            Ok(bytes) if !yaml::is_broken(&state.mistakes) => {
                (state.stale, state.unknown) = (false, false);
                self.keep_good(path, &bytes);
                self.let_go(std::mem::take(&mut state.objects));
                self.take(path, &bytes, &mut state);
            }
            _ => {
                state.stale = true;
                self.keep(path, &mut state);
            }
        }
        state
    }

    /// Hands on the objects of a file.
    fn take(&mut self, path: &Arc<Path>, bytes: &[u8], state: &mut FileState) {
        state.duplicates.clear();
        let mut objects: Vec<Held> = Vec::new();
        state.mistakes = yaml::for_each(bytes, |object, place| {
            let mut reference = object.reference();
            // A file's objects are mostly of one namespace.
            if let Some(last) = objects.last().filter(|last| last.object.namespace == reference.namespace) {
                reference.namespace = last.object.namespace.clone();
            }
            let counts = self.claim(path, &reference, place, &mut state.duplicates);
            if counts {
                (self.each)(Change::Upsert(object));
            }
            objects.push(Held { object: reference, place, counts });
        });
        objects.shrink_to_fit();
        state.objects = objects;
    }

    /// Leaves the objects of a file as they are, except that what an earlier file has let go is taken from this one.
    fn keep(&mut self, path: &Arc<Path>, state: &mut FileState) {
        state.duplicates.clear();
        let mut inherited = HashSet::new();
        for held in &mut state.objects {
            let counted = held.counts;
            held.counts = self.claim(path, &held.object, held.place, &mut state.duplicates);
            if held.counts && !counted {
                inherited.insert(held.object.clone());
            }
        }
        if !inherited.is_empty()
            && let Ok(bytes) = contents(path, &std::fs::metadata(path))
        {
            // What is wrong with the file is known already, or will be once it is seen to have changed.
            yaml::for_each(&bytes, |object, _| {
                if inherited.contains(&object.reference()) {
                    (self.each)(Change::Upsert(object));
                }
            });
        }
    }

    /// Whether `object` counts where it is: in no file before this one.
    fn claim(&mut self, path: &Arc<Path>, object: &ObjectRef, place: Place, duplicates: &mut Vec<Mistake>) -> bool {
        let Some(first) = self.owners.get(object) else {
            self.owners.insert(object.clone(), path.clone());
            return true;
        };
        duplicates.push(Mistake {
            place,
            gravity: Gravity::LeftOut,
            message: format!("{object} is in {} already, which counts: remove one", first.display()),
            object: None,
        });
        false
    }

    fn let_go(&mut self, objects: Vec<Held>) {
        self.let_go.extend(objects.into_iter().filter(|held| held.counts).map(|held| held.object));
    }

    /// What no file holds any more is gone.
    fn finish(self) {
        for object in self.let_go {
            if !self.owners.contains_key(&object) {
                (self.each)(Change::Remove(object));
            }
        }
    }
}

fn is_settling(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age < SETTLING)
}

/// The bytes of a file, one more than the limit where it is longer.
fn contents(path: &Path, metadata: &std::io::Result<Metadata>) -> Result<Vec<u8>, Mistake> {
    let unreadable = |error: &dyn std::fmt::Display| Mistake {
        place: Place { line: 1, column: 1 },
        gravity: Gravity::Broken,
        message: format!("cannot be read: {error}"),
        object: None,
    };
    // Opening a FIFO would wait for its other end.
    if !metadata.as_ref().map_err(|error| unreadable(error))?.is_file() {
        return Err(unreadable(&"not a regular file"));
    }
    let mut bytes = Vec::new();
    let limit = yaml::MAX_BYTES as u64 + 1;
    match std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(unreadable(&error)),
    }
}

/// The YAML files of a directory, with what the system knows of each. Hidden ones are left out: editors' copies, and
/// the directories behind the links of a mounted ConfigMap.
fn find(directory: &Path) -> std::io::Result<BTreeMap<Arc<Path>, std::io::Result<Metadata>>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            // It may have gone while the others were read.
            Err(_) => continue,
        };
        for entry in entries {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                if depth < MAX_DEPTH {
                    directories.push((path, depth + 1));
                }
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                let metadata = std::fs::metadata(&path);
                files.insert(path.into(), metadata);
            }
        }
    }
    Ok(files)
}
