//! Where the programs of Kubernetes are, and how old they are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The programs of one Kubernetes release.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
    minor: u32,
}

impl Programs {
    /// Those of `$KUBEBUILDER_ASSETS`, else those that `cargo xtask setup` put into the build directory.
    ///
    /// # Errors
    /// When there is no kube-apiserver in either.
    pub fn find() -> Result<Self> {
        let given = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let directory = given.or_else(built).context(
            "kube-apiserver is not there: cargo xtask setup builds it, or set KUBEBUILDER_ASSETS to a directory that \
             has it",
        )?;
        let mut found = Self { directory, minor: 0 };
        let output = Command::new(found.path("kube-apiserver")?).arg("--version").output()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        found.minor = minor(&version).with_context(|| format!("kube-apiserver --version says {version:?}"))?;
        Ok(found)
    }

    /// Where one of them is.
    ///
    /// # Errors
    /// When it is not there; `$KUBEBUILDER_ASSETS` as envtest fills it has no controllers and no kubelet.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        let path = self.directory.join(program);
        path.is_file().then_some(path).with_context(|| format!("{} has no {program}", self.directory.display()))
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The release's second number: 20 of 1.20.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// EndpointSlices became v1 in 1.21.
    pub(super) fn lacks_endpoint_slices(&self) -> bool {
        self.minor < 21
    }

    /// Both families at once are the rule from 1.21 on, and behind a feature gate before.
    pub(super) fn gates_dual_stack(&self) -> bool {
        self.minor < 21
    }
}

fn built() -> Option<PathBuf> {
    let this = env::current_exe().ok()?;
    let found = this.ancestors().map(|directory| directory.join("tools/kube/bin"));
    found.into_iter().find(|directory| directory.join("kube-apiserver").is_file())
}

/// `Kubernetes v1.20.2`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("Kubernetes v1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_known_by_its_second_number() {
        assert_eq!(minor("Kubernetes v1.20.2"), Some(20));
        assert_eq!(minor("Kubernetes v1.34.1-rc.0"), Some(34));
        assert_eq!(minor("etcd Version: 3.4.23"), None);
    }
}
