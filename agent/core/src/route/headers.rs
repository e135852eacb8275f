//! What is done to headers, in Envoy's order: what is removed first, then what is set and added, in the order of the
//! list.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::template::{Template, Variables};

/// Operations on headers, in the order in which they are carried out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderOps(Vec<HeaderOp>);

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderOp {
    /// Takes a header out.
    Remove(HeaderName),
    /// Writes a header in place of what was there.
    Set(HeaderName, Template),
    /// Writes a header beside what was there.
    Add(HeaderName, Template),
}

impl HeaderOps {
    /// These operations, brought into order.
    pub fn new(mut operations: Vec<HeaderOp>) -> Self {
        operations.sort_by_key(|operation| !matches!(operation, HeaderOp::Remove(_)));
        Self(operations)
    }

    /// Those of `self` and then those of `other`, as if they had been written as one: all removals come first.
    #[must_use]
    pub fn followed_by(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// The operations.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &HeaderOp> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Carries them out. A value that comes out empty, or that is no header's, sets and adds nothing.
    pub fn apply(&self, headers: &mut HeaderMap, variables: &Variables<'_>) {
        for operation in &self.0 {
            match operation {
                HeaderOp::Remove(name) => {
                    headers.remove(name);
                }
                HeaderOp::Set(name, template) => {
                    if let Some(value) = render(template, headers, variables) {
                        headers.insert(name, value);
                    }
                }
                HeaderOp::Add(name, template) => {
                    if let Some(value) = render(template, headers, variables) {
                        // A header map holds 32 768 at most: what does not fit is left out.
                        let _ = headers.try_append(name, value);
                    }
                }
            }
        }
    }
}

fn render(template: &Template, headers: &HeaderMap, variables: &Variables<'_>) -> Option<HeaderValue> {
    let text = template.render(headers, variables);
    // Envoy keeps a header whose literal value is empty, and leaves out one whose variables came out empty.
    if text.is_empty() && !template.is_literal() {
        return None;
    }
    HeaderValue::from_bytes(&text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).unwrap()
    }

    fn set(header: &str, value: &str) -> HeaderOp {
        HeaderOp::Set(name(header), Template::parse(value).unwrap())
    }

    fn add(header: &str, value: &str) -> HeaderOp {
        HeaderOp::Add(name(header), Template::parse(value).unwrap())
    }

    fn after(headers: &[(&str, &str)], operations: Vec<HeaderOp>) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (header, value) in headers {
            map.append(name(header), value.parse().unwrap());
        }
        HeaderOps::new(operations).apply(&mut map, &Variables::default());
        let mut lines: Vec<_> =
            map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
        lines
    }

    #[test]
    fn a_header_is_removed_before_it_is_set_or_added() {
        let operations = vec![set("a", "new"), add("b", "2"), HeaderOp::Remove(name("a")), HeaderOp::Remove(name("b"))];
        assert_eq!(after(&[("a", "old"), ("b", "1")], operations), ["a: new", "b: 2"]);
    }

    #[test]
    fn set_replaces_every_value_and_add_keeps_them() {
        assert_eq!(after(&[("a", "1"), ("a", "2")], vec![set("a", "3")]), ["a: 3"]);
        assert_eq!(after(&[("a", "1")], vec![add("a", "2")]), ["a: 1", "a: 2"]);
        assert_eq!(after(&[("a", "1")], vec![set("a", "2"), add("a", "3")]), ["a: 2", "a: 3"]);
    }

    #[test]
    fn a_variable_that_has_no_value_writes_no_header() {
        assert_eq!(after(&[], vec![set("a", "%REQ(x)%"), set("b", "")]), ["b: "]);
    }

    proptest! {
        /// What counts is the last `set`, and each `add` after it; a `remove` counts before all of them.
        #[test]
        fn operations_are_carried_out_in_order(
            start in proptest::collection::vec((0_u8..3, "[a-z]{1,3}"), 0..4),
            operations in proptest::collection::vec((0_u8..3, 0_u8..3, "[a-z]{1,3}"), 0..12),
        ) {
            let header = |which: u8| format!("x-{which}");
            let mut map = HeaderMap::new();
            for (which, value) in &start {
                map.append(name(&header(*which)), value.parse().unwrap());
            }
            let ops = operations.iter().map(|(kind, which, value)| match kind {
                0 => HeaderOp::Remove(name(&header(*which))),
                1 => set(&header(*which), value),
                _ => add(&header(*which), value),
            });
            HeaderOps::new(ops.collect()).apply(&mut map, &Variables::default());
            for which in 0..3 {
                let of = |kind: u8| operations.iter().filter(move |(k, w, _)| *k == kind && *w == which);
                let mut expected: Vec<&str> = match of(0).next() {
                    Some(_) => Vec::new(),
                    None => start.iter().filter(|(w, _)| *w == which).map(|(_, v)| v.as_str()).collect(),
                };
                for (kind, w, value) in operations.iter().filter(|(kind, _, _)| *kind != 0) {
                    if *w != which { continue }
                    if *kind == 1 { expected.clear(); }
                    expected.push(value);
                }
                let found: Vec<_> = map.get_all(header(which)).iter().map(|value| value.to_str().unwrap()).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
