//! What `culvertctl` and Helm make of the chart: the same objects, applied to a real API server, changed and taken away
//! again.
//!
//! The control plane is whole but for a kubelet: [`kubelet::Kubelet`] says of pods what one would.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

#[path = "install/helm.rs"]
mod helm;
#[path = "install/kubelet.rs"]
mod kubelet;
#[path = "install/life.rs"]
mod life;
#[path = "install/permissions.rs"]
mod permissions;
#[path = "install/rendering.rs"]
mod rendering;
#[path = "install/waypoint.rs"]
mod waypoint;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use culvert_tests::Scope;
use culvert_tests::agent::binary;
use culvert_tests::kube::ControlPlane;
use culvert_tests::process::{Finished, Process};

pub(crate) const LIMIT: Duration = Duration::from_secs(120);
pub(crate) const NAMESPACE: &str = "culvert-system";
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/culvert");

/// The cluster, for one test at a time: what is installed is the cluster's.
pub(crate) fn cluster() -> (&'static ControlPlane, MutexGuard<'static, ()>) {
    static CLUSTER: OnceLock<ControlPlane> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = CLUSTER.get_or_init(|| {
        Scope::remove_at_exit();
        let mut started = ControlPlane::start_with_controllers().unwrap();
        started.start_scheduler().unwrap();
        started
    });
    (cluster, turn)
}

/// How `culvertctl` ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}\n{}{}", self.code, self.out, self.err)
    }
}

impl From<Finished> for Said {
    fn from(finished: Finished) -> Self {
        Self { code: finished.status.code().unwrap_or(-1), out: finished.stdout, err: finished.stderr }
    }
}

/// Runs `culvertctl` to its end.
pub(crate) fn ctl(kubeconfig: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(binary("culvertctl").unwrap());
    command.args(arguments).env("KUBECONFIG", kubeconfig);
    Process::spawn("culvertctl", command).unwrap().finish(LIMIT).unwrap().into()
}

/// What `cargo xtask setup` has put into the build directory.
pub(crate) fn tool(path: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let found = this.ancestors().map(|directory| directory.join("tools").join(path)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("tools/{path} is not there: cargo xtask setup"))
}
