//! Where objects come from: a directory of YAML files or the Kubernetes API server, either of which is watched.
//!
//! They come in pieces, so that no more of them is in memory at a time than it takes: an object is many times what the
//! mesh keeps of it.
//!
//! What objects mean is none of this module's business: it hands on which are there, which have changed and which are
//! gone. The one thing that it decides is what to do about a file that cannot be read: its objects stay as they were.

mod any;
pub mod kube;
mod last_good;
mod scan;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::Kind;
use culvert_api::yaml::{Gravity, Mistake};
use culvert_core::mesh::Change;
use serde::Serialize;
use tokio::sync::{mpsc, watch as state};

use self::last_good::LastGood;
pub use any::{Source, View};
pub use scan::Scanner;

/// The file of the state directory that holds the objects which the API server had last.
pub const OBJECTS: &str = "objects";
/// The directory of the state directory that holds what files held when they were last in order.
pub const FILES: &str = "files";

/// Removes what sources keep in the state directory.
pub fn forget(state_dir: &Path) {
    // Who never wrote it has nothing to remove.
    let _ = std::fs::remove_file(state_dir.join(OBJECTS));
    let _ = std::fs::remove_dir_all(state_dir.join(FILES));
}

/// How many changes a piece holds.
const PIECE: usize = 128;
/// How many pieces wait for whoever takes them.
const PIECES: usize = 2;

/// Who reads a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A node agent.
    Node,
    /// A waypoint.
    Waypoint,
}

impl Reader {
    /// Whether it has a use for objects of `kind`. What says how requests are routed would cost every node its memory.
    pub fn reads(self, kind: Kind) -> bool {
        match self {
            Self::Node => !kind.is_of_waypoints(),
            Self::Waypoint => true,
        }
    }
}

/// The next piece of what a source has to say.
#[derive(Debug, Default)]
pub struct Update {
    /// At most a few hundred changes.
    pub changes: Vec<Change>,
    /// Whether the objects are complete with this piece, and so what they say may be acted on.
    pub settled: bool,
    /// Whether everything there is could be read, so that what is not there is gone.
    pub whole: bool,
    /// Why objects may be missing even so, if any are.
    pub incomplete: Option<Arc<str>>,
}

/// A directory whose `*.yaml` and `*.yml` files hold objects, watched for changes.
#[derive(Debug)]
pub struct Directory {
    updates: mpsc::Receiver<Update>,
    status: state::Receiver<Arc<Status>>,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there, or not a directory, or may not be read.
    #[error("{path}: {error}: name a directory of YAML files that can be read")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The thread that watches it cannot be started.
    #[error("cannot start the thread that watches {path}: {error}")]
    Thread {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

/// What is known of a directory and its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What is wrong with the directory as a whole; its objects stay as they were.
    pub problem: Option<String>,
    /// Its files, by name.
    pub files: Vec<FileStatus>,
}

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileStatus {
    /// Its path.
    pub path: String,
    /// How many objects it holds.
    pub objects: usize,
    /// Whether those are from before it was broken.
    pub stale: bool,
    /// Whether it was broken when the agent started, and nothing is known of what it held before.
    pub unknown: bool,
    /// What is wrong with it.
    pub mistakes: Vec<Mistake>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileError {
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub mistake: Mistake,
}

impl fmt::Display for FileError {
    /// `policies.yaml:12:3: what is wrong and the cure`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path, self.mistake)
    }
}

impl Status {
    /// Whether everything there is could be read.
    pub fn is_whole(&self) -> bool {
        let is_broken = |file: &FileStatus| file.mistakes.iter().any(|mistake| mistake.gravity == Gravity::Broken);
        self.problem.is_none() && !self.files.iter().any(is_broken)
    }

    /// Why objects may be missing that never were read, if any are.
    pub fn incomplete(&self) -> Option<Arc<str>> {
        let file = self.files.iter().find(|file| file.unknown)?;
        let mistake = file.mistakes.iter().find(|mistake| mistake.gravity == Gravity::Broken)?;
        Some(format!("{}:{mistake}", file.path).into())
    }

    /// Everything that is wrong with files.
    pub fn errors(&self) -> impl Iterator<Item = FileError> + '_ {
        self.files.iter().flat_map(|file| {
            let with_path = |mistake: &Mistake| FileError { path: file.path.clone(), mistake: mistake.clone() };
            file.mistakes.iter().map(with_path)
        })
    }
}

impl Directory {
    /// Starts to read and watch `path`. Files within may be broken; the directory has to be there. What each held when
    /// it was last in order is kept in `last_good`, if that is given, for the next start.
    ///
    /// # Errors
    /// When it cannot be read, or no thread can be started.
    pub fn open(path: &Path, last_good: impl Into<Option<PathBuf>>) -> Result<Self, SourceError> {
        std::fs::read_dir(path).map_err(|error| SourceError::Unreadable { path: path.to_owned(), error })?;
        let (updates_to, updates) = mpsc::channel(PIECES);
        let (status_to, status) = state::channel(Arc::default());
        let mut scanner = Scanner::new(path.to_owned());
        if let Some(last_good) = last_good.into() {
            scanner = scanner.keeping(LastGood::new(last_good));
        }
        watch::spawn(path.to_owned(), scanner, updates_to, status_to)
            .map_err(|error| SourceError::Thread { path: path.to_owned(), error })?;
        Ok(Self { updates, status })
    }

    /// The next piece. The first settled one completes all objects that are there, and comes once every file has been
    /// read, even if there are none. `None` once the thread that watches has ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// What is known of the files, for the admin endpoint.
    pub fn status(&self) -> state::Receiver<Arc<Status>> {
        self.status.clone()
    }
}
