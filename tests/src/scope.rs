//! One run's names, and the collection of everything that carries them.
//!
//! Every namespace, cgroup, directory and pin is called `cvt-PID-N-…` after the process that made it. Guards remove
//! theirs when dropped; Ctrl-C removes all of this process's; what a `kill -9` leaves is collected by the next run,
//! which takes only names whose process is dead.

#![allow(unsafe_code, reason = "atexit(3) has no safe binding")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::cgroup::{self, Cgroup};
use crate::netns::{self, Netns};

const MARK: &str = "cvt-";
const BPFFS: &str = "/sys/fs/bpf";

/// The names of one topology or test: everything made through it shares a prefix no other run uses.
#[derive(Debug, Clone)]
pub struct Scope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prefix: String,
    directory: PathBuf,
    pins: PathBuf,
}

/// Scopes alive in this process: the first moves the process to its own cgroup, the last moves it back.
static ALIVE: Mutex<Alive> = Mutex::new(Alive { scopes: 0, came_from: None });

struct Alive {
    scopes: u32,
    came_from: Option<PathBuf>,
}

impl Scope {
    /// A fresh prefix. The first scope of a process collects what dead runs left and starts to watch for Ctrl-C.
    ///
    /// # Errors
    /// Without root, or without a cgroup2 mount.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        static FIRST: Once = Once::new();
        if !Uid::effective().is_root() {
            bail!("network namespaces and eBPF need root: run this as root");
        }
        FIRST.call_once(|| {
            collect(|owner| !Path::new("/proc").join(owner.to_string()).exists());
            watch_for_ctrl_c();
        });
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if alive.scopes == 0 {
            alive.came_from = Some(cgroup::move_to_own(&own_cgroup()?)?);
        }
        alive.scopes += 1;
        drop(alive);

        let prefix = format!("{MARK}{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self(Arc::new(Inner { pins: Path::new(BPFFS).join(&prefix), prefix, directory })))
    }

    /// Has everything of this process removed when it exits, for what is kept in a `static`: that is never dropped.
    pub fn remove_at_exit() {
        static ONCE: Once = Once::new();
        extern "C" fn remove_all() {
            remove_own();
        }
        ONCE.call_once(|| {
            // SAFETY: the function it registers takes and returns nothing, as atexit(3) wants it. It never fails with
            // fewer than 32 registrations.
            unsafe { libc::atexit(remove_all) };
        });
    }

    /// What every name in this scope starts with.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// A network namespace, `/run/netns/PREFIX-NAME`.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        Netns::create(self, &format!("{}-{name}", self.0.prefix))
    }

    /// A cgroup2 directory; `path` may have several components. Threads may enter it one by one.
    pub fn cgroup(&self, path: &str) -> Result<Cgroup> {
        Cgroup::create(self, &own_cgroup()?.join("self"), &Path::new(&self.0.prefix).join(path))
    }

    /// Where an agent starts: not below a pod's cgroup, nor in one that only threads may enter.
    pub fn agent_cgroup(&self, name: &str) -> Result<Cgroup> {
        Cgroup::create_domain(self, &own_cgroup()?.join(format!("{}-{name}", self.0.prefix)))
    }

    /// A directory for this scope's files.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// A directory on bpffs for pins. It need not exist yet; bpffs is mounted if it was not.
    pub fn pin_directory(&self, name: &str) -> Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        if !mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
            nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount bpffs at {BPFFS}"))?;
        }
        Ok(self.0.pins.join(name))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir_all(&self.pins);
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        alive.scopes -= 1;
        if alive.scopes == 0
            && let Some(came_from) = alive.came_from.take()
            && let Ok(own) = own_cgroup()
        {
            cgroup::move_back(&came_from);
            cgroup::remove_tree(&own);
        }
    }
}

fn own_cgroup() -> Result<PathBuf> {
    Ok(cgroup::mount_point()?.join(format!("{MARK}{}", process::id())))
}

/// The process a name belongs to.
fn owner(name: &OsStr) -> Option<u32> {
    let rest = name.to_str()?.strip_prefix(MARK)?;
    rest.split('-').next()?.parse().ok()
}

/// Removes everything whose owner `is_gone`. Best effort: another run may be collecting the same.
fn collect(is_gone: impl Fn(u32) -> bool) {
    let named = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter(|entry| owner(&entry.file_name()).is_some_and(&is_gone)).map(|entry| entry.path()).collect()
    };
    for path in named(Path::new(netns::DIRECTORY)) {
        netns::remove(&path);
    }
    for path in cgroup::mount_point().map(|root| named(&root)).unwrap_or_default() {
        cgroup::kill(&path);
        cgroup::remove_tree(&path);
    }
    for path in cgroup::hierarchies().iter().flat_map(|hierarchy| named(&hierarchy.own)) {
        cgroup::remove_tree(&path);
    }
    for path in named(&std::env::temp_dir()).into_iter().chain(named(Path::new(BPFFS))) {
        let _ = fs::remove_dir_all(path);
    }
}

/// On SIGINT or SIGTERM everything of this process goes, then the process.
fn watch_for_ctrl_c() {
    thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        remove_own();
        process::exit(130);
    });
}

/// Removes everything of this process, which goes back to the cgroup it came from first.
fn remove_own() {
    let came_from = ALIVE.lock().unwrap_or_else(PoisonError::into_inner).came_from.take();
    if let Some(came_from) = came_from {
        cgroup::move_back(&came_from);
    }
    collect(|owner| owner == process::id());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner(OsStr::new("cvt-123-4-n1")), Some(123));
        assert_eq!(owner(OsStr::new("cvt-123")), Some(123));
        assert_eq!(owner(OsStr::new("cvt-x-4")), None);
        assert_eq!(owner(OsStr::new("cni-123")), None);
    }
}
