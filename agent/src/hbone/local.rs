//! Streams that end in this process rather than at a socket: bytes to and from someone who reads and writes them here,
//! as a waypoint does.
//!
//! ```text
//! hyper, say | LocalStream | pipe | End | the tunnel's task
//! ```
//!
//! Either way a byte is copied once into the pipe, where it waits for the other side, and once out of it. What comes
//! from the peer waits in pieces that hold it and little more; the stream's window bounds them, since it is returned
//! only as they are read. What goes to the peer waits in a ring of at most [`OUTGOING`] bytes. Neither holds memory
//! while it is empty.
//!
//! | HTTP/2 | in this process |
//! |---|---|
//! | END_STREAM from the peer | the reader finds the end, behind what came before |
//! | RST_STREAM from the peer | [`ConnectionReset`](std::io::ErrorKind::ConnectionReset), for the reader behind what came before |
//! | RST_STREAM with NO_ERROR or CANCEL | the end for the reader, [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) for the writer |
//! | `poll_shutdown` | END_STREAM, behind what was written before |
//! | dropped before `poll_shutdown` | RST_STREAM with CONNECT_ERROR: what was cut off must not look whole |
//! | dropped after it, before the peer's end | what was written, END_STREAM, then RST_STREAM with NO_ERROR |

mod end;
mod opening;
mod pipe;
mod stream;

pub use end::End;
pub use opening::{ConnectError, Connecting, Unanswered, offer};
pub use stream::LocalStream;

pub(super) use opening::{Decision, connect};

#[cfg(test)]
mod tests;

/// Bytes on their way to the peer that one stream holds before its writer has to wait.
pub const OUTGOING: usize = 64 << 10;

/// Bytes that a reader takes before the tunnel is told, unless it waits for them. Far less than half a window, which
/// is what the peer is told of.
const REPORT_AT: usize = 256 << 10;
