//! The Huffman code of RFC 7541 Appendix B.
//!
//! The code is canonical: codes of one length are consecutive, in the order of their symbols, so that the lengths
//! alone define it and every table below follows from them at compile time.

use super::DecodeError;

/// The code length of each symbol; 256 is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const MAX_LENGTH: usize = 30;

/// Every symbol that text is made of has a code this short or shorter, and is found by one look-up.
const SHORT: u32 = 9;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The first code, aligned to the left of 32 bits.
    first: u32,
    /// Where its symbol is in [`Code::symbols`].
    start: u16,
    count: u16,
}

struct Code {
    rows: [Row; MAX_LENGTH + 1],
    /// Symbols by length, then value.
    symbols: [u16; 257],
    /// By the next [`SHORT`] bits: the symbol in the low byte, its length above; 0 if the code is longer.
    short: [u16; 1 << SHORT],
}

static CODE: Code = build();

const fn build() -> Code {
    let mut code = Code {
        rows: [Row { first: 0, start: 0, count: 0 }; MAX_LENGTH + 1],
        symbols: [0; 257],
        short: [0; 1 << SHORT],
    };
    let (mut next, mut placed, mut length) = (0u64, 0, 1);
    while length <= MAX_LENGTH {
        let shift = 32 - length as u32;
        code.rows[length] = Row { first: (next << shift) as u32, start: placed, count: 0 };
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                if length as u32 <= SHORT {
                    let mut filler = 0;
                    while filler < 1 << (SHORT - length as u32) {
                        let slot = ((next as usize) << (SHORT - length as u32)) | filler;
                        code.short[slot] = ((length as u16) << 8) | symbol as u16;
                        filler += 1;
                    }
                }
                code.symbols[placed as usize] = symbol as u16;
                placed += 1;
                next += 1;
                code.rows[length].count += 1;
            }
            symbol += 1;
        }
        next <<= 1;
        length += 1;
    }
    code
}

/// Appends the decoded `text` to `out`: at most 8/5 of its length.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    out.reserve(text.len() * 8 / 5);
    let mut bytes = text.iter();
    let (mut bits, mut have) = (0u64, 0u32); // the next `have` bits, aligned to the left
    loop {
        while have <= 56 {
            let Some(&byte) = bytes.next() else { break };
            bits |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let short = CODE.short[(bits >> (64 - SHORT)) as usize];
        let (length, symbol) = match short {
            0 => long_symbol((bits >> 32) as u32)?,
            _ => (u32::from(short >> 8), short as u8),
        };
        if length > have {
            break;
        }
        out.push(symbol);
        bits <<= length;
        have -= length;
    }
    // What is left is padding: fewer than 8 bits, all ones (RFC 7541 §5.2).
    let padding = bits.checked_shr(64 - have).unwrap_or(0);
    if have < 8 && padding == (1 << have) - 1 { Ok(()) } else { Err(DecodeError::Huffman) }
}

/// Length and symbol of a code longer than [`SHORT`], at the left of `window`.
fn long_symbol(window: u32) -> Result<(u32, u8), DecodeError> {
    for length in SHORT as usize + 1..=MAX_LENGTH {
        let row = CODE.rows[length];
        let offset = window.wrapping_sub(row.first) >> (32 - length);
        if window >= row.first && offset < u32::from(row.count) {
            let symbol = CODE.symbols[usize::from(row.start) + offset as usize];
            return match u8::try_from(symbol) {
                Ok(symbol) => Ok((length as u32, symbol)),
                // A string must not hold EOS.
                Err(_) => Err(DecodeError::Huffman),
            };
        }
    }
    Err(DecodeError::Huffman)
}

#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut have) = (Vec::new(), 0u64, 0usize);
    for &symbol in text {
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        let row = CODE.rows[length];
        let start = usize::from(row.start);
        let rank = (start..start + usize::from(row.count)).position(|i| CODE.symbols[i] == u16::from(symbol)).unwrap();
        bits = (bits << length) | u64::from((row.first >> (32 - length)) + rank as u32);
        have += length;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push((bits << (8 - have)) as u8 | (0xff >> have));
    }
    out
}
