//! Attaching the programs and pinning their links.

mod needs;
mod object;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSock, CgroupSockAddr, CgroupSockopt, SkLookup, SockOps};
use aya::sys::SyscallError;
use culvert_core::address::NetnsCookie;
use nix::fcntl::FlockArg;

use super::error::LoadError;
use super::link;
use super::netns::Netns;
use super::pins::{Pins, UNFINISHED};
use needs::{ADDRESS, ARRIVE, CREATE_SOCKET, HOST_SOCKET, SET_OPTION};
pub(super) use object::{Constants, Maps};
use object::{load, object_error, program};

/// Loads every program once, to know that this kernel can, and attaches those that serve the whole node.
pub(super) fn attach_node(
    pins: &Pins,
    constants: Constants,
    pods: &Path,
    cgroup_mount: &Path,
) -> Result<Maps, LoadError> {
    // Agents that start together would take each other's unfinished pins away.
    let _alone = pins.lock(FlockArg::LockExclusive).map_err(pin_error(pins))?;
    let mut ebpf = load(pins, constants, NetnsCookie(0)).map_err(object_error)?;
    // The one that needs the newest kernel first: nothing is attached when it cannot be loaded.
    let arrive: &mut SkLookup = program(&mut ebpf, ARRIVE.program)?;
    arrive.load().map_err(|error| ARRIVE.lacking(&error))?;
    let pods = open(pods)?;
    for needs in ADDRESS {
        let program: &mut CgroupSockAddr = program(&mut ebpf, needs.program)?;
        let attached = program.load().and_then(|()| program.attach(&pods, CgroupAttachMode::Single));
        let link = attached.and_then(|id| program.take_link(id)).map_err(|error| needs.lacking(&error))?;
        pin(link.try_into().map_err(object_error)?, &pins.links().join(needs.program)).map_err(pin_error(pins))?;
    }
    let socket: &mut CgroupSock = program(&mut ebpf, CREATE_SOCKET.program)?;
    let attached = socket.load().and_then(|()| socket.attach(&pods, CgroupAttachMode::Single));
    let link = attached.and_then(|id| socket.take_link(id)).map_err(|error| CREATE_SOCKET.lacking(&error))?;
    pin(link.try_into().map_err(object_error)?, &pins.links().join(CREATE_SOCKET.program)).map_err(pin_error(pins))?;

    let option: &mut CgroupSockopt = program(&mut ebpf, SET_OPTION.program)?;
    option.load().map_err(|error| SET_OPTION.lacking(&error))?;
    let fd = option.fd().map_err(|error| SET_OPTION.lacking(&error))?;
    let option = link::attach_setsockopt(fd.as_fd(), pods.as_fd())
        .map_err(|io_error| SET_OPTION.lacking(&SyscallError { call: "bpf_link_create", io_error }.into()))?;
    replace(&pins.links().join(SET_OPTION.program), |new| link::pin(&option, new)).map_err(pin_error(pins))?;

    let host: &mut SockOps = program(&mut ebpf, HOST_SOCKET.program)?;
    let everyone = open(cgroup_mount)?;
    let attached = host.load().and_then(|()| host.attach(&everyone, CgroupAttachMode::Single));
    let link = attached.and_then(|id| host.take_link(id)).map_err(|error| HOST_SOCKET.lacking(&error))?;
    pin(link.try_into().map_err(object_error)?, &pins.links().join(HOST_SOCKET.program)).map_err(pin_error(pins))?;
    Maps::take(&mut ebpf)
}

/// Attaches an instance of the lookup program to a pod's network namespace and pins it, in place of an earlier one.
pub(super) fn attach_pod(pins: &Pins, constants: Constants, netns: &Netns) -> io::Result<()> {
    let mut ebpf = load(pins, constants, netns.cookie()).map_err(io::Error::other)?;
    let arrive: &mut SkLookup = program(&mut ebpf, ARRIVE.program).map_err(io::Error::other)?;
    let attached = arrive.load().and_then(|()| arrive.attach(netns.as_fd()));
    let link = attached.and_then(|id| arrive.take_link(id)).map_err(io::Error::other)?;
    pin(link.into(), &pins.pod(netns.cookie()))
}

/// Detaches it. Fine if it is not there.
pub(super) fn detach_pod(pins: &Pins, cookie: NetnsCookie) -> io::Result<()> {
    match fs::remove_file(pins.pod(cookie)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Pins the new link over the old, which is attached until then: at no moment is neither.
fn pin(link: FdLink, path: &Path) -> io::Result<()> {
    replace(path, |new| link.pin(new).map(drop).map_err(io::Error::other))
}

fn replace(path: &Path, pin: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // No dot: bpffs keeps such names for itself.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!("{name}{UNFINISHED}"));
    let _ = fs::remove_file(&new);
    pin(&new)?;
    fs::rename(&new, path)
}

fn open(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|error| LoadError::Cgroup { path: path.to_path_buf(), reason: error.to_string() })
}

fn pin_error(pins: &Pins) -> impl FnOnce(io::Error) -> LoadError {
    let path = pins.links();
    move |error| LoadError::Pins { path, reason: error.to_string() }
}
