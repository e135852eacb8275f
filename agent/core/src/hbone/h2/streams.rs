//! The open streams of a connection and their windows.

/// The largest window (RFC 9113 §6.9.1).
pub(super) const MAX_WINDOW: i64 = 0x7fff_ffff;

/// How much the peer may still send, and what it is owed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    /// What the peer may send before it hears from us.
    open: u32,
    /// What the application took since the last WINDOW_UPDATE.
    credit: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self { open: size, credit: 0 }
    }

    /// Accounts for `n` received bytes; `false` if the peer sent more than it may.
    pub(super) fn take(&mut self, n: u32) -> bool {
        match self.open.checked_sub(n) {
            Some(open) => {
                self.open = open;
                true
            }
            None => false,
        }
    }

    /// Accounts for `n` bytes taken by the application, in a window of `size`: the increment to send, if it is worth a
    /// frame, which is once half the window is due.
    pub(super) fn release(&mut self, n: usize, size: u32) -> Option<u32> {
        // Never more than was received, whatever the caller says.
        let room = size.saturating_sub(self.open);
        self.credit = u32::try_from(n).unwrap_or(u32::MAX).saturating_add(self.credit).min(room);
        if self.credit < (size / 2).max(1) {
            return None;
        }
        let increment = std::mem::take(&mut self.credit);
        self.open += increment;
        Some(increment)
    }
}

/// One stream that is not closed in both directions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// What we may send; negative after the peer shrank its initial window (RFC 9113 §6.9.2).
    pub(super) send_window: i32,
    pub(super) receive: ReceiveWindow,
    /// We sent END_STREAM.
    pub(super) local_closed: bool,
    /// The peer sent END_STREAM.
    pub(super) remote_closed: bool,
    /// The final response was sent (server) or has come (client).
    pub(super) answered: bool,
}

/// Adds to a send window; `false`, and nothing is changed, if it exceeds [`MAX_WINDOW`].
pub(super) fn grow(window: &mut i32, by: i64) -> bool {
    let sum = i64::from(*window) + by;
    match i32::try_from(sum) {
        Ok(sum) => {
            *window = sum;
            true
        }
        Err(_) => false,
    }
}

/// Streams by number. Numbers only grow, so a sorted vector needs no hashing, and holds one stream in 96 bytes.
#[derive(Debug, Default)]
pub(super) struct Streams(Vec<Stream>);

impl Streams {
    pub(super) fn find(&mut self, id: u32) -> Option<&mut Stream> {
        let index = self.index(id)?;
        self.0.get_mut(index)
    }

    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        self.0.get(self.index(id)?)
    }

    /// Adds a stream whose number is above all others.
    pub(super) fn push(&mut self, stream: Stream) {
        debug_assert!(self.0.last().is_none_or(|last| last.id < stream.id));
        self.0.push(stream);
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        self.index(id).map(|index| self.0.remove(index))
    }

    /// Removes the last stream if its number is above `id`.
    pub(super) fn pop_above(&mut self, id: u32) -> Option<Stream> {
        self.0.pop_if(|stream| stream.id > id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.0.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn heap_size(&self) -> usize {
        self.0.capacity() * size_of::<Stream>()
    }

    /// Gives back room that a burst of streams took.
    pub(super) fn shrink(&mut self) {
        if self.0.capacity() > 4 * self.0.len().max(4) {
            self.0.shrink_to(4);
        }
    }

    fn index(&self, id: u32) -> Option<usize> {
        match self.0.as_slice() {
            // The usual tunnel connection: nothing to search.
            [only] => (only.id == id).then_some(0),
            all => all.binary_search_by_key(&id, |stream| stream.id).ok(),
        }
    }
}
