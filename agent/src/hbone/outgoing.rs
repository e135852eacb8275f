//! Building TLS records around HTTP/2 frames without moving the payload.
//!
//! An application's bytes are read by one `readv` into the places they will be sent from, with gaps for the frame and
//! record headers before and the tags behind; records are then sealed in place, and everything goes out in one write.
//!
//! ```text
//! | record header | frame header | payload ...                 | type, tag | record header | frame header | ...
//! |       5       |      9       | up to 16384 - 9             |     17    |
//! ```

use std::io::{self, IoSliceMut};

use super::app::App;
use super::record::{HEADER_LEN, MAX_PLAINTEXT, RecordError, Sealer, TRAILER_LEN};

/// Bytes of an HTTP/2 frame header (RFC 9113 §4.1).
const FRAME_HEADER_LEN: usize = 9;
/// Room below which another record is started rather than the open one filled up.
const MIN_PAYLOAD: usize = 1024;
/// Records that one read fills at the most.
pub(super) const MAX_SEGMENTS: usize = 16;

/// What reading from an application gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// That many bytes were framed; `filled` if there may be more.
    Data {
        /// Bytes of payload.
        length: usize,
        /// Whether every place offered was used.
        filled: bool,
    },
    /// The application will send no more.
    Eof,
    /// Nothing there yet.
    Blocked,
    /// No room in the buffer.
    Full,
}

/// Records under construction in a borrowed buffer.
pub(super) struct Outgoing<'a> {
    buffer: &'a mut [u8],
    sealer: &'a mut Sealer,
    /// Where the open record starts; everything before is sealed.
    record: usize,
    /// Where its next plaintext byte goes.
    cursor: usize,
}

impl<'a> Outgoing<'a> {
    /// Starts in an empty buffer.
    pub(super) fn new(buffer: &'a mut [u8], sealer: &'a mut Sealer) -> Self {
        Self { buffer, sealer, record: 0, cursor: HEADER_LEN }
    }

    /// Appends frames, as far as there is room; returns how many bytes were taken.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> Result<usize, RecordError> {
        let mut taken = 0;
        while !bytes.is_empty() {
            let room = self.room();
            if room == 0 {
                if !self.next_record()? {
                    break;
                }
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer[self.cursor..][..now.len()].copy_from_slice(now);
            self.cursor += now.len();
            taken += now.len();
            bytes = later;
        }
        Ok(taken)
    }

    /// Reads from `app` up to `limit` bytes into at most `segments` frames of at most `max_frame` bytes. `frame` makes
    /// the header of each frame from its length.
    ///
    /// # Errors
    /// The application's end failed (inner), or sealing did (outer).
    pub(super) fn read_from(
        &mut self,
        app: &App,
        limit: usize,
        max_frame: usize,
        segments: usize,
        mut frame: impl FnMut(usize) -> [u8; FRAME_HEADER_LEN],
    ) -> Result<io::Result<Read>, RecordError> {
        if self.room() < FRAME_HEADER_LEN + MIN_PAYLOAD && !self.next_record()? {
            return Ok(Ok(Read::Full));
        }
        let lengths = self.plan(limit, max_frame, segments);
        let offered: usize = lengths.iter().sum();
        let read = match self.scatter(app, &lengths) {
            Ok(0) => return Ok(Ok(Read::Eof)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Ok(Read::Blocked)),
            Err(error) => return Ok(Err(error)),
        };
        let mut left = read;
        for length in lengths {
            let length = length.min(left);
            let header = frame(length);
            self.buffer[self.cursor..][..FRAME_HEADER_LEN].copy_from_slice(&header);
            self.cursor += FRAME_HEADER_LEN + length;
            left -= length;
            if left == 0 {
                break;
            }
            self.next_record()?;
        }
        Ok(Ok(Read::Data { length: read, filled: read == offered }))
    }

    /// Seals what is open; returns how many bytes are ready to be written.
    pub(super) fn finish(mut self) -> Result<usize, RecordError> {
        self.seal()?;
        Ok(self.record)
    }

    /// Plaintext bytes that still fit in the open record.
    fn room(&self) -> usize {
        let record_end = self.record + HEADER_LEN + MAX_PLAINTEXT;
        record_end.min(self.buffer.len().saturating_sub(TRAILER_LEN)).saturating_sub(self.cursor)
    }

    /// Seals the open record and opens the next; `false` if the buffer has no room for one worth having.
    fn next_record(&mut self) -> Result<bool, RecordError> {
        self.seal()?;
        self.cursor = self.record + HEADER_LEN;
        Ok(self.room() >= FRAME_HEADER_LEN + MIN_PAYLOAD)
    }

    fn seal(&mut self) -> Result<(), RecordError> {
        let plaintext = self.cursor.saturating_sub(self.record + HEADER_LEN);
        if plaintext > 0 {
            self.record += self.sealer.seal(&mut self.buffer[self.record..], plaintext)?;
            self.cursor = self.record;
        }
        Ok(())
    }

    /// The payload lengths to offer: the rest of the open record, then whole records.
    fn plan(&self, limit: usize, max_frame: usize, segments: usize) -> smallvec::SmallVec<[usize; MAX_SEGMENTS]> {
        let mut lengths = smallvec::SmallVec::new();
        let mut start = self.cursor;
        let mut room = self.room();
        let mut left = limit;
        while left > 0 && lengths.len() < segments.min(MAX_SEGMENTS) && room > FRAME_HEADER_LEN {
            let length = (room - FRAME_HEADER_LEN).min(left).min(max_frame);
            lengths.push(length);
            left -= length;
            // The next payload only lies in the next record if this one is full: a short one would leave a gap.
            if length < room - FRAME_HEADER_LEN {
                break;
            }
            start += room + TRAILER_LEN + HEADER_LEN;
            room = self.buffer.len().saturating_sub(start + TRAILER_LEN).min(MAX_PLAINTEXT);
        }
        lengths
    }

    /// One `readv` into the payload places of `lengths`.
    fn scatter(&mut self, app: &App, lengths: &[usize]) -> io::Result<usize> {
        let mut slices: smallvec::SmallVec<[IoSliceMut<'_>; MAX_SEGMENTS]> = smallvec::SmallVec::new();
        let mut rest = &mut self.buffer[self.cursor..];
        let mut offered = 0;
        for (index, length) in lengths.iter().enumerate() {
            let gap = if index == 0 { FRAME_HEADER_LEN } else { TRAILER_LEN + HEADER_LEN + FRAME_HEADER_LEN };
            let (place, behind) = rest[gap..].split_at_mut(*length);
            slices.push(IoSliceMut::new(place));
            rest = behind;
            offered += length;
        }
        app.read(&mut slices, offered)
    }
}
