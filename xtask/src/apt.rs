//! Debian's packages without installing them: apt with lists, sources and a cache of its own; the machine's are left
//! alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::run_quietly;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of ours.
pub(crate) struct Apt {
    state: PathBuf,
    options: Vec<OsString>,
}

impl Apt {
    /// With these sources, such as `("deb-src", "bookworm")`, from the mirrors that this machine gets Debian from; its
    /// lists are read. A security suite is left out where the machine has none.
    pub(crate) fn new(state: &Path, sources: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache"))?;
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
        let mirrors = mirrors()?;
        let mut list = String::new();
        for (kind, suite) in sources {
            let security = suite.ends_with("-security");
            let mirror = mirrors.iter().find(|(_, codename)| match security {
                true => codename.ends_with("-security"),
                false => !codename.contains('-'),
            });
            if let Some((mirror, _)) = mirror {
                list += &format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n");
            }
        }
        ensure!(!list.is_empty(), "this machine has no Debian mirror in its apt sources, or never ran apt-get update");
        let file = state.join("sources.list");
        fs::write(&file, list)?;
        let settings = [
            ("Dir::Etc::SourceList", file),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", state.join("lists")),
            ("Dir::Cache", state.join("cache")),
            // Its own user may not be able to read this directory.
            ("APT::Sandbox::User", "root".into()),
        ];
        let options = settings.into_iter().flat_map(|(name, value)| {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(value);
            ["--option".into(), setting]
        });
        let apt = Self { state: state.to_path_buf(), options: options.collect() };
        run_quietly(&mut apt.command("apt-get", &["update"])).context("cannot read Debian's package lists")?;
        Ok(apt)
    }

    /// The first package that this one depends on: the true one behind the name of a series.
    pub(crate) fn depends(&self, package: &str) -> Result<String> {
        let printed = run_quietly(&mut self.command("apt-cache", &["depends", package]))?;
        let depends = printed.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(depends.with_context(|| format!("{package} is not there, or depends on nothing"))?.to_owned())
    }

    /// Downloads packages and unpacks them below `root`.
    pub(crate) fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        let downloads = self.downloads()?;
        let mut download = self.command("apt-get", &["download"]);
        run_quietly(download.args(packages).current_dir(&downloads))?;
        for archive in fs::read_dir(&downloads)? {
            run_quietly(Command::new("dpkg-deb").arg("--extract").arg(archive?.path()).arg(root))?;
        }
        fs::remove_dir_all(downloads).context("cannot remove the downloads")
    }

    /// Downloads what a source package was made of and returns the archive of its upstream.
    pub(crate) fn upstream_source(&self, package: &str) -> Result<PathBuf> {
        let downloads = self.downloads()?;
        let mut download = self.command("apt-get", &["source", "--download-only", package]);
        run_quietly(download.current_dir(&downloads))?;
        let archive = fs::read_dir(&downloads)?.flatten().map(|entry| entry.path());
        let archive = archive.into_iter().find(|path| path.to_string_lossy().contains(".orig.tar."));
        archive.with_context(|| format!("apt-get source {package} left no upstream archive"))
    }

    fn downloads(&self) -> Result<PathBuf> {
        let directory = self.state.join("downloads");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).arg("--quiet").args(arguments);
        command
    }
}

/// Wherever this machine gets Debian from: addresses and codenames.
fn mirrors() -> Result<Vec<(String, String)>> {
    let printed = run_quietly(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(CODENAME)",
        "Created-By: Packages",
    ]))?;
    let pairs = printed.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(mirror, codename)| (mirror.to_owned(), codename.to_owned())).collect())
}
