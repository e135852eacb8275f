//! This machine, or the node whose root directory is mounted somewhere, as `kubectl debug node` does at `/host`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Finding, KERNEL, Kernel, kernel};

/// Judges the node whose root directory is `root`. The kernel is this machine's, which a debug container shares.
pub(crate) fn judge(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut found = Vec::new();
    let release = read("proc/sys/kernel/osrelease");
    let (major, minor) = KERNEL;
    if kernel(release.trim()) == Kernel::TooOld {
        found.push(Finding::error(
            "the kernel",
            format!("Linux {}, and {major}.{minor} is needed", release.trim()),
            "upgrade it",
        ));
    }
    // The node's own mounts: a container's are others.
    let mounts = read("proc/1/mounts");
    let mounted = |kind: &str| {
        let mut fields = mounts.lines().map(|line| line.split(' '));
        fields.find_map(|mut fields| {
            let path = fields.nth(1)?;
            (fields.next() == Some(kind)).then(|| path.to_owned())
        })
    };
    match mounted("cgroup2") {
        None => found.push(Finding::error(
            "cgroups",
            "no cgroup v2 file system is mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified",
        )),
        Some(cgroups) => found.extend(pods_cgroup(root, &cgroups)),
    }
    if mounted("bpf").is_none() {
        found.push(Finding::error(
            "/sys/fs/bpf",
            "no bpffs is mounted, so that programs would go with the agent",
            "mount -t bpf bpf /sys/fs/bpf, as systemd does",
        ));
    }
    found.extend(network_configuration(&root.join("etc/cni/net.d")));
    found
}

/// The directory that holds the pods, under either driver's name.
fn pods_cgroup(root: &Path, mount: &str) -> Option<Finding> {
    let mount = Path::new(mount);
    let is_there = |name: &str| root.join(mount.strip_prefix("/").unwrap_or(mount)).join(name).is_dir();
    if is_there("kubepods.slice") {
        return None;
    }
    Some(match is_there("kubepods") {
        true => Finding::warning(
            "cgroups",
            "the kubelet's cgroup driver is cgroupfs",
            format!("--set node.cgroup={}", mount.join("kubepods").display()),
        ),
        false => Finding::warning(
            "cgroups",
            format!("neither kubepods.slice nor kubepods is below {}", mount.display()),
            "start a pod on the node; if none appears, --set node.cgroup to the cgroup v2 directory of its pods",
        ),
    })
}

/// The first by name counts, as for container runtimes.
fn network_configuration(directory: &Path) -> Option<Finding> {
    const CURE: &str = "install a CNI plugin, or --set cni.confDir to where its configuration is";
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_configuration = |path: &Path| {
        path.extension().is_some_and(|ext| ["conflist", "conf", "json"].iter().any(|known| ext == *known))
    };
    let mut files: Vec<_> = entries.filter(|path| is_configuration(path)).collect();
    files.sort();
    let about = || "/etc/cni/net.d".to_owned();
    let Some(first) = files.first() else {
        return Some(Finding::warning(about(), "it holds no network configuration", CURE));
    };
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    let text = fs::read_to_string(first).unwrap_or_default();
    if serde_json::from_str::<Value>(&text).is_err() {
        return Some(Finding::error(
            about(),
            format!("{name}, the first by name, is not JSON"),
            "mend it or remove it",
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's root, of the few files that are looked at.
    struct Root(std::path::PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("culvertctl-check-{}-{name}", std::process::id()));
            let root = Self(path);
            root.write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
            root.write("proc/1/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n");
            root.write("sys/fs/cgroup/kubepods.slice/x", "");
            root.write("etc/cni/net.d/10-a.conflist", "{}");
            root
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn about(&self) -> Vec<String> {
            judge(&self.0).into_iter().map(|finding| format!("{}: {}", finding.about, finding.problem)).collect()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_node_that_has_everything_is_no_finding() {
        assert_eq!(Root::new("good").about(), [""; 0]);
    }

    #[test]
    fn what_a_node_lacks_is_told() {
        let root = Root::new("bad");
        root.write("proc/sys/kernel/osrelease", "5.10.0\n");
        root.write("proc/1/mounts", "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n");
        root.write("etc/cni/net.d/05-b.conf", "{");
        let about = root.about().join("\n");
        for expected in ["Linux 5.10.0", "no cgroup v2", "no bpffs", "05-b.conf, the first by name, is not JSON"] {
            assert!(about.contains(expected), "{expected}: {about}");
        }
    }

    #[test]
    fn the_other_cgroup_driver_needs_a_value() {
        let root = Root::new("cgroupfs");
        fs::rename(root.0.join("sys/fs/cgroup/kubepods.slice"), root.0.join("sys/fs/cgroup/kubepods")).unwrap();
        assert_eq!(judge(&root.0)[0].cure, "--set node.cgroup=/sys/fs/cgroup/kubepods");
    }
}
