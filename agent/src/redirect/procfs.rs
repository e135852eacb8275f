//! A procfs of the agent's own: a container that is not privileged has `/proc/sys` read-only, whatever its capabilities.
//!
//! What such a container lacks is a mount, not the right: with `CAP_SYS_ADMIN` it may mount procfs, and a mount that is
//! attached nowhere (Linux 5.2) is seen by nobody else.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// `linux/mount.h`.
const FSOPEN_CLOEXEC: libc::c_long = 1;
const FSCONFIG_CMD_CREATE: libc::c_long = 6;
const FSMOUNT_CLOEXEC: libc::c_long = 1;

/// Writes to a file of `/proc/sys/net` in the calling thread's network namespace.
pub(super) fn write(file: &str, value: &str) -> io::Result<()> {
    match fs::write(file, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let mount = mount()?;
            let below = file.strip_prefix("/proc/").unwrap_or(file);
            fs::write(format!("/proc/self/fd/{}/{below}", mount.as_raw_fd()), value)
        }
        result => result,
    }
}

fn mount() -> io::Result<OwnedFd> {
    // SAFETY: the name is a string with its end, and the kernel keeps no pointer to it.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC) })?;
    let (none, fd) = (ptr::null::<libc::c_char>(), libc::c_long::from(context.as_raw_fd()));
    // SAFETY: this command takes neither key nor value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it takes numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) })
}

fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(returned) {
        // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
