//! The TLS 1.3 record layer of an established connection (RFC 8446 §5), sealing and opening in place.
//!
//! rustls does the handshake and keeps the key schedule ([`rustls::kernel`]: the interface made for kTLS); records are
//! protected here because rustls copies every byte twice in each direction, and bulk traffic pays for it.

mod aead;

use std::ops::Range;

use rustls::ConnectionTrafficSecrets;

use self::aead::{Key, TAG_LEN};

/// Bytes before a record's payload: content type, legacy version, length.
pub const HEADER_LEN: usize = 5;
/// Bytes after a record's payload: the inner content type and the AEAD tag.
pub const TRAILER_LEN: usize = 1 + TAG_LEN;
/// The most plaintext a record carries (RFC 8446 §5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;
/// The most a protected record may hold behind its header (RFC 8446 §5.2).
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// Records after which the sending key is updated: AES-GCM is good for 2^24.5 full ones (RFC 8446 §5.5).
const KEY_UPDATE_AFTER: u64 = 1 << 24;

const APPLICATION_DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// Why records cannot be read or written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer sent something that is not a protected TLS 1.3 record.
    #[error("the peer sent a malformed TLS record")]
    Malformed,
    /// A record is larger than the protocol allows.
    #[error("the peer sent an oversized TLS record")]
    Oversized,
    /// A record's tag does not verify.
    #[error("a TLS record from the peer fails authentication")]
    Authentication,
    /// The cipher suite is not one that the tunnel negotiates.
    #[error("the connection negotiated a cipher suite that the tunnel does not use")]
    CipherSuite,
    /// The AEAD refused to seal.
    #[error("a TLS record could not be sealed")]
    Seal,
}

/// One direction's key, nonce and record counter.
struct Protection {
    key: Key,
    iv: [u8; 12],
    sequence: u64,
}

impl Protection {
    fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (key, iv) = Key::new(secrets).ok_or(RecordError::CipherSuite)?;
        Ok(Self { key, iv, sequence })
    }

    /// The nonce of the next record (RFC 8446 §5.3). Each is used once: the counter is 64 bits and keys are updated
    /// long before it wraps.
    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        nonce
    }
}

/// Seals outgoing records.
pub struct Sealer(Protection);

impl Sealer {
    /// A sealer whose next record is number `sequence`.
    ///
    /// # Errors
    /// The suite is not AES-GCM.
    pub fn new((sequence, secrets): (u64, &ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Protection::new(sequence, secrets).map(Self)
    }

    /// Seals `buffer[HEADER_LEN..][..plaintext]` in place as application data; returns the record's length, which is
    /// `plaintext` + [`HEADER_LEN`] + [`TRAILER_LEN`].
    ///
    /// # Errors
    /// The AEAD refuses: the connection cannot go on.
    pub fn seal(&mut self, buffer: &mut [u8], plaintext: usize) -> Result<usize, RecordError> {
        self.seal_as(APPLICATION_DATA, buffer, plaintext)
    }

    /// Seals a `close_notify` alert.
    pub fn close_notify(&mut self) -> Result<Vec<u8>, RecordError> {
        self.small(ALERT, &[1, 0])
    }

    /// Seals a KeyUpdate message, after which the caller installs the next key.
    pub fn key_update(&mut self) -> Result<Vec<u8>, RecordError> {
        self.small(HANDSHAKE, &[24, 0, 0, 1, 0])
    }

    /// Whether the key has protected so many records that it should be replaced.
    pub fn wants_key_update(&self) -> bool {
        self.0.sequence >= KEY_UPDATE_AFTER
    }

    fn small(&mut self, content_type: u8, message: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut record = vec![0; HEADER_LEN + message.len() + TRAILER_LEN];
        record[HEADER_LEN..][..message.len()].copy_from_slice(message);
        self.seal_as(content_type, &mut record, message.len())?;
        Ok(record)
    }

    fn seal_as(&mut self, content_type: u8, buffer: &mut [u8], plaintext: usize) -> Result<usize, RecordError> {
        let end = HEADER_LEN + plaintext;
        let total = end + TRAILER_LEN;
        if plaintext > MAX_PLAINTEXT || buffer.len() < total {
            return Err(RecordError::Seal);
        }
        let protected = (plaintext + TRAILER_LEN) as u16;
        let header = [APPLICATION_DATA, 3, 3, (protected >> 8) as u8, protected as u8];
        buffer[..HEADER_LEN].copy_from_slice(&header);
        buffer[end] = content_type;
        let nonce = self.0.next_nonce();
        let plaintext = &mut buffer[HEADER_LEN..=end];
        let tag = self.0.key.seal(nonce, header, plaintext).map_err(|_| RecordError::Seal)?;
        buffer[end + 1..total].copy_from_slice(&tag);
        Ok(total)
    }
}

/// What one record held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Application data, at this range of the buffer.
    Data(Range<usize>),
    /// Handshake messages, at this range.
    Handshake(Range<usize>),
    /// An alert: its description byte (0 is `close_notify`).
    Alert(u8),
}

/// Opens incoming records.
pub struct Opener(Protection);

impl Opener {
    /// An opener whose next record is number `sequence`.
    ///
    /// # Errors
    /// The suite is not AES-GCM.
    pub fn new((sequence, secrets): (u64, &ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Protection::new(sequence, secrets).map(Self)
    }

    /// Opens the record that starts at `buffer[at]`, in place. Returns where the record ends and what it held;
    /// `None` if it has not arrived completely.
    ///
    /// # Errors
    /// The bytes are not a record that the peer's key protects: the connection cannot go on.
    pub fn open(&mut self, buffer: &mut [u8], at: usize) -> Result<Option<(usize, Opened)>, RecordError> {
        let Some(&[content_type, major, minor, high, low]) = buffer.get(at..at + HEADER_LEN) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // After the handshake nothing is sent in the clear, and a tag and a content type are always there.
        if content_type != APPLICATION_DATA || major != 3 || length < TRAILER_LEN {
            return Err(RecordError::Malformed);
        }
        if length > MAX_CIPHERTEXT {
            return Err(RecordError::Oversized);
        }
        let body = at + HEADER_LEN;
        let end = body + length;
        let Some(protected) = buffer.get_mut(body..end) else {
            return Ok(None);
        };
        let nonce = self.0.next_nonce();
        let header = [content_type, major, minor, high, low];
        let opened = self.0.key.open(nonce, header, protected).map_err(|_| RecordError::Authentication)?;
        // The inner plaintext is content, its type, and any number of zeros as padding.
        let last = opened.iter().rposition(|b| *b != 0).ok_or(RecordError::Malformed)?;
        if last > MAX_PLAINTEXT {
            return Err(RecordError::Oversized);
        }
        let content = body..body + last;
        let opened = match opened[last] {
            APPLICATION_DATA => Opened::Data(content),
            HANDSHAKE if last > 0 => Opened::Handshake(content),
            ALERT if last == 2 => Opened::Alert(opened[1]),
            _ => return Err(RecordError::Malformed),
        };
        Ok(Some((end, opened)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        // AeadKey can only be made from 32 bytes, so these are AES-256 keys.
        let secrets = || ConnectionTrafficSecrets::Aes256Gcm {
            key: rustls::crypto::cipher::AeadKey::from([7; 32]),
            iv: rustls::crypto::cipher::Iv::from([9; 12]),
        };
        (Sealer::new((3, &secrets())).unwrap(), Opener::new((3, &secrets())).unwrap())
    }

    fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
        let mut record = vec![0; HEADER_LEN + plaintext.len() + TRAILER_LEN];
        record[HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
        assert_eq!(sealer.seal(&mut record, plaintext.len()).unwrap(), record.len());
        record
    }

    #[test]
    fn what_is_sealed_opens_in_order() {
        let (mut sealer, mut opener) = pair();
        let mut wire = sealed(&mut sealer, b"one");
        wire.extend(sealed(&mut sealer, b"two"));
        let (end, first) = opener.open(&mut wire, 0).unwrap().unwrap();
        let Opened::Data(range) = first else { panic!("{first:?}") };
        assert_eq!(&wire[range], b"one");
        let (end, second) = opener.open(&mut wire, end).unwrap().unwrap();
        let Opened::Data(range) = second else { panic!("{second:?}") };
        assert_eq!(&wire[range], b"two");
        assert_eq!(end, wire.len());
    }

    #[test]
    fn a_partial_record_waits_without_using_up_its_nonce() {
        let (mut sealer, mut opener) = pair();
        let mut wire = sealed(&mut sealer, b"whole");
        for length in 0..wire.len() {
            assert_eq!(opener.open(&mut wire[..length].to_vec(), 0), Ok(None));
        }
        assert!(opener.open(&mut wire, 0).unwrap().is_some());
    }

    #[test]
    fn a_changed_bit_is_refused() {
        let (mut sealer, mut opener) = pair();
        let mut wire = sealed(&mut sealer, b"payload");
        wire[HEADER_LEN + 2] ^= 1;
        assert_eq!(opener.open(&mut wire, 0), Err(RecordError::Authentication));
    }

    #[test]
    fn records_in_the_clear_and_oversized_ones_are_refused() {
        let (_, mut opener) = pair();
        assert_eq!(opener.open(&mut [22, 3, 3, 0, 40], 0), Err(RecordError::Malformed));
        assert_eq!(opener.open(&mut [23, 3, 3, 0, 4], 0), Err(RecordError::Malformed));
        assert_eq!(opener.open(&mut [23, 3, 3, 0xff, 0xff], 0), Err(RecordError::Oversized));
    }

    #[test]
    fn alerts_and_key_updates_are_told_apart_from_data() {
        let (mut sealer, mut opener) = pair();
        let mut wire = sealer.close_notify().unwrap();
        assert_eq!(opener.open(&mut wire, 0).unwrap().unwrap().1, Opened::Alert(0));
        let mut wire = sealer.key_update().unwrap();
        assert!(matches!(opener.open(&mut wire, 0).unwrap().unwrap().1, Opened::Handshake(r) if r.len() == 5));
    }
}
