//! The body of a list or a watch, cut into its objects as it arrives: what is in memory of it is one object.
//!
//! A page of a list may be hundreds of megabytes where someone fills annotations, and parsing it as a whole would fail
//! for one bad object; so the list is cut by its brackets, and what an object holds is looked at later.

use serde::Deserialize;

/// The most bytes of an object. etcd takes no more than 1.5 MiB, which grow somewhat as JSON.
const MAX_OBJECT: usize = 8 << 20;
/// As many of its first bytes are kept of one that has more: they hold its name.
const HEAD: usize = 2 << 20;
/// The most bytes of what a list says of itself.
const MAX_METADATA: usize = 64 << 10;
/// The most levels of brackets.
const MAX_DEPTH: u32 = 4096;

/// An object that was cut out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its JSON.
    Object(Vec<u8>),
    /// It has more bytes than any object should, and was skipped but for the first of them.
    TooLarge(Vec<u8>),
}

/// The body is no list, or no JSON.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a Kubernetes list: {0}")]
pub(super) struct NotAList(&'static str);

/// What a list says of itself.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    /// From where to watch.
    pub(super) resource_version: String,
    /// Asks for the next page; absent or empty on the last one.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub(super) struct ListCutter {
    depth: u32,
    in_string: bool,
    escaped: bool,
    in_items: bool,
    key: Vec<u8>,
    /// Whether a string at the first level would be a key, and whether one is being read.
    expects_key: bool,
    in_key: bool,
    capture: Option<Capture>,
    bytes: Vec<u8>,
    is_too_large: bool,
    metadata: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capture {
    Metadata,
    Item,
}

impl ListCutter {
    /// Takes the next bytes of the body; hands each item that is complete to `take`.
    ///
    /// # Errors
    /// When it is no list; the cutter is of no use then.
    pub(super) fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Cut)) -> Result<(), NotAList> {
        // Where what is being captured begins in `bytes`.
        let mut from = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                self.string(byte);
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.in_key = self.depth == 1 && self.expects_key;
                    if self.in_key {
                        self.key.clear();
                    }
                }
                b'{' | b'[' => {
                    if self.capture.is_none() && self.begin(byte) {
                        from = at;
                    }
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(NotAList("too deep"));
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or(NotAList("a bracket too many"))?;
                    self.end(&bytes[from..=at], &mut take);
                    if self.depth == 1 {
                        self.in_items = false;
                    }
                }
                b':' if self.depth == 1 => self.expects_key = false,
                b',' if self.depth == 1 => self.expects_key = true,
                _ if self.depth == 0 && !byte.is_ascii_whitespace() => return Err(NotAList("not an object")),
                _ => {}
            }
        }
        if self.capture.is_some() {
            self.keep(&bytes[from..]);
        }
        Ok(())
    }

    /// The end of the body: what the list said of itself.
    ///
    /// # Errors
    /// When it ended early, or has no resource version.
    pub(super) fn finish(self) -> Result<ListMeta, NotAList> {
        if self.depth != 0 || self.in_string {
            return Err(NotAList("it ends early"));
        }
        let meta: ListMeta = serde_json::from_slice(&self.metadata).map_err(|_| NotAList("no metadata"))?;
        if meta.resource_version.is_empty() { Err(NotAList("no resourceVersion")) } else { Ok(meta) }
    }

    fn string(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => {
                self.in_string = false;
                self.in_key = false;
            }
            // Only short keys matter.
            _ if self.in_key && self.key.len() < 32 => self.key.push(byte),
            _ => {}
        }
    }

    /// Whether what begins with this bracket is captured.
    fn begin(&mut self, bracket: u8) -> bool {
        match self.depth {
            0 => self.expects_key = true,
            1 if self.key == b"metadata" => self.capture = Some(Capture::Metadata),
            1 if self.key == b"items" && bracket == b'[' => self.in_items = true,
            2 if self.in_items => self.capture = Some(Capture::Item),
            _ => {}
        }
        self.capture.is_some()
    }

    /// Ends what is captured, if this bracket, the last of `bytes`, is its end.
    fn end(&mut self, bytes: &[u8], take: &mut impl FnMut(Cut)) {
        match self.capture {
            Some(Capture::Metadata) if self.depth == 1 => {
                self.keep(bytes);
                self.metadata = std::mem::take(&mut self.bytes);
            }
            Some(Capture::Item) if self.depth == 2 => {
                self.keep(bytes);
                let object = std::mem::take(&mut self.bytes);
                take(if self.is_too_large { Cut::TooLarge(object) } else { Cut::Object(object) });
            }
            _ => return,
        }
        self.capture = None;
        self.is_too_large = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let limit = if self.capture == Some(Capture::Metadata) { MAX_METADATA } else { MAX_OBJECT };
        self.is_too_large |= keep(&mut self.bytes, bytes, self.is_too_large, limit);
    }
}

/// Cuts the body of a watch into its events: one a line.
#[derive(Debug, Default)]
pub(super) struct LineCutter {
    bytes: Vec<u8>,
    is_too_large: bool,
}

impl LineCutter {
    /// Takes the next bytes of the body; hands each line that is complete to `take`.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut take: impl FnMut(Cut)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.bytes);
            if std::mem::take(&mut self.is_too_large) {
                take(Cut::TooLarge(line));
            } else if !line.trim_ascii().is_empty() {
                take(Cut::Object(line));
            }
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_too_large |= keep(&mut self.bytes, bytes, self.is_too_large, MAX_OBJECT);
    }
}

/// Adds `more` to `kept`; whether that is more than `limit`, and so no more than the head is kept.
fn keep(kept: &mut Vec<u8>, more: &[u8], is_too_large: bool, limit: usize) -> bool {
    if is_too_large {
        return true;
    }
    let room = limit.saturating_sub(kept.len());
    kept.extend_from_slice(&more[..more.len().min(room)]);
    if more.len() <= room {
        return false;
    }
    kept.truncate(HEAD);
    kept.shrink_to_fit();
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn cut(list: &[u8], chunk: usize) -> Result<(Vec<Cut>, ListMeta), NotAList> {
        let mut cutter = ListCutter::default();
        let mut items = Vec::new();
        for bytes in list.chunks(chunk) {
            cutter.push(bytes, |item| items.push(item))?;
        }
        Ok((items, cutter.finish()?))
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            r#"["\\{}\[\]:,a-z\n]{0,12}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(r#"[\\"{}a-z]{0,6}"#, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_list_is_cut_into_what_a_parser_finds_in_it(
            items in prop::collection::vec(any_json(), 0..6),
            other in any_json(),
            chunk in 1_usize..40,
            pretty: bool,
        ) {
            let items: Vec<Value> = items.into_iter().map(|spec| json!({"metadata": {}, "spec": spec})).collect();
            let list = json!({
                "apiVersion": "v1", "other": other, "items": items,
                "metadata": {"resourceVersion": "7", "continue": "}\"]"},
            });
            let text = if pretty { serde_json::to_vec_pretty(&list) } else { serde_json::to_vec(&list) }.unwrap();
            let (found, meta) = cut(&text, chunk).unwrap();
            let found: Vec<Value> = found
                .iter()
                .map(|item| match item {
                    Cut::Object(json) => serde_json::from_slice(json).unwrap(),
                    Cut::TooLarge(_) => panic!("too large"),
                })
                .collect();
            prop_assert_eq!(found, items);
            prop_assert_eq!(meta, ListMeta { resource_version: "7".into(), next: Some("}\"]".into()) });
        }

        #[test]
        fn no_bytes_make_the_cutter_panic(bytes: Vec<u8>, chunk in 1_usize..9) {
            let _ = cut(&bytes, chunk);
            let mut lines = LineCutter::default();
            bytes.chunks(chunk).for_each(|bytes| lines.push(bytes, drop));
        }
    }

    #[test]
    fn a_list_whose_items_are_null_is_empty() {
        let (items, meta) = cut(br#"{"metadata":{"resourceVersion":"1"},"items":null}"#, 5).unwrap();
        assert!(items.is_empty() && meta.next.is_none());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let bad = ["", "[1]", "{}", r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"1"}"#, "}", "<html>"];
        for bad in bad {
            assert!(cut(bad.as_bytes(), 3).is_err(), "{bad}");
        }
        assert!(cut("[".repeat(5000).as_bytes(), 4096).is_err());
    }

    #[test]
    fn an_object_that_is_too_large_does_not_keep_the_others_from_being_read() {
        let large = "x".repeat(MAX_OBJECT);
        let list =
            format!(r#"{{"items":[{{"a":1}},{{"a":"{large}"}},{{"a":2}}],"metadata":{{"resourceVersion":"1"}}}}"#);
        let (items, _) = cut(list.as_bytes(), 1 << 16).unwrap();
        let head = format!(r#"{{"a":"{large}"#).into_bytes()[..HEAD].to_vec();
        let small = |json: &[u8]| Cut::Object(json.to_vec());
        assert!(items == [small(br#"{"a":1}"#), Cut::TooLarge(head), small(br#"{"a":2}"#)]);

        let mut lines = LineCutter::default();
        let mut events = Vec::new();
        for bytes in format!("a\n{large}x\n\nb\nrest").as_bytes().chunks(1 << 16) {
            lines.push(bytes, |event| events.push(event));
        }
        assert!(events == [small(b"a"), Cut::TooLarge(large.into_bytes()[..HEAD].to_vec()), small(b"b")]);
    }
}
