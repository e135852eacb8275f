//! How many messages of gRPC have passed (gRPC `PROTOCOL-HTTP2.md`, "Length-Prefixed-Message").

/// Counts messages, by their beginnings.
#[derive(Debug)]
pub(super) struct Messages {
    /// It is gRPC at all.
    counts: bool,
    count: u64,
    /// Bytes of the message that are to come.
    left: u64,
    /// What has come of the next one's length, and of the byte before it.
    prefix: u64,
    prefix_length: u8,
}

/// A byte of flags, and four of length.
const PREFIX: u8 = 5;

impl Messages {
    pub(super) fn new(counts: bool) -> Self {
        Self { counts, count: 0, left: 0, prefix: 0, prefix_length: 0 }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        if !self.counts {
            return;
        }
        while let Some(byte) = bytes.first() {
            if self.left > 0 {
                let now = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= now as u64;
                bytes = &bytes[now..];
                continue;
            }
            self.prefix = self.prefix << 8 | u64::from(*byte);
            self.prefix_length += 1;
            bytes = &bytes[1..];
            if self.prefix_length == PREFIX {
                self.left = self.prefix & 0xffff_ffff;
                (self.prefix, self.prefix_length) = (0, 0);
                self.count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However they are cut up.
        #[test]
        fn each_message_is_counted_once(
            lengths in proptest::collection::vec(0_usize..300, 0..10),
            cut in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            for length in &lengths {
                bytes.push(0);
                bytes.extend((*length as u32).to_be_bytes());
                bytes.extend(std::iter::repeat_n(0xff, *length));
            }
            let mut messages = Messages::new(true);
            bytes.chunks(cut).for_each(|piece| messages.see(piece));
            prop_assert_eq!(messages.count(), lengths.len() as u64);
        }
    }

    #[test]
    fn what_is_no_grpc_has_no_messages() {
        let mut messages = Messages::new(false);
        messages.see(&[0; 100]);
        assert_eq!(messages.count(), 0);
    }
}
