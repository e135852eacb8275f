//! Where the parts of a JSON text are. Only for texts that are known to be JSON: nothing is checked here.

use std::ops::Range;

/// Where the value of the top-level member `key` is in `text`, an object that is valid JSON; of several, the last, as
/// every reader has it.
pub fn member(text: &str, key: &str) -> Option<Range<usize>> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    let mut found = None;
    scanner.take(b'{')?;
    while scanner.peek()? != b'}' {
        let name = scanner.value()?;
        let name: String = serde_json::from_str(text.get(name)?).ok()?;
        scanner.take(b':')?;
        let value = scanner.value()?;
        if name == key {
            found = Some(value);
        }
        let _ = scanner.take(b',');
    }
    found
}

/// Where the elements of the array at `range` are in `text`.
pub(super) fn elements(text: &str, range: Range<usize>) -> Option<Vec<Range<usize>>> {
    let mut scanner = Scanner { bytes: text.as_bytes().get(..range.end)?, at: range.start };
    let mut elements = Vec::new();
    scanner.take(b'[')?;
    while scanner.peek()? != b']' {
        elements.push(scanner.value()?);
        let _ = scanner.take(b',');
    }
    Some(elements)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Passes a value; nesting takes no stack.
    fn value(&mut self) -> Option<Range<usize>> {
        self.peek()?;
        let start = self.at;
        let mut depth = 0u32;
        loop {
            match self.peek()? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                _ => self.word(),
            }
            if depth == 0 {
                return Some(start..self.at);
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match self.bytes.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(())
    }

    /// A number, or `true`, `false`, `null`.
    fn word(&mut self) {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b':' | b'}' | b']' | b'{' | b'[');
        while self.bytes.get(self.at).is_some_and(|byte| !ends(byte)) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_whatever_is_around_it() {
        for (text, expected) in [
            (r#"{"a":1}"#, Some("1")),
            (r#" { "b" : [1,{"a":2}], "a" : { "a" : [ ] } } "#, Some(r#"{ "a" : [ ] }"#)),
            (r#"{"x":"\"a\":1","a":-1.5e3 }"#, Some("-1.5e3")),
            (r#"{"\u0061":true,"b":"}"}"#, Some("true")),
            (r#"{"a":1,"a":"ü"}"#, Some("\"ü\"")),
            (r#"{"b":{"a":1}}"#, None),
            ("{}", None),
            ("[]", None),
        ] {
            assert_eq!(member(text, "a").map(|range| &text[range]), expected, "{text}");
        }
    }

    #[test]
    fn elements_are_found_with_their_bounds() {
        let text = r#"{"a": [ {"x":[1]} ,2, "]" ] }"#;
        let found = elements(text, member(text, "a").unwrap()).unwrap();
        let found: Vec<_> = found.into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, [r#"{"x":[1]}"#, "2", "\"]\""]);
    }
}
