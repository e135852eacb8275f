//! HPACK (RFC 7541): a full, bounded decoder, and an encoder that keeps no state.
//!
//! Our own, because the crates that offer it bound neither the dynamic table's memory nor what a header block may
//! expand to, and allocate for every field.

mod dynamic_table;
mod huffman;
mod static_table;

use dynamic_table::DynamicTable;

/// The dynamic table size that holds until SETTINGS say otherwise; we never say otherwise.
pub(super) const DEFAULT_TABLE_SIZE: u32 = 4096;

/// The header compression state is lost: a connection error of type COMPRESSION_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field or string ends before it is complete.
    #[error("a header block ends inside a field")]
    Truncated,
    /// An integer above what any length or index may be.
    #[error("an HPACK integer is too large")]
    Integer,
    /// An index beyond both tables, or 0.
    #[error("an HPACK index points nowhere")]
    Index,
    /// A Huffman string with EOS in it, or wrong padding.
    #[error("an HPACK string is not valid Huffman code")]
    Huffman,
    /// A size update above the limit, or after the first field.
    #[error("an HPACK table size update is out of place")]
    SizeUpdate,
}

/// The peer's compression state.
#[derive(Debug, Default)]
pub struct Decoder {
    table: DynamicTable,
}

impl Decoder {
    /// Reads one whole header block and hands each field to `field`, in order. Work is bounded by the block's length:
    /// a field out of a table is not copied, so that no block expands to more than `field` makes of it.
    ///
    /// # Errors
    /// [`DecodeError`]; the decoder must not be used again.
    pub fn decode(&mut self, mut block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), DecodeError> {
        let (mut name_buffer, mut value_buffer) = (Vec::new(), Vec::new());
        let mut seen_field = false;
        while let Some(&first) = block.first() {
            match first {
                0x80.. => {
                    let (name, value) = self.entry(integer(&mut block, 7)?)?;
                    field(name, value);
                }
                0x20..=0x3f => {
                    let size = integer(&mut block, 5)?;
                    if seen_field || size > DEFAULT_TABLE_SIZE {
                        return Err(DecodeError::SizeUpdate);
                    }
                    self.table.resize(size as usize);
                    continue;
                }
                _ => {
                    let indexing = first >= 0x40;
                    let index = integer(&mut block, if indexing { 6 } else { 4 })?;
                    let name = match index {
                        0 => string(&mut block, &mut name_buffer)?,
                        _ => {
                            // Copied, as inserting the field may evict the entry that names it.
                            name_buffer.clear();
                            name_buffer.extend_from_slice(self.entry(index)?.0);
                            &name_buffer
                        }
                    };
                    let value = string(&mut block, &mut value_buffer)?;
                    field(name, value);
                    if indexing {
                        self.table.insert(name, value);
                    }
                }
            }
            seen_field = true;
        }
        Ok(())
    }

    /// Bytes of memory held besides the struct itself.
    pub fn heap_size(&self) -> usize {
        self.table.heap_size()
    }

    fn entry(&self, index: u32) -> Result<(&[u8], &[u8]), DecodeError> {
        let index = (index as usize).checked_sub(1).ok_or(DecodeError::Index)?;
        match static_table::ENTRIES.get(index) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => self.table.get(index - static_table::ENTRIES.len()).ok_or(DecodeError::Index),
        }
    }
}

/// An integer with a prefix of `bits` bits (RFC 7541 §5.1), up to 2^28.
fn integer(block: &mut &[u8], bits: u32) -> Result<u32, DecodeError> {
    let mut next = || {
        let (&byte, rest) = block.split_first().ok_or(DecodeError::Truncated)?;
        *block = rest;
        Ok(u32::from(byte))
    };
    let prefix = (1 << bits) - 1;
    let mut value = next()? & prefix;
    if value < prefix {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Integer)
}

/// A string literal (RFC 7541 §5.2), borrowed from the block if it is plain, else decoded into `buffer`.
fn string<'r, 'b: 'r>(block: &mut &'b [u8], buffer: &'r mut Vec<u8>) -> Result<&'r [u8], DecodeError> {
    let huffman = block.first().is_some_and(|b| b & 0x80 != 0);
    let len = integer(block, 7)? as usize;
    let (text, rest) = block.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *block = rest;
    if !huffman {
        return Ok(text);
    }
    buffer.clear();
    huffman::decode(text, buffer)?;
    Ok(buffer)
}

/// Our compression state: none. Fields are written as static indexes and plain literals, which costs the peer no
/// memory and either side no time; on a tunnel, headers are a few hundred bytes once.
#[derive(Debug, Default)]
pub struct Encoder {
    table: PeerTable,
}

/// What the peer's decoder believes about the dynamic table that we do not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PeerTable {
    /// It has the default size.
    #[default]
    Default,
    /// The peer made it smaller, and must be told that we know (RFC 7541 §4.2).
    Shrunk,
    /// We have told it that the size is 0, which suits every later setting.
    Empty,
}

impl Encoder {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn peer_table_size(&mut self, size: u32) {
        if self.table == PeerTable::Default && size < DEFAULT_TABLE_SIZE {
            self.table = PeerTable::Shrunk;
        }
    }

    /// Starts a header block; its fields follow by [`field`].
    pub fn start_block(&mut self, out: &mut Vec<u8>) {
        if self.table == PeerTable::Shrunk {
            out.push(0x20);
            self.table = PeerTable::Empty;
        }
    }
}

/// Writes one field. The name must be lower case.
pub fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    match static_table::find(name, value) {
        Some((index, true)) => return put_integer(out, 0x80, 7, index),
        Some((index, false)) => put_integer(out, 0, 4, index),
        None => {
            out.push(0);
            put_string(out, name);
        }
    }
    put_string(out, value);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let prefix = (1usize << bits) - 1;
    if value < prefix {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | prefix as u8);
    let mut rest = value - prefix;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests;
