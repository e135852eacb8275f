//! Debian's kernel packages, fetched by apt with lists and a cache of our own: the machine's are left alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{directory, output_of};
use crate::run::run_quietly;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// As in `linux-image-VERSION`.
    pub(super) version: String,
    pub(super) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// A module, decompressed.
    pub(super) fn module(&self, path: &str) -> Result<Vec<u8>> {
        let plain = self.modules.join("kernel").join(path);
        if plain.is_file() {
            return fs::read(&plain).with_context(|| format!("cannot read {}", plain.display()));
        }
        output_of(Command::new("xz").args(["--decompress", "--stdout"]).arg(plain.with_extension("ko.xz")))
    }
}

/// The kernel of a suite; downloaded unless it is there.
pub(super) fn kernel(suite: &str, series: &str) -> Result<Kernel> {
    let place = directory().join(series);
    if let Some(kernel) = unpacked(&place) {
        return Ok(kernel);
    }
    eprintln!("kernels: fetching {series} from {suite}");
    let apt = Apt::new(&place.join("apt"), suite)?;
    run_quietly(&mut apt.command("apt-get", &["update"])).context("cannot read Debian's package lists")?;
    let depends = run_quietly(&mut apt.command("apt-cache", &["depends", PACKAGE]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("{suite} has no {PACKAGE}"))?;
    run_quietly(apt.command("apt-get", &["download", package]).current_dir(&place))?;
    let archive = fs::read_dir(&place)?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.with_context(|| format!("apt-get download {package} left no package"))?;
    run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(place.join("root")))?;
    fs::remove_file(archive)?;
    unpacked(&place).with_context(|| format!("{package} holds no kernel"))
}

fn unpacked(place: &Path) -> Option<Kernel> {
    let root = place.join("root");
    let images = fs::read_dir(root.join("boot")).ok()?.flatten();
    let image = images.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/vmlinuz-"))?;
    let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
    let modules = root.join("lib/modules").join(&version);
    modules.is_dir().then_some(Kernel { version, image, modules })
}

struct Apt {
    options: Vec<OsString>,
}

impl Apt {
    fn new(state: &Path, suite: &str) -> Result<Self> {
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache"))?;
        // Wherever this machine gets Debian from.
        let mirrors = output_of(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
        ]))?;
        let mirrors = String::from_utf8_lossy(&mirrors).into_owned();
        let mirror = mirrors.lines().filter_map(|line| line.split_once(' '));
        let mirror = mirror.into_iter().find(|(_, codename)| !codename.contains('-')).map(|(uri, _)| uri);
        let mirror =
            mirror.context("this machine has no Debian mirror in its apt sources, or never ran apt-get update")?;
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
        let list = state.join("sources.list");
        fs::write(&list, format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        let settings = [
            ("Dir::Etc::SourceList", list),
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
        Ok(Self { options: options.collect() })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).arg("--quiet").args(arguments);
        command
    }
}
