//! Which network namespace a running pod has: from its UID to its processes by their cgroups, and from those to
//! `/proc/PID/ns/net`.
//!
//! Every process on the node says in `/proc/PID/cgroup` where it is, under version 1 and 2 and whatever the driver, so
//! nothing needs to be known of where cgroups are mounted. A process in a pod's cgroup need not be in its network
//! namespace (`nsenter`, debuggers, nested containers), and more than one namespace may be found: the caller tries them
//! all, the one of the oldest process first, which is the sandbox's, as nothing of the pod runs before it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use culvert_core::enrolment::{is_in_container, is_in_pod};

/// How many network namespaces of one pod are tried.
const MAX_CANDIDATES: usize = 16;
/// More of a `/proc/PID/cgroup` than any kernel writes.
const MAX_CGROUP_BYTES: u64 = 64 << 10;

/// The processes of sandboxes whose sockets are not the host kernel's, by the names of their binaries.
const FOREIGN_KERNELS: [(&str, &str); 8] = [
    ("runsc", "gVisor"),
    ("runsc-sandbox", "gVisor"),
    ("runsc-gofer", "gVisor"),
    ("containerd-shim-kata-v2", "Kata Containers"),
    ("kata-runtime", "Kata Containers"),
    ("cloud-hypervisor", "Kata Containers"),
    ("firecracker", "Kata Containers"),
    ("virtiofsd", "Kata Containers"),
];
/// And by how those begin.
const FOREIGN_PREFIXES: [(&str, &str); 2] = [("qemu-system-", "Kata Containers"), ("runsc", "gVisor")];

/// How RuntimeClasses of such kernels are called, by what their projects tell to call them: `gvisor`, `runsc`, `kata`,
/// `kata-qemu`, `kata-clh`, …
const FOREIGN_CLASSES: [(&str, &str); 3] = [("gvisor", "gVisor"), ("runsc", "gVisor"), ("kata", "Kata Containers")];

/// Whose kernel a pod of this `runtimeClassName` will have, if that can be told by the name. Others are found by their
/// processes once they run.
pub(super) fn kernel_of_class(class: &str) -> Option<&'static str> {
    let is_of = |name: &str| class.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    FOREIGN_CLASSES.iter().find(|(name, _)| is_of(name)).map(|(_, whose)| *whose)
}

/// What is known of a pod that is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Its UID.
    pub(super) uid: &'a str,
    /// The IDs of its containers, as far as they are known: for nodes on which pods have no cgroup.
    pub(super) containers: &'a [String],
    /// Whether it asks for a runtime of its own, and so any of its processes may tell of another kernel. Of a pod that
    /// does not, only the oldest is believed: the names of the others are the pod's to choose.
    pub(super) has_runtime_class: bool,
}

/// What was found of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// A path to each network namespace that its processes are in, the oldest process's first.
    pub(super) netns: Vec<PathBuf>,
    /// The process that shows that its sockets are not the host kernel's, and whose it is.
    pub(super) foreign_kernel: Option<(String, &'static str)>,
}

/// Looks for a pod's processes under `proc`, where procfs is mounted. Reads a small file of every process of the node.
pub(super) fn find(proc: &Path, wanted: Wanted<'_>) -> Found {
    let mut processes: Vec<(u64, PathBuf)> = processes(proc)
        .filter(|process| {
            let text = read_bounded(&process.join("cgroup"));
            is_in_pod(&text, wanted.uid) || wanted.containers.iter().any(|id| is_in_container(&text, id))
        })
        .map(|process| (started(&process), process))
        .collect();
    processes.sort();
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for (at, (_, process)) in processes.iter().enumerate() {
        if found.foreign_kernel.is_none() && (at == 0 || wanted.has_runtime_class) {
            found.foreign_kernel = foreign_kernel(process);
        }
        let path = process.join("ns/net");
        // One that has just ended has none.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if seen.insert((meta.dev(), meta.ino())) && found.netns.len() < MAX_CANDIDATES {
            found.netns.push(path);
        }
    }
    found
}

/// The IDs of a pod's containers, as its status names them: `containerd://ID`.
pub(super) fn container_ids(pod: &culvert_api::k8s_openapi::api::core::v1::Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let ids = lists.into_iter().flatten().flatten().filter_map(|container| container.container_id.as_deref());
    ids.filter_map(|id| Some(id.split_once("://")?.1.to_owned())).take(64).collect()
}

fn processes(proc: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let is_pid = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
    entries.filter(move |entry| is_pid(&entry.file_name())).map(|entry| entry.path())
}

fn read_bounded(path: &Path) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // One that has just ended reads as nothing.
        let _ = file.take(MAX_CGROUP_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// When a process started, in ticks since boot: field 22 of `/proc/PID/stat` (proc(5)). The name before may hold
/// anything, spaces and parentheses too.
fn started(process: &Path) -> u64 {
    let stat = read_bounded(&process.join("stat"));
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(u64::MAX)
}

/// Whether the process is one by which other kernels run.
fn foreign_kernel(process: &Path) -> Option<(String, &'static str)> {
    let exe = fs::read_link(process.join("exe")).ok();
    let exe = exe.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let comm = read_bounded(&process.join("comm")).trim().to_owned();
    [exe.unwrap_or_default(), comm].into_iter().find_map(|name| {
        let by_name = FOREIGN_KERNELS.iter().find(|(known, _)| is_name(known, &name));
        let by_prefix = || FOREIGN_PREFIXES.iter().find(|(known, _)| name.starts_with(known));
        by_name.or_else(by_prefix).map(|(_, whose)| (name.clone(), *whose))
    })
}

/// Whether `name` is `known`, perhaps cut to the 15 bytes that the kernel keeps of it. `containerd-shim` is left of
/// every shim's name, runc's too, and tells nothing.
fn is_name(known: &str, name: &str) -> bool {
    const KEPT: usize = 15;
    known == name || (name.len() == KEPT && known.starts_with(name) && name != "containerd-shim")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    #[test]
    fn runtime_classes_are_known_by_the_names_that_their_projects_give_them() {
        for (class, whose) in [
            ("gvisor", Some("gVisor")),
            ("runsc-kvm", Some("gVisor")),
            ("kata", Some("Kata Containers")),
            ("kata-qemu-tdx", Some("Kata Containers")),
            ("katamaran", None),
            ("runc", None),
            ("nvidia", None),
        ] {
            assert_eq!(kernel_of_class(class), whose, "{class}");
        }
    }

    /// A procfs of files: `(pid, cgroup, start, comm, namespace)`.
    fn proc(processes: &[(u32, &str, u64, &str, &str)]) -> TempDir {
        let root = TempDir::new();
        for (pid, cgroup, start, comm, namespace) in processes {
            let process = root.join(pid.to_string());
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("cgroup"), cgroup).unwrap();
            fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
            let fields = ["0"; 18].join(" ");
            fs::write(process.join("stat"), format!("{pid} ({comm} ) S) S {fields} {start} 0 0\n")).unwrap();
            let target = root.join(namespace);
            fs::write(&target, "").unwrap();
            std::os::unix::fs::symlink(&target, process.join("ns/net")).unwrap();
        }
        fs::create_dir_all(root.join("self/ns")).unwrap();
        root
    }

    fn wanted(has_runtime_class: bool) -> Wanted<'static> {
        Wanted { uid: UID, containers: &[], has_runtime_class }
    }

    fn pod(uid: &str) -> String {
        format!("5:memory:/kubepods/burstable/pod{uid}/c1\n0::/\n")
    }

    #[test]
    fn every_namespace_of_the_pod_is_a_candidate_and_the_oldest_process_is_first() {
        let (own, other) = (pod(UID), pod("ffffffff-1111-2222-3333-444455556666"));
        let root = proc(&[
            (10, &own, 900, "nsenter", "host"),
            (11, &own, 500, "pause", "pod"),
            (12, &own, 600, "app", "pod"),
            (13, &other, 100, "pause", "other"),
            (14, "0::/\n", 1, "init", "host"),
        ]);
        let found = find(&root, wanted(false));
        assert_eq!(found.netns, [root.join("11/ns/net"), root.join("10/ns/net")]);
        assert_eq!(found.foreign_kernel, None);
        assert_eq!(find(&root, Wanted { uid: "nobody", ..wanted(false) }), Found::default());
    }

    #[test]
    fn another_kernel_is_known_by_its_oldest_process_or_by_any_where_a_runtime_was_asked_for() {
        let own = pod(UID);
        let sandbox = proc(&[(20, &own, 5, "runsc-sandbox", "pod"), (21, &own, 6, "app", "pod")]);
        let (name, whose) = find(&sandbox, wanted(false)).foreign_kernel.unwrap();
        assert_eq!((name.as_str(), whose), ("runsc-sandbox", "gVisor"));
        // A pod that calls a process of its own so is not let off.
        let forged = proc(&[(20, &own, 5, "pause", "pod"), (21, &own, 6, "qemu-system-x86", "pod")]);
        assert_eq!(find(&forged, wanted(false)).foreign_kernel, None);
        assert_eq!(find(&forged, wanted(true)).foreign_kernel.unwrap().1, "Kata Containers");
        // The kernel keeps 15 bytes of a name.
        let shim = proc(&[(20, &own, 5, "containerd-shim", "pod"), (21, &own, 9, "cloud-hyperviso", "pod")]);
        assert_eq!(find(&shim, wanted(false)).foreign_kernel, None);
        assert_eq!(find(&shim, wanted(true)).foreign_kernel.unwrap().1, "Kata Containers");
    }

    #[test]
    fn containers_lead_to_pods_that_have_no_cgroup() {
        let id = "3f9c8e7d6b5a49382716059483726150f1e2d3c4b5a697887766554433221100".to_owned();
        let root = proc(&[(30, &format!("5:memory:/{id}\n0::/\n"), 5, "app", "pod")]);
        assert_eq!(find(&root, wanted(false)), Found::default());
        let found = find(&root, Wanted { containers: &[id], ..wanted(false) });
        assert_eq!(found.netns, [root.join("30/ns/net")]);
    }

    #[test]
    fn the_ids_of_containers_come_from_the_status() {
        let pod = serde_json::json!({
            "metadata": {},
            "status": {
                "containerStatuses": [
                    {"name": "a", "containerID": "containerd://abc", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                    {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0},
                ],
                "initContainerStatuses": [
                    {"name": "i", "containerID": "cri-o://def", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                ],
            },
        });
        assert_eq!(container_ids(&serde_json::from_value(pod).unwrap()), ["abc", "def"]);
    }

    #[test]
    fn the_machines_own_processes_can_be_read() {
        let own = std::process::id();
        assert!(processes(Path::new("/proc")).any(|path| path == Path::new("/proc").join(own.to_string())));
        let process = Path::new("/proc").join(own.to_string());
        assert!(started(&process) > 0 && started(&process) < u64::MAX);
        assert!(read_bounded(&process.join("cgroup")).contains(":/"));
    }
}
