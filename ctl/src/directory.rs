//! The objects of a directory, read as the agent's file source does.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use culvert_api::yaml::{self, Gravity, Mistake, Parsed, Place};
use culvert_core::mesh::{Change, Mesh, Snapshot};

use crate::Options;

/// How many levels of directories are read, as by the agent.
const MAX_DEPTH: usize = 8;

/// What a directory holds.
pub(crate) struct Directory {
    /// The mesh that its objects make.
    pub(crate) snapshot: Arc<Snapshot>,
    /// What is wrong in its files, in their order.
    pub(crate) mistakes: Vec<(PathBuf, Mistake)>,
}

impl Directory {
    /// Reads the directory that `--config-dir` names.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) fn required(options: &Options, command: &str) -> Result<Self> {
        match &options.config_dir {
            Some(path) => Self::read(path),
            None => bail!("{command} reads a directory of YAML: give --config-dir DIR"),
        }
    }

    /// Reads a directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let files = find(path).with_context(|| format!("--config-dir {}", path.display()))?;
        let mut mistakes = Vec::new();
        let mut owners = HashMap::new();
        let mut changes = Vec::new();
        for file in files {
            let parsed = parse(&file);
            mistakes.extend(parsed.mistakes.into_iter().map(|mistake| (file.clone(), mistake)));
            for (object, place) in parsed.objects {
                match owners.entry(object.reference()) {
                    std::collections::hash_map::Entry::Vacant(free) => {
                        free.insert(file.clone());
                        changes.push(Change::Upsert(object));
                    }
                    std::collections::hash_map::Entry::Occupied(taken) => {
                        let first = taken.get().display();
                        let message = format!("{} is in {first} already, which counts: remove one", taken.key());
                        mistakes
                            .push((file.clone(), Mistake { place, gravity: Gravity::LeftOut, message, object: None }));
                    }
                }
            }
        }
        let mut mesh = Mesh::new();
        mesh.apply(changes);
        Ok(Self { snapshot: mesh.snapshot(), mistakes })
    }

    /// Refuses a directory with files that cannot be read: what they hold would be missing from every answer. What is
    /// less than that is told on standard error.
    ///
    /// # Errors
    /// Names the first such file, and the line.
    pub(crate) fn sound(self) -> Result<Self> {
        let broken = self.mistakes.iter().find(|(_, mistake)| mistake.gravity == Gravity::Broken);
        if let Some((path, mistake)) = broken {
            bail!("{}:{mistake}", path.display());
        }
        let found = self.mistakes.len() + self.snapshot.findings().count();
        if found > 0 {
            eprintln!("culvertctl: {found} findings in these objects: culvertctl analyze shows them");
        }
        Ok(self)
    }
}

fn parse(file: &Path) -> Parsed {
    let mut bytes = Vec::new();
    let limit = yaml::MAX_BYTES as u64 + 1;
    let is_regular = std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file());
    let opened = if is_regular { std::fs::File::open(file) } else { Err(std::io::Error::other("not a regular file")) };
    match opened.and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => yaml::parse(&bytes),
        Err(error) => {
            let message = format!("cannot be read: {error}");
            let mistake =
                Mistake { place: Place { line: 1, column: 1 }, gravity: Gravity::Broken, message, object: None };
            Parsed { objects: Vec::new(), mistakes: vec![mistake] }
        }
    }
}

/// The YAML files below a directory, sorted; hidden ones are left out.
fn find(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                if depth < MAX_DEPTH {
                    directories.push((path, depth + 1));
                }
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
