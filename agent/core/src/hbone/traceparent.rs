//! `traceparent` (W3C Trace Context): passed from a request to the one it causes, once it is known to be well-formed.

use std::fmt;
use std::str::FromStr;

/// A trace and the span that called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace, never 0.
    pub trace_id: u128,
    /// The calling span, never 0.
    pub parent_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

/// The value is not a `traceparent`; it is to be dropped, not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of the form 00-TRACE-PARENT-FLAGS")]
pub struct NotATraceparent;

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

impl FromStr for Traceparent {
    type Err = NotATraceparent;

    fn from_str(s: &str) -> Result<Self, NotATraceparent> {
        parse(s).ok_or(NotATraceparent)
    }
}

fn parse(s: &str) -> Option<Traceparent> {
    // A later version may append fields to those of version 00 and is read as 00; ff is never a version.
    if s.len() < 55 || s.len() > 256 || !s.is_ascii() {
        return None;
    }
    let (head, tail) = s.split_at(55);
    let mut parts = head.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |s: &str, len| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && parts.next().is_none();
    let tail_fits = tail.is_empty() || (version != "00" && tail.starts_with('-'));
    if !well_formed || !tail_fits || version == "ff" {
        return None;
    }
    let traceparent = Traceparent {
        trace_id: u128::from_str_radix(trace, 16).ok()?,
        parent_id: u64::from_str_radix(parent, 16).ok()?,
        flags: u8::from_str_radix(flags, 16).ok()?,
    };
    (traceparent.trace_id != 0 && traceparent.parent_id != 0).then_some(traceparent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_later_version_is_read_as_version_00() {
        let text = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        let traceparent: Traceparent = text.parse().unwrap();
        assert_eq!(traceparent.to_string(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
        ] {
            assert!(bad.parse::<Traceparent>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn it_survives_printing_and_parsing(trace_id in 1u128.., parent_id in 1u64.., flags: u8) {
            let traceparent = Traceparent { trace_id, parent_id, flags };
            prop_assert_eq!(traceparent.to_string().parse(), Ok(traceparent));
        }
    }
}
