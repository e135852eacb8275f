//! Which pod a process belongs to, by the cgroups that it is in (`/proc/PID/cgroup`, cgroups(7)).
//!
//! The kubelet puts each pod into a cgroup of its own, under either hierarchy and either driver:
//! `/kubepods/burstable/podUID/CONTAINER` (cgroupfs) or
//! `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-CONTAINER.scope` (systemd,
//! where the UID's dashes are underscores). Pods of a node in a container are below a further cgroup.

/// Whether the process whose `/proc/PID/cgroup` is `text` is in the pod's cgroup, in any hierarchy.
pub fn is_in_pod(text: &str, uid: &str) -> bool {
    // The outermost counts: what is below is the pod's own, which may call it what it likes.
    paths(text).any(|path| path.split('/').find_map(pod_of).is_some_and(|found| is_same(found, uid)))
}

/// Whether the process whose `/proc/PID/cgroup` is `text` is in the container's cgroup, in any hierarchy: for nodes
/// whose kubelet makes no cgroups for pods (`--cgroups-per-qos=false`). `id` is a runtime's, such as 64 hexadecimal
/// digits; a short one is nobody's.
pub fn is_in_container(text: &str, id: &str) -> bool {
    const SHORTEST: usize = 32;
    if id.len() < SHORTEST {
        return false;
    }
    let is_container = |component: &str| {
        let name = component.strip_suffix(".scope").unwrap_or(component);
        // cri-o has a cgroup for its monitor as well, `crio-conmon-ID`, which is not in the pod.
        name.strip_suffix(id).is_some_and(|head| matches!(head, "" | "cri-containerd-" | "crio-" | "docker-"))
    };
    paths(text).any(|path| path.split('/').find(|component| component.contains(id)).is_some_and(is_container))
}

/// The cgroup's path in each hierarchy.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

/// The UID in a pod's cgroup of this name.
fn pod_of(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let (head, uid) = name.rsplit_once("pod")?;
    (head.is_empty() || head.ends_with('-')).then_some(uid).filter(|uid| !uid.is_empty())
}

fn is_same(found: &str, uid: &str) -> bool {
    let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
    found.len() == uid.len() && found.bytes().map(dash).eq(uid.bytes().map(dash))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";
    const ID: &str = "3f9c8e7d6b5a49382716059483726150f1e2d3c4b5a697887766554433221100";

    #[test]
    fn every_layout_of_cgroups_names_the_pod() {
        for text in [
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_1111_2222_3333_444455556666.slice/cri-containerd-3f9c.scope\n",
            "0::/kubepods.slice/kubepods-pod0a1b2c3d_1111_2222_3333_444455556666.slice/crio-3f9c.scope\n",
            "0::/kubepods/besteffort/pod0a1b2c3d-1111-2222-3333-444455556666/3f9c\n",
            "12:memory:/kubepods/pod0a1b2c3d-1111-2222-3333-444455556666/3f9c\n1:name=systemd:/\n0::/\n",
            "4:cpu,cpuacct:/kubepods/burstable/pod0a1b2c3d-1111-2222-3333-444455556666/3f9c\n0::/user.slice\n",
            "0::/../../kubepods-besteffort-pod0a1b2c3d_1111_2222_3333_444455556666.slice/cri-containerd-3f9c.scope",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0a1b2c3d_1111_2222_3333_444455556666.slice/cri-containerd-3f9c.scope",
            "0::/kubepods/pod0a1b2c3d-1111-2222-3333-444455556666",
        ] {
            assert!(is_in_pod(text, UID), "{text}");
        }
    }

    #[test]
    fn other_processes_are_not_the_pods() {
        for text in [
            "",
            "0::/\n",
            "nonsense",
            "0::/system.slice/pod.service",
            "0::/kubepods/pod",
            "0::/kubepods/burstable/pod0a1b2c3d-1111-2222-3333-444455556667/3f9c",
            "0::/kubepods/burstable/xpod0a1b2c3d-1111-2222-3333-444455556666/3f9c",
            // Another pod that made a cgroup of this name below its own.
            "0::/kubepods/podffffffff-1111-2222-3333-444455556666/3f9c/pod0a1b2c3d-1111-2222-3333-444455556666",
        ] {
            assert!(!is_in_pod(text, UID), "{text}");
        }
    }

    #[test]
    fn containers_are_known_by_their_id_where_pods_have_no_cgroup() {
        for path in [
            format!("/{ID}"),
            format!("/k8s.io/{ID}"),
            format!("/system.slice/cri-containerd-{ID}.scope"),
            format!("/machine.slice/crio-{ID}.scope"),
        ] {
            assert!(is_in_container(&format!("0::{path}\n"), ID), "{path}");
        }
        for path in [format!("/crio-conmon-{ID}.scope"), format!("/{}", &ID[..63]), "/".to_owned(), format!("/x{ID}")] {
            assert!(!is_in_container(&format!("0::{path}\n"), ID), "{path}");
        }
        assert!(!is_in_container("0::/abc", "abc"), "too short to be told apart");
        assert!(!is_in_container("0::/", ""));
    }
}
