//! One look at a directory: what has changed since the last.

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use culvert_api::yaml::{self, Gravity, Mistake, Place};
use culvert_api::{Object, ObjectRef};
use culvert_core::mesh::Change;

use super::{Contents, FileStatus, Status};

/// How many levels of directories are read.
const MAX_DEPTH: usize = 8;
/// How young a file may be to count as still being written, and how often one that keeps changing is put off: its
/// writer may have emptied it and not filled it yet.
const SETTLING: Duration = Duration::from_millis(50);
const MAX_PUT_OFF: u32 = 5;

/// What is known of a directory.
#[derive(Debug)]
pub struct Scanner {
    directory: PathBuf,
    problem: Option<String>,
    files: BTreeMap<PathBuf, FileState>,
    /// The file that an object is taken from: the first by name that holds it.
    owners: HashMap<ObjectRef, PathBuf>,
    unsettled: bool,
}

#[derive(Debug, Default)]
struct FileState {
    stamp: Option<Stamp>,
    objects: Vec<(ObjectRef, Place)>,
    mistakes: Vec<Mistake>,
    /// Objects that another file holds already.
    duplicates: Vec<Mistake>,
    stale: bool,
    put_off: u32,
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
        Self { directory, problem: None, files: BTreeMap::new(), owners: HashMap::new(), unsettled: false }
    }

    /// Looks at the directory, and says what has changed since the last look. When it cannot be read everything stays
    /// as it was.
    pub fn scan(&mut self) -> Vec<Change> {
        self.unsettled = false;
        let found = match find(&self.directory) {
            Ok(found) => found,
            Err(error) => {
                let message = format!("{}: {error}: the objects stay as they were", self.directory.display());
                self.problem = Some(message);
                return Vec::new();
            }
        };
        self.problem = None;
        let known = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut changed = known != self.files.len();
        let mut contents: HashMap<PathBuf, Vec<Object>> = HashMap::new();
        for (path, metadata) in found {
            if let Some(objects) = self.look(&path, &metadata) {
                contents.insert(path, objects);
                changed = true;
            }
        }
        if changed { self.merge(contents) } else { Vec::new() }
    }

    /// Whether a file was still being written, so that another look is due soon.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// What is known of the directory and its files.
    pub fn status(&self) -> Status {
        let file = |(path, state): (&PathBuf, &FileState)| FileStatus {
            path: path.display().to_string(),
            objects: state.objects.len(),
            stale: state.stale,
            mistakes: state.mistakes.iter().chain(&state.duplicates).cloned().collect(),
        };
        Status { problem: self.problem.clone(), files: self.files.iter().map(file).collect() }
    }

    /// Reads a file if it has changed; the objects to take from it now.
    fn look(&mut self, path: &Path, metadata: &std::io::Result<Metadata>) -> Option<Vec<Object>> {
        let stamp = metadata.as_ref().ok().map(Stamp::of);
        let is_new = !self.files.contains_key(path);
        let state = self.files.entry(path.to_owned()).or_default();
        if !is_new && state.stamp == stamp && stamp.is_some() {
            return None;
        }
        if !is_new && state.put_off < MAX_PUT_OFF && metadata.as_ref().is_ok_and(is_settling) {
            state.put_off += 1;
            self.unsettled = true;
            return None;
        }
        state.put_off = 0;
        let parsed = match metadata {
            Ok(metadata) => read(path, metadata),
            Err(error) => unreadable(error),
        };
        let broken = parsed.is_broken();
        state.stamp = stamp;
        state.mistakes = parsed.mistakes;
        if broken && !is_new {
            state.stale = true;
            return None;
        }
        // A file that was never whole is taken as far as it goes: without any of it, its pods would be outside the
        // mesh.
        state.stale = false;
        state.objects = parsed.objects.iter().map(|(object, place)| (object.reference(), *place)).collect();
        Some(parsed.objects.into_iter().map(|(object, _)| object).collect())
    }

    /// Works out which file each object is taken from, and what that changes.
    fn merge(&mut self, mut contents: HashMap<PathBuf, Vec<Object>>) -> Vec<Change> {
        let mut owners: HashMap<ObjectRef, PathBuf> = HashMap::with_capacity(self.owners.len());
        for (path, state) in &mut self.files {
            state.duplicates.clear();
            for (object, place) in &state.objects {
                match owners.get(object) {
                    None => {
                        owners.insert(object.clone(), path.clone());
                    }
                    Some(first) => state.duplicates.push(Mistake {
                        place: *place,
                        gravity: Gravity::LeftOut,
                        message: format!("{object} is in {} already, which counts: remove one", first.display()),
                    }),
                }
            }
        }
        let gone = self.owners.keys().filter(|object| !owners.contains_key(*object));
        let mut changes: Vec<Change> = gone.cloned().map(Change::Remove).collect();
        // An object may pass to a file that has not changed and is not at hand any more.
        for (object, path) in &owners {
            if self.owners.get(object) != Some(path) && !contents.contains_key(path) {
                let parsed = std::fs::metadata(path).map_or_else(|error| unreadable(&error), |meta| read(path, &meta));
                contents.insert(path.clone(), parsed.objects.into_iter().map(|(object, _)| object).collect());
            }
        }
        // In the order of the files: what comes first is read first, which helps nobody but whoever reads the log.
        for path in self.files.keys() {
            let objects = contents.remove(path).unwrap_or_default();
            let own = objects.into_iter().filter(|object| owners.get(&object.reference()) == Some(path));
            changes.extend(own.map(Change::Upsert));
        }
        self.owners = owners;
        changes
    }
}

fn is_settling(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age < SETTLING)
}

fn unreadable(error: &std::io::Error) -> Contents {
    let mistake = Mistake {
        place: Place { line: 1, column: 1 },
        gravity: Gravity::Broken,
        message: format!("cannot be read: {error}"),
    };
    Contents { objects: Vec::new(), mistakes: vec![mistake] }
}

fn read(path: &Path, metadata: &Metadata) -> Contents {
    // Opening a FIFO would wait for its other end.
    if !metadata.is_file() {
        return unreadable(&std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    let limit = yaml::MAX_BYTES as u64 + 1;
    match std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => yaml::parse(&bytes),
        Err(error) => unreadable(&error),
    }
}

/// The YAML files of a directory, with what the system knows of each. Hidden ones are left out: editors' copies, and
/// the directories behind the links of a mounted ConfigMap.
fn find(directory: &Path) -> std::io::Result<BTreeMap<PathBuf, std::io::Result<Metadata>>> {
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
                files.insert(path, metadata);
            }
        }
    }
    Ok(files)
}
