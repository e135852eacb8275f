//! The plugin's files on the node: its binary, and its place in the primary network configuration, which is the first
//! by name that a container runtime can use.
//!
//! Every file is replaced in one step, and what was there is kept as it was written: taking the plugin out again gives
//! the original back, byte for byte.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use culvert_core::cni::{PLUGIN_TYPE, check, is_configuration, merge, unmerge};

use super::Paths;
use super::credentials::KUBECONFIG;
use super::state::MESH_CACHE;
use crate::files::{is_same, read_bounded, remove_file, write_atomically};

/// What the name of a configuration gets that was replaced by a list: no runtime reads it then.
const SAVED: &str = ".culvert-saved";
/// The largest configuration, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What became of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The configuration that holds the plugin.
    pub configuration: Option<PathBuf>,
    /// Whether anything had to be written.
    pub has_changed: bool,
    /// Configurations that no runtime can use, and why: they are left alone.
    pub unusable: Vec<String>,
}

/// Why the plugin cannot be installed, or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory.
    #[error("{path}: {error}; see that the agent has the node's directory mounted there, writable")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is nothing to chain behind.
    #[error(
        "{0}: no network configuration that can be used is there: install the node's CNI plugin first, or name its \
         directory with --cni-conf-dir (Helm value cni.confDir)"
    )]
    NoConfiguration(PathBuf),
}

/// What a file was when it was looked at: inode, size, and the time of its last change. The same again, it need not be
/// read.
pub type Seen = (u64, u64, i64, i64);

/// Puts this very program where the runtime looks for plugins, unless it is there; `seen` is what was found there last
/// time. Returns whether it had to.
///
/// # Errors
/// The directory cannot be written, or the program not read.
pub fn install_binary(paths: &Paths, seen: &mut Option<Seen>) -> Result<bool, InstallError> {
    const OWN: &str = "/proc/self/exe";
    let target = binary(paths);
    let failed = |error| InstallError::File { path: target.clone(), error };
    let look = || fs::metadata(&target).ok().map(|meta| (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()));
    if seen.is_some() && *seen == look() {
        return Ok(false);
    }
    let is_there = is_same(Path::new(OWN), &target).unwrap_or(false);
    if !is_there {
        fs::create_dir_all(&paths.cni_bin_dir).map_err(failed)?;
        fs::File::open(OWN).and_then(|own| write_atomically(&target, own, 0o755)).map_err(failed)?;
    }
    *seen = look();
    Ok(!is_there)
}

/// Puts `entry` into the primary configuration, and takes the plugin out of others.
///
/// # Errors
/// There is no configuration, or it cannot be written.
pub fn install_configuration(paths: &Paths, entry: &str) -> Result<Installed, InstallError> {
    let mut installed = Installed::default();
    for path in configurations(&paths.cni_conf_dir)? {
        let failed = |error| InstallError::File { path: path.clone(), error };
        let bytes = match read_bounded(&path, MAX_BYTES) {
            Ok(bytes) => bytes,
            // Removed since the directory was read; or unreadable, as it is for the runtime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                installed.unusable.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        if let Err(error) = check(&bytes) {
            installed.unusable.push(format!("{}: {error}", path.display()));
            continue;
        }
        if let Some(chosen) = &installed.configuration {
            // A list that was written a moment ago may be in the place of one that the directory had before.
            if *chosen != path
                && let Ok(Some(text)) = unmerge(&bytes)
            {
                give_back(&path, &text).map_err(failed)?;
                installed.has_changed = true;
            }
            continue;
        }
        let Ok(merged) = merge(&bytes, entry) else { continue };
        installed.configuration = Some(if merged.became_list {
            let list = path.with_extension("conflist");
            set_aside(&list, &path).map_err(failed)?;
            write_atomically(&list, merged.text.as_bytes(), mode(&path)).map_err(failed)?;
            fs::rename(&path, saved(&path)).map_err(failed)?;
            installed.has_changed = true;
            list
        } else {
            if merged.text.as_bytes() != bytes {
                replace(&path, &merged.text).map_err(failed)?;
                installed.has_changed = true;
            }
            path
        });
    }
    match installed.configuration {
        Some(_) => Ok(installed),
        None if installed.unusable.is_empty() => Err(InstallError::NoConfiguration(paths.cni_conf_dir.clone())),
        None => Ok(installed),
    }
}

/// Takes the plugin out of every configuration, then removes its files and the state that an agent kept: nothing of
/// Culvert's is left there.
///
/// # Errors
/// The first file that cannot be written; the others were.
pub fn uninstall(paths: &Paths) -> Result<(), InstallError> {
    let mut result = Ok(());
    let mut attempt = |path: &Path, done: io::Result<()>| {
        if let (Err(error), Ok(())) = (done, &result) {
            result = Err(InstallError::File { path: path.to_owned(), error });
        }
    };
    // A node whose directory of configurations is gone has none of ours either.
    for path in configurations(&paths.cni_conf_dir).unwrap_or_default() {
        let Ok(Some(text)) = read_bounded(&path, MAX_BYTES).map(|bytes| unmerge(&bytes).ok().flatten()) else {
            continue;
        };
        attempt(&path, give_back(&path, &text));
    }
    let files = [binary(paths), paths.state_dir.join(KUBECONFIG), paths.state_dir.join(MESH_CACHE)];
    for file in files.into_iter().chain([paths.cni_socket.clone()]) {
        attempt(&file, remove_file(&file));
    }
    crate::source::forget(&paths.state_dir);
    let sandboxes = paths.state_dir.join(super::sandboxes::DIRECTORY);
    match fs::remove_dir_all(&sandboxes) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => attempt(&sandboxes, Err(error)),
        _ => {}
    }
    result
}

fn binary(paths: &Paths) -> PathBuf {
    paths.cni_bin_dir.join(PLUGIN_TYPE)
}

/// The configurations of a directory, in the order in which runtimes take them.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = fs::read_dir(directory).map_err(|error| InstallError::File { path: directory.to_owned(), error })?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_configuration))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    Ok(found)
}

/// Saves a list that is where one is to be made of `single`, unless it is itself one that was made of it.
fn set_aside(list: &Path, single: &Path) -> io::Result<()> {
    let is_ours = || read_bounded(list, MAX_BYTES).is_ok_and(|bytes| matches!(unmerge(&bytes), Ok(Some(_))));
    if !list.exists() || (saved(single).exists() && is_ours()) {
        return Ok(());
    }
    fs::rename(list, saved(list))
}

/// Leaves in the place of `path`, from which the plugin was taken out as `text`, what was there before.
fn give_back(path: &Path, text: &str) -> io::Result<()> {
    let singles = ["conf", "json"].map(|extension| path.with_extension(extension));
    let Some(single) = singles.iter().find(|single| saved(single).exists()) else {
        return replace(path, text);
    };
    fs::rename(saved(single), single)?;
    if saved(path).exists() { fs::rename(saved(path), path) } else { remove_file(path) }
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SAVED);
    name.into()
}

/// Writes where a link leads, not in the link's place.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    write_atomically(&path, text.as_bytes(), mode(&path))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o600, |meta| meta.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;

    const ENTRY: &str = r#"{"type":"culvert-cni"}"#;
    const LIST: &str = "{\n  \"name\": \"k\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";

    /// A node's paths, below a directory of the test's own.
    fn paths(root: &TempDir) -> Paths {
        let paths = Paths {
            cni_bin_dir: root.join("bin"),
            cni_conf_dir: root.join("net.d"),
            cni_socket: root.join("cni.sock"),
            state_dir: root.join("state"),
        };
        fs::create_dir_all(&paths.cni_conf_dir).unwrap();
        fs::create_dir_all(&paths.state_dir).unwrap();
        paths
    }

    fn files(directory: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn the_first_configuration_that_can_be_used_gets_the_plugin_and_gives_it_back() {
        let root = TempDir::new();
        let paths = paths(&root);
        let write = |name: &str, text: &str| fs::write(paths.cni_conf_dir.join(name), text).unwrap();
        assert!(matches!(install_configuration(&paths, ENTRY), Err(InstallError::NoConfiguration(_))));
        write("00-broken.conflist", "{");
        write("10-first.conflist", LIST);
        write("20-second.conflist", LIST);
        fs::set_permissions(paths.cni_conf_dir.join("10-first.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = files(&paths.cni_conf_dir);

        let installed = install_configuration(&paths, ENTRY).unwrap();
        assert_eq!(installed.configuration, Some(paths.cni_conf_dir.join("10-first.conflist")));
        assert!(installed.has_changed && installed.unusable.len() == 1, "{installed:?}");
        assert!(!install_configuration(&paths, ENTRY).unwrap().has_changed);
        assert_eq!(mode(&paths.cni_conf_dir.join("10-first.conflist")), 0o640);

        // Another plugin takes over: ours goes with it.
        write("05-new.conflist", LIST);
        let installed = install_configuration(&paths, ENTRY).unwrap();
        assert_eq!(installed.configuration, Some(paths.cni_conf_dir.join("05-new.conflist")));
        fs::remove_file(paths.cni_conf_dir.join("05-new.conflist")).unwrap();
        assert_eq!(files(&paths.cni_conf_dir), before);

        install_configuration(&paths, ENTRY).unwrap();
        uninstall(&paths).unwrap();
        assert_eq!(files(&paths.cni_conf_dir), before);
        uninstall(&paths).unwrap();
    }

    #[test]
    fn a_single_configuration_makes_room_for_a_list_and_comes_back() {
        let root = TempDir::new();
        let paths = paths(&root);
        let single = "{\"name\": \"k\", \"type\": \"bridge\"}";
        fs::write(paths.cni_conf_dir.join("10-bridge.conf"), single).unwrap();
        let installed = install_configuration(&paths, ENTRY).unwrap();
        assert_eq!(installed.configuration, Some(paths.cni_conf_dir.join("10-bridge.conflist")));
        let names: Vec<_> = files(&paths.cni_conf_dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["10-bridge.conf.culvert-saved", "10-bridge.conflist"]);
        assert!(!install_configuration(&paths, ENTRY).unwrap().has_changed);
        uninstall(&paths).unwrap();
        assert_eq!(files(&paths.cni_conf_dir), [("10-bridge.conf".to_owned(), single.to_owned())]);
    }

    #[test]
    fn a_list_of_the_same_name_as_a_single_configuration_is_kept_and_comes_back() {
        let root = TempDir::new();
        let paths = paths(&root);
        let single = "{\"name\": \"k\", \"type\": \"bridge\"}";
        fs::write(paths.cni_conf_dir.join("10-x.conf"), single).unwrap();
        fs::write(paths.cni_conf_dir.join("10-x.conflist"), LIST).unwrap();
        let before = files(&paths.cni_conf_dir);
        let list = paths.cni_conf_dir.join("10-x.conflist");
        let is_installed = || fs::read_to_string(&list).unwrap().contains("culvert-cni");

        assert_eq!(install_configuration(&paths, ENTRY).unwrap().configuration, Some(list.clone()));
        assert!(is_installed(), "{:?}", files(&paths.cni_conf_dir));
        assert!(!install_configuration(&paths, ENTRY).unwrap().has_changed);
        // Someone writes the single one again: the list that was made of it is not what there was before.
        fs::write(paths.cni_conf_dir.join("10-x.conf"), single).unwrap();
        install_configuration(&paths, ENTRY).unwrap();
        assert!(is_installed());
        uninstall(&paths).unwrap();
        assert_eq!(files(&paths.cni_conf_dir), before);

        // Another plugin takes over: then, too, both are as they were.
        install_configuration(&paths, ENTRY).unwrap();
        fs::write(paths.cni_conf_dir.join("05-new.conflist"), LIST).unwrap();
        install_configuration(&paths, ENTRY).unwrap();
        fs::remove_file(paths.cni_conf_dir.join("05-new.conflist")).unwrap();
        assert_eq!(files(&paths.cni_conf_dir), before);
    }

    #[test]
    fn configurations_that_cannot_be_used_are_named_and_left_alone() {
        let root = TempDir::new();
        let paths = paths(&root);
        fs::write(paths.cni_conf_dir.join("10-a.conflist"), "not json").unwrap();
        let before = files(&paths.cni_conf_dir);
        let installed = install_configuration(&paths, ENTRY).unwrap();
        assert_eq!(installed.configuration, None);
        assert!(installed.unusable[0].contains("10-a.conflist: not JSON"), "{:?}", installed.unusable);
        assert_eq!(files(&paths.cni_conf_dir), before);
        fs::remove_dir_all(&paths.cni_conf_dir).unwrap();
        let error = install_configuration(&paths, ENTRY).unwrap_err().to_string();
        assert!(error.contains("net.d") && error.contains("mounted"), "{error}");
    }

    #[test]
    fn the_binary_is_this_program_and_is_written_once() {
        let root = TempDir::new();
        let paths = paths(&root);
        let mut seen = None;
        assert!(install_binary(&paths, &mut seen).unwrap());
        assert!(!install_binary(&paths, &mut seen).unwrap());
        assert!(!install_binary(&paths, &mut None).unwrap());
        let there = binary(&paths);
        assert_eq!(mode(&there), 0o755);
        fs::write(&there, "older").unwrap();
        assert!(install_binary(&paths, &mut seen).unwrap());
        assert_eq!(fs::read(&there).unwrap(), fs::read("/proc/self/exe").unwrap());
        uninstall(&paths).unwrap();
        assert_eq!(files(&paths.cni_bin_dir), []);
    }
}
