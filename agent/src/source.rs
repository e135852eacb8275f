//! Where objects come from: a directory of YAML files or the Kubernetes API server, either of which is watched.
//!
//! They come in pieces, so that no more of them is in memory at a time than it takes: an object is many times what the
//! mesh keeps of it.
//!
//! What objects mean is none of this module's business: it hands on which are there, which have changed and which are
//! gone. The one thing that it decides is what to do about a file that cannot be read: its objects stay as they were.

mod any;
pub mod kube;
mod scan;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::Object;
use culvert_api::yaml::{Gravity, Mistake};
use culvert_core::mesh::Change;
use serde::Serialize;
use tokio::sync::{mpsc, watch as state};

pub use any::{Source, View};
pub use scan::Scanner;

/// How many changes a piece holds.
const PIECE: usize = 128;
/// How many pieces wait for whoever takes them.
const PIECES: usize = 2;

/// The next piece of what a source has to say.
#[derive(Debug, Default)]
pub struct Update {
    /// At most a few hundred changes.
    pub changes: Vec<Change>,
    /// Whether the objects are complete with this piece, and so what they say may be acted on.
    pub settled: bool,
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

    /// Everything that is wrong with files.
    pub fn errors(&self) -> impl Iterator<Item = FileError> + '_ {
        self.files.iter().flat_map(|file| {
            let with_path = |mistake: &Mistake| FileError { path: file.path.clone(), mistake: mistake.clone() };
            file.mistakes.iter().map(with_path)
        })
    }
}

impl Directory {
    /// Starts to read and watch `path`. Files within may be broken; the directory has to be there.
    ///
    /// # Errors
    /// When it cannot be read, or no thread can be started.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        std::fs::read_dir(path).map_err(|error| SourceError::Unreadable { path: path.to_owned(), error })?;
        let (updates_to, updates) = mpsc::channel(PIECES);
        let (status_to, status) = state::channel(Arc::default());
        watch::spawn(path.to_owned(), updates_to, status_to)
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

/// Reads the objects of a directory once. What is wrong with single files is said beside what the others hold.
///
/// # Errors
/// When the directory cannot be read.
pub fn load_directory(path: &Path) -> Result<(Vec<Object>, Vec<FileError>), SourceError> {
    std::fs::read_dir(path).map_err(|error| SourceError::Unreadable { path: path.to_owned(), error })?;
    let mut scanner = Scanner::new(path.to_owned());
    let mut objects = Vec::new();
    scanner.scan(|change| {
        if let Change::Upsert(object) = change {
            objects.push(object);
        }
    });
    Ok((objects, scanner.status().errors().collect()))
}
