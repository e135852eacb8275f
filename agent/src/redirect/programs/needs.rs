//! What the programs need of the kernel, and what is said of one that lacks it.

use aya::programs::ProgramError;

use crate::redirect::error::LoadError;

/// What a program needs that old kernels lack.
pub(super) struct Needs {
    pub(super) program: &'static str,
    feature: &'static str,
    since: &'static str,
}

pub(super) const ADDRESS: [Needs; 4] = [
    Needs { program: "connect_v4", feature: "SO_MARK in cgroup connect hooks", since: "5.8" },
    Needs { program: "connect_v6", feature: "SO_MARK in cgroup connect hooks", since: "5.8" },
    Needs { program: "send_v4", feature: "the netns cookie in cgroup sendmsg hooks", since: "5.7" },
    Needs { program: "send_v6", feature: "the netns cookie in cgroup sendmsg hooks", since: "5.7" },
];
pub(super) const CREATE_SOCKET: Needs =
    Needs { program: "create_socket", feature: "the netns cookie in cgroup socket hooks", since: "5.7" };
pub(super) const SET_OPTION: Needs =
    Needs { program: "set_option", feature: "the netns cookie in cgroup setsockopt hooks", since: "5.15" };
pub(super) const HOST_SOCKET: Needs =
    Needs { program: "host_socket", feature: "the netns cookie in sock_ops", since: "5.15" };
pub(super) const ARRIVE: Needs =
    Needs { program: "arrive", feature: "the ingress interface in sk_lookup", since: "5.17" };

impl Needs {
    /// The error of a program that the kernel does not load or attach.
    pub(super) fn lacking(&self, error: &ProgramError) -> LoadError {
        let (reason, errno) = match error {
            // The verifier's verdict is at the end of its log.
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let is_statistic =
                    |line: &str| ["processed", "stack depth", "verification time"].iter().any(|s| line.starts_with(s));
                let last = log.lines().rev().find(|line| !line.is_empty() && !is_statistic(line));
                (format!("{io_error}: {}", last.unwrap_or("the verifier said nothing")), io_error.raw_os_error())
            }
            ProgramError::SyscallError(error) => {
                (format!("{error}: {}", error.io_error), error.io_error.raw_os_error())
            }
            error => (error.to_string(), None),
        };
        // The verifier answers EACCES, a lack of privilege is EPERM.
        if errno == Some(libc::EPERM) {
            return LoadError::Privilege(reason);
        }
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        LoadError::Kernel {
            kernel: kernel.unwrap_or_default(),
            program: self.program,
            feature: self.feature,
            since: self.since,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    fn said(needs: &Needs, errno: i32) -> String {
        let io_error = io::Error::from_raw_os_error(errno);
        needs.lacking(&SyscallError { call: "bpf_link_create", io_error }.into()).to_string()
    }

    #[test]
    fn what_a_kernel_lacks_is_one_line_with_the_version_that_has_it_and_what_to_do() {
        for needs in ADDRESS.iter().chain([&CREATE_SOCKET, &SET_OPTION, &HOST_SOCKET, &ARRIVE]) {
            let line = said(needs, libc::EINVAL);
            let parts =
                [needs.program, needs.feature, needs.since, "run the node on such a kernel", "Invalid argument"];
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_lack_of_privilege_is_not_taken_for_a_lack_of_the_kernel() {
        let line = said(&ARRIVE, libc::EPERM);
        assert!(line.contains("needs root") && !line.contains("since Linux"), "{line}");
    }
}
