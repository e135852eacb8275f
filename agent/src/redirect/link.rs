//! Attaching a setsockopt program: aya 0.14 can, but has no way to pin that kind of link.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// The kernel's `bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The kernel's `bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C, align(8))]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Attaches `program` to the setsockopt hook of `cgroup`.
///
/// # Errors
/// What the kernel says.
pub(super) fn attach_setsockopt(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Create {
        program: program.as_raw_fd().cast_unsigned(),
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_SETSOCKOPT,
        flags: 0,
    };
    let link = bpf(BPF_LINK_CREATE, &attributes)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Pins a link at `path`, where none may be.
///
/// # Errors
/// What the kernel says.
pub(super) fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Pin { path: path.as_ptr() as u64, fd: link.as_fd().as_raw_fd().cast_unsigned(), flags: 0 };
    bpf(BPF_OBJ_PIN, &attributes).map(drop)
}

pub(super) fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: pointer and length describe `attributes`, which is laid out as the command has it and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}
