//! The objects on disk, for an agent that starts while the API server is away.
//!
//! A file that is appended to: each change is written as it passes, once a second, and nothing is kept in memory but
//! where each object is. When more than half of the file is of the past it is written anew, from itself, beside the old
//! one, and takes its place by a rename. It holds what was read of objects and nothing else: no Secret is ever watched.
//!
//! Layout: a head (the magic, the version of the format, the cluster), then frames (length, checksum, payload). A
//! payload is lines: `+RESOURCE KEY JSON` an object as it now is, `-RESOURCE KEY` one that is gone, `=RESOURCE` all of
//! the resource is here. A file of which any frame is not as it was written is of no use: what it lacks might be what
//! closes the mesh.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::entries::{Entry, digest};

const MAGIC: &[u8; 16] = b"culvert objects\n";
/// Changes with the layout, and with what is kept of an object.
const VERSION: u32 = 1;
const HEAD: usize = 28;
const FRAME_HEAD: usize = 12;
/// The largest payload: one object and the records before it.
const MAX_PAYLOAD: usize = 32 << 20;
/// How much may wait to be written.
const FULL: usize = 1 << 20;
/// How much may wait where the disk takes nothing; then no more is written.
const MAX_WAITING: usize = 16 << 20;
/// The largest file. 1 GiB is a million pods.
const MAX_FILE: u64 = 1 << 30;
/// How much of a file may be of the past without looking at how much is not.
const MAX_PAST: u64 = 4 << 20;

/// Where an object is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    at: u64,
    length: u32,
}

impl Place {
    /// How many bytes it has.
    pub(super) fn size(self) -> u64 {
        u64::from(self.length)
    }
}

/// What the file held.
#[derive(Debug)]
pub(super) struct Contents {
    /// The objects of each resource, by key.
    pub(super) objects: HashMap<String, HashMap<Box<str>, Entry>>,
    /// The resources that are here as a whole.
    pub(super) complete: HashSet<String>,
    /// When it was last known to be right.
    pub(super) time: SystemTime,
}

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    cluster: u64,
    length: u64,
    waiting: Vec<u8>,
    is_failing: bool,
}

impl Journal {
    /// Opens the file at `path`, or begins it. What it holds counts if it is of `cluster` and whole; otherwise the
    /// reason why not is given, in one line.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(path: &Path, cluster: u64) -> io::Result<(Self, Result<Contents, Option<String>>)> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let (file, contents) = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => match load(&file, cluster) {
                Ok((contents, whole)) => {
                    file.set_len(whole)?;
                    (file, Ok(contents))
                }
                Err(why) => {
                    let line = format!("{}: {why}: it is not used, and begun anew", path.display());
                    (begin(path, cluster)?, Err(Some(line)))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (begin(path, cluster)?, Err(None)),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let journal = Self { path: path.to_owned(), file, cluster, length, waiting: Vec::new(), is_failing: false };
        Ok((journal, contents))
    }

    /// Writes that `key` of `resource` is now `json`.
    pub(super) fn put(&mut self, resource: &str, key: &str, json: &[u8]) -> Place {
        if self.is_failing {
            return Place::default();
        }
        self.record(b'+', resource, Some(key));
        self.waiting.push(b' ');
        let at = self.length + (FRAME_HEAD + self.waiting.len()) as u64;
        self.waiting.extend_from_slice(json);
        self.waiting.push(b'\n');
        if self.waiting.len() >= FULL {
            self.flush();
        }
        Place { at, length: u32::try_from(json.len()).unwrap_or(u32::MAX) }
    }

    /// Writes that `key` of `resource` is gone.
    pub(super) fn remove(&mut self, resource: &str, key: &str) {
        if !self.is_failing {
            self.record(b'-', resource, Some(key));
            self.waiting.push(b'\n');
        }
    }

    /// Writes that all of `resource` is here.
    pub(super) fn complete(&mut self, resource: &str) {
        if !self.is_failing {
            self.record(b'=', resource, None);
            self.waiting.push(b'\n');
        }
    }

    /// Whether something waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what waits. What cannot be written now is tried again with what comes next, up to a bound.
    pub(super) fn flush(&mut self) {
        if self.waiting.is_empty() || self.is_failing {
            return;
        }
        match append(&mut self.file, self.length, &self.waiting) {
            Ok(written) => {
                self.length += written;
                self.waiting.clear();
                self.waiting.shrink_to(64 << 10);
            }
            Err(error) if self.waiting.len() > MAX_WAITING => self.give_up(&error),
            Err(error) => tracing::debug!("{}: {error}: tried again", self.path.display()),
        }
    }

    /// Says that everything is still as the file says.
    pub(super) fn touch(&self) {
        if !self.is_failing && self.waiting.is_empty() {
            let _ = self.file.set_modified(SystemTime::now());
        }
    }

    /// Whether most of the file is of the past, where `live` bytes are not.
    pub(super) fn is_bloated(&self, live: u64) -> bool {
        !self.is_failing && self.length > 2 * live + MAX_PAST
    }

    /// Writes the file anew: `complete` resources, and the objects that are still there, each with its resource.
    pub(super) fn rewrite<'a>(
        &mut self,
        complete: impl Iterator<Item = String>,
        objects: impl Iterator<Item = (String, &'a str, &'a mut Place)>,
    ) {
        self.flush();
        if self.is_failing || self.is_dirty() {
            return;
        }
        if let Err(error) = self.try_rewrite(complete, objects) {
            self.give_up(&error);
        }
    }

    /// The JSON at `place`, which has been written.
    pub(super) fn read(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut json = vec![0; place.length as usize];
        self.file.read_exact_at(&mut json, place.at)?;
        Ok(json)
    }

    fn try_rewrite<'a>(
        &mut self,
        complete: impl Iterator<Item = String>,
        objects: impl Iterator<Item = (String, &'a str, &'a mut Place)>,
    ) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut new = Self {
            file: begin(&beside, self.cluster)?,
            path: beside.clone(),
            cluster: self.cluster,
            length: HEAD as u64,
            waiting: Vec::new(),
            is_failing: false,
        };
        for (resource, key, place) in objects {
            let json = self.read(*place)?;
            *place = new.put(&resource, key, &json);
        }
        complete.for_each(|resource| new.complete(&resource));
        new.flush();
        if new.is_failing || new.is_dirty() {
            return Err(io::Error::other("the new file cannot be written"));
        }
        new.file.sync_data()?;
        fs::rename(&beside, &self.path)?;
        new.path = std::mem::take(&mut self.path);
        *self = new;
        Ok(())
    }

    /// Writes no more. The file stays as it was: true of the time that it bears.
    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(
            "{}: {error}: an agent that restarts while the API server is away knows nothing of what comes now; \
             make room and restart the agent",
            self.path.display()
        );
        self.is_failing = true;
        self.waiting = Vec::new();
    }

    fn record(&mut self, sign: u8, resource: &str, key: Option<&str>) {
        self.waiting.push(sign);
        self.waiting.extend_from_slice(resource.as_bytes());
        if let Some(key) = key {
            self.waiting.push(b' ');
            self.waiting.extend_from_slice(key.as_bytes());
        }
    }
}

/// A file without objects, in place of what is there.
fn begin(path: &Path, cluster: u64) -> io::Result<File> {
    let beside = path.with_extension("begin");
    // Of another process, perhaps, which did not get to rename it.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&beside)?;
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&cluster.to_le_bytes());
    file.write_all(&head)?;
    fs::rename(&beside, path)?;
    Ok(file)
}

/// Appends a frame at `length`; how many bytes it has.
fn append(file: &mut File, length: u64, payload: &[u8]) -> io::Result<u64> {
    let mut frame = Vec::with_capacity(FRAME_HEAD);
    let size = u32::try_from(payload.len()).map_err(io::Error::other)?;
    frame.extend_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(&checksum(payload));
    let written = file.write_all(&frame).and_then(|()| file.write_all(payload));
    if let Err(error) = written {
        // Half a frame would make the whole file useless.
        file.set_len(length)?;
        return Err(error);
    }
    Ok((FRAME_HEAD + payload.len()) as u64)
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let mut first = [0; 8];
    first.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    first
}

/// Reads the file, and says how far it is whole; or why it is of no use.
fn load(file: &File, cluster: u64) -> Result<(Contents, u64), String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if metadata.len() > MAX_FILE {
        return Err(format!("more than {MAX_FILE} bytes"));
    }
    let mut reader = BufReader::new(file);
    let mut head = [0; HEAD];
    reader.read_exact(&mut head).map_err(|_| "truncated")?;
    if &head[..16] != MAGIC {
        return Err("not a file of objects".to_owned());
    }
    if head[16..20] != VERSION.to_le_bytes() {
        return Err("of another version of Culvert".to_owned());
    }
    if head[20..] != cluster.to_le_bytes() {
        return Err("of another cluster".to_owned());
    }
    let mut contents = Contents {
        objects: HashMap::new(),
        complete: HashSet::new(),
        time: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
    };
    let mut at = HEAD as u64;
    let mut payload = Vec::new();
    while at < metadata.len() {
        let mut size = [0; 4];
        let mut sum = [0; 8];
        // A frame that the power went out on is one that was not written yet.
        if reader.read_exact(&mut size).and_then(|()| reader.read_exact(&mut sum)).is_err() {
            break;
        }
        let size = u32::from_le_bytes(size) as usize;
        let end = at + (FRAME_HEAD + size) as u64;
        if size > MAX_PAYLOAD {
            return Err("corrupt".to_owned());
        }
        if end > metadata.len() {
            break;
        }
        payload.resize(size, 0);
        reader.read_exact(&mut payload).map_err(|error| error.to_string())?;
        if checksum(&payload) != sum {
            if end == metadata.len() {
                break;
            }
            return Err("corrupt".to_owned());
        }
        replay(&payload, at + FRAME_HEAD as u64, &mut contents).ok_or("corrupt")?;
        at = end;
    }
    Ok((contents, at))
}

/// Takes in the records of a payload that begins at `at`.
fn replay(payload: &[u8], at: u64, contents: &mut Contents) -> Option<()> {
    let text = std::str::from_utf8(payload).ok()?;
    for line in text.lines() {
        let (sign, record) = line.split_at_checked(1)?;
        let (resource, rest) = record.split_once(' ').unwrap_or((record, ""));
        match sign {
            "=" => {
                contents.complete.insert(resource.to_owned());
            }
            "-" => {
                contents.objects.get_mut(resource).map(|objects| objects.remove(rest));
            }
            "+" => {
                let (key, json) = rest.split_once(' ')?;
                let offset = json.as_ptr().addr() - text.as_ptr().addr();
                let place = Place { at: at + offset as u64, length: u32::try_from(json.len()).ok()? };
                let entry = Entry { digest: digest(json.as_bytes()), place, epoch: 0 };
                contents.objects.entry(resource.to_owned()).or_default().insert(key.into(), entry);
            }
            _ => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::files::testing::TempDir;

    struct Directory(TempDir);

    impl Directory {
        fn new() -> Self {
            Self(TempDir::new())
        }

        fn file(&self) -> PathBuf {
            self.0.join("objects")
        }

        fn open(&self) -> (Journal, Result<Contents, Option<String>>) {
            Journal::open(&self.file(), 7).unwrap()
        }
    }

    fn objects(journal: &Journal, contents: &Contents) -> Vec<(String, String)> {
        let all = contents.objects.values().flatten();
        let mut all: Vec<_> = all
            .map(|(key, entry)| (key.to_string(), String::from_utf8(journal.read(entry.place).unwrap()).unwrap()))
            .collect();
        all.sort();
        all
    }

    fn pair(key: &str, json: &str) -> (String, String) {
        (key.to_owned(), json.to_owned())
    }

    #[test]
    fn what_was_written_last_is_what_is_read() {
        let directory = Directory::new();
        let (mut journal, contents) = directory.open();
        assert!(matches!(contents, Err(None)));
        journal.put("pods", "a/x", br#"{"v":1}"#);
        journal.put("pods", "a/y", r#"{"v":"ü \\n"}"#.as_bytes());
        journal.flush();
        journal.put("pods", "a/x", br#"{"v":2}"#);
        journal.put("services", "a/x", b"{}");
        journal.remove("services", "a/x");
        journal.complete("pods");
        journal.flush();
        let (journal, contents) = directory.open();
        let contents = contents.unwrap();
        assert_eq!(objects(&journal, &contents), [pair("a/x", r#"{"v":2}"#), pair("a/y", r#"{"v":"ü \\n"}"#)]);
        assert_eq!(contents.complete, HashSet::from(["pods".to_owned()]));
        assert!(contents.time.elapsed().unwrap().as_secs() < 60);
        assert_eq!(fs::metadata(directory.file()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_frame_that_was_half_written_counts_as_not_written() {
        let directory = Directory::new();
        let (mut journal, _) = directory.open();
        journal.put("pods", "a/x", br#"{"v":1}"#);
        journal.flush();
        let first = fs::read(directory.file()).unwrap().len();
        journal.put("pods", "a/y", br#"{"v":2}"#);
        journal.flush();
        let whole = fs::read(directory.file()).unwrap();
        let torn = (first..whole.len()).map(|end| whole[..end].to_vec());
        // Or its length was written, and not what is in it.
        let blank = (first + FRAME_HEAD..whole.len()).map(|from| {
            let mut blank = whole.clone();
            blank[from..].fill(0);
            blank
        });
        for bytes in torn.chain(blank) {
            fs::write(directory.file(), &bytes).unwrap();
            let (mut journal, contents) = directory.open();
            assert_eq!(contents.unwrap().objects["pods"].keys().collect::<Vec<_>>(), [&Box::from("a/x")]);
            // What comes next is whole again.
            journal.put("pods", "a/z", br#"{"v":3}"#);
            journal.flush();
            assert_eq!(directory.open().1.unwrap().objects["pods"].len(), 2);
        }
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_used() {
        let directory = Directory::new();
        let (mut journal, _) = directory.open();
        journal.put("pods", "a/x", br#"{"v":1}"#);
        journal.flush();
        let first = fs::read(directory.file()).unwrap().len();
        journal.complete("pods");
        journal.flush();
        let whole = fs::read(directory.file()).unwrap();
        for end in 0..HEAD {
            fs::write(directory.file(), &whole[..end]).unwrap();
            assert!(directory.open().1.is_err(), "{end} of {} bytes", whole.len());
        }
        // A length that leads beyond the end cannot be told from a frame that was half written.
        for at in (0..first).filter(|at| !(HEAD..HEAD + 4).contains(at)) {
            let mut broken = whole.clone();
            broken[at] ^= 0x41;
            fs::write(directory.file(), &broken).unwrap();
            let (journal, contents) = directory.open();
            let line = contents.unwrap_err().unwrap();
            assert!(line.contains("it is not used") && !line.contains('\n'), "{line}");
            assert_eq!(journal.length, HEAD as u64);
        }
        fs::write(directory.file(), &whole).unwrap();
        assert!(matches!(Journal::open(&directory.file(), 8).unwrap().1, Err(Some(line)) if line.contains("cluster")));
    }

    #[test]
    fn a_file_of_the_past_is_written_anew() {
        let directory = Directory::new();
        let (mut journal, _) = directory.open();
        let long = format!("{{\"v\":\"{}\"}}", "x".repeat(1000));
        let mut place = Place::default();
        for _ in 0..5000 {
            place = journal.put("pods", "a/x", long.as_bytes());
        }
        journal.flush();
        assert!(journal.is_bloated(long.len() as u64));
        journal.rewrite(["pods".to_owned()].into_iter(), [("pods".to_owned(), "a/x", &mut place)].into_iter());
        assert!(!journal.is_bloated(long.len() as u64) && !journal.is_failing);
        assert_eq!(journal.read(place).unwrap(), long.as_bytes());
        // What comes after is appended to the new file.
        journal.put("pods", "a/y", b"{}");
        journal.flush();
        let (journal, contents) = directory.open();
        let contents = contents.unwrap();
        assert_eq!(objects(&journal, &contents), [pair("a/x", &long), pair("a/y", "{}")]);
        assert!(contents.complete.contains("pods") && fs::metadata(directory.file()).unwrap().len() < 3000);
        let names: Vec<_> = fs::read_dir(directory.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["objects"]);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_tried_again_and_then_given_up() {
        let directory = Directory::new();
        let (mut journal, _) = directory.open();
        journal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        journal.put("pods", "a/x", &vec![b'x'; FULL]);
        assert!(journal.is_dirty() && !journal.is_failing);
        for _ in 0..20 {
            journal.put("pods", "a/x", &vec![b'x'; FULL]);
        }
        assert!(journal.is_failing && !journal.is_dirty());
    }
}
