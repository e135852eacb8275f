//! The settings by which a pod's answers carry the mark of what they answer, and so find the way back over `lo`.
//!
//! `tcp_fwmark_accept` is for connections that are accepted. `fwmark_reflect` (Linux 3.16) is for what the kernel
//! answers on its own: without it the reset of a port where nobody listens leaves for the client itself, and the proxy
//! that dialled in its name waits in vain.

use std::fs;
use std::io;

use super::netns::Netns;

/// Each is 0 or 1 by default and fits a byte, which is how the values before enrolment are kept, in this order.
const FILES: [&str; 3] =
    ["/proc/sys/net/ipv4/tcp_fwmark_accept", "/proc/sys/net/ipv4/fwmark_reflect", "/proc/sys/net/ipv6/fwmark_reflect"];

/// What they are in `netns`, a byte each.
pub(super) fn read(netns: &Netns) -> io::Result<u32> {
    netns.enter(|| {
        let mut values = [0; 4];
        for (value, file) in values.iter_mut().zip(FILES) {
            match fs::read_to_string(file) {
                Ok(text) => *value = text.trim().parse().map_err(io::Error::other)?,
                Err(error) => absent_without_ipv6(file, error)?,
            }
        }
        Ok(u32::from_le_bytes(values))
    })?
}

/// Those that are 0.
pub(super) fn off(netns: &Netns) -> io::Result<Vec<&'static str>> {
    let values = netns.enter(|| FILES.map(|file| (file, fs::read_to_string(file))))?;
    Ok(values
        .into_iter()
        .filter(|(_, text)| text.as_ref().is_ok_and(|t| t.trim() == "0"))
        .map(|(file, _)| file)
        .collect())
}

/// Turns them on.
pub(super) fn set(netns: &Netns) -> io::Result<()> {
    write(netns, [1; 4])
}

/// Makes them what [`read`] found.
pub(super) fn restore(netns: &Netns, before: u32) -> io::Result<()> {
    write(netns, before.to_le_bytes())
}

fn write(netns: &Netns, values: [u8; 4]) -> io::Result<()> {
    netns.enter(|| {
        for (value, file) in values.iter().zip(FILES) {
            fs::write(file, value.to_string()).or_else(|error| absent_without_ipv6(file, error))?;
        }
        Ok(())
    })?
}

fn absent_without_ipv6(file: &str, error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound && file.contains("ipv6") { Ok(()) } else { Err(error) }
}
