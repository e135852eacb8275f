//! The rules of one service, in the order in which they are tried, and an index of the paths they are for.
//!
//! The first rule that matches counts. Rules for paths and for prefixes are found by their path, whatever their
//! number; rules for expressions, and for any path, are tried in order as long as none before them has matched.

use std::collections::HashMap;
use std::sync::Arc;

use super::http::HttpRule;
use super::l4::L4Rule;
use super::matcher::{HttpMatch, PathMatcher};
use super::request::{Origin, RequestHead};

/// Everything that routes what is addressed to one service.
#[derive(Clone, Debug, Default)]
pub struct ServiceRoutes {
    /// Requests.
    pub http: HttpTable,
    /// TLS that is passed through.
    pub tls: Vec<Arc<L4Rule>>,
    /// Everything else.
    pub tcp: Vec<Arc<L4Rule>>,
}

impl ServiceRoutes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.http.rules.is_empty() && self.tls.is_empty() && self.tcp.is_empty()
    }
}

/// The rules for requests to one service.
#[derive(Clone, Debug, Default)]
pub struct HttpTable {
    rules: Vec<Arc<HttpRule>>,
    /// The matches of all rules in order: the rule, and its match.
    entries: Vec<(usize, Option<usize>)>,
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: Prefixes,
    /// The same for paths without regard to case, in lower case.
    folded_exact: HashMap<Box<str>, Vec<usize>>,
    folded_prefixes: Prefixes,
    others: Vec<usize>,
}

/// A rule that matches a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The rule.
    pub rule: &'a Arc<HttpRule>,
    /// Which of its matches; `None` if it has none, and takes everything.
    pub matched: Option<usize>,
}

impl HttpTable {
    /// A table of `rules`, in this order.
    pub fn new(rules: Vec<Arc<HttpRule>>) -> Self {
        let mut table = Self::default();
        let (mut prefixes, mut folded_prefixes) = (HashMap::new(), HashMap::new());
        for (number, rule) in rules.iter().enumerate() {
            let matches: Vec<Option<usize>> = match rule.matches.len() {
                0 => vec![None],
                count => (0..count).map(Some).collect(),
            };
            for matched in matches {
                let entry = table.entries.len();
                table.entries.push((number, matched));
                let uri = matched.and_then(|at| rule.matches[at].uri.as_ref());
                let list = match uri.map(|uri| (&uri.path, uri.ignore_case)) {
                    Some((PathMatcher::Exact(path), false)) => table.exact.entry(path.clone()).or_default(),
                    Some((PathMatcher::Exact(path), true)) => {
                        table.folded_exact.entry(path.to_ascii_lowercase().into()).or_default()
                    }
                    Some((PathMatcher::Prefix(path) | PathMatcher::Segments(path), false)) => {
                        prefixes.entry(path.clone()).or_default()
                    }
                    Some((PathMatcher::Prefix(path) | PathMatcher::Segments(path), true)) => {
                        folded_prefixes.entry(path.to_ascii_lowercase().into()).or_default()
                    }
                    Some((PathMatcher::Expression(_), _)) | None => &mut table.others,
                };
                list.push(entry);
            }
        }
        table.prefixes = Prefixes::new(prefixes);
        table.folded_prefixes = Prefixes::new(folded_prefixes);
        table.rules = rules;
        table
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Arc<HttpRule>] {
        &self.rules
    }

    /// The first rule that takes a request.
    pub fn find(&self, origin: &Origin<'_>, request: &RequestHead<'_>) -> Option<Found<'_>> {
        let path = request.path_alone();
        let mut best = usize::MAX;
        let mut consider = |entries: &[usize]| {
            let earlier = entries.iter().take_while(|entry| **entry < best);
            if let Some(found) = earlier.copied().find(|entry| self.holds(*entry, path, origin, request)) {
                best = found;
            }
        };
        if let Some(entries) = self.exact.get(path) {
            consider(entries);
        }
        self.prefixes.of(path).for_each(&mut consider);
        if !self.folded_exact.is_empty() || !self.folded_prefixes.is_empty() {
            let folded = path.to_ascii_lowercase();
            if let Some(entries) = self.folded_exact.get(&*folded) {
                consider(entries);
            }
            self.folded_prefixes.of(&folded).for_each(&mut consider);
        }
        consider(&self.others);
        let (rule, matched) = *self.entries.get(best)?;
        Some(Found { rule: self.rules.get(rule)?, matched })
    }

    fn holds(&self, entry: usize, path: &str, origin: &Origin<'_>, request: &RequestHead<'_>) -> bool {
        let (rule, matched) = self.entries[entry];
        let Some(matched) = matched else { return true };
        let matched: &HttpMatch = &self.rules[rule].matches[matched];
        // The path is compared again: of prefixes, some are for segments only.
        matched.uri.as_ref().is_none_or(|uri| uri.matches(path)) && matched.matches_but_for_path(origin, request)
    }
}

/// Prefixes, sorted, each with the longest other that it starts with: those of a text are found by one binary search
/// and a walk from there.
#[derive(Clone, Debug, Default)]
struct Prefixes(Vec<Prefix>);

#[derive(Clone, Debug)]
struct Prefix {
    text: Box<str>,
    parent: Option<usize>,
    entries: Vec<usize>,
}

impl Prefixes {
    fn new(prefixes: HashMap<Box<str>, Vec<usize>>) -> Self {
        let mut sorted: Vec<_> = prefixes.into_iter().collect();
        sorted.sort_unstable();
        let mut all: Vec<Prefix> = Vec::with_capacity(sorted.len());
        for (text, entries) in sorted {
            let mut parent = all.len().checked_sub(1);
            while let Some(at) = parent
                && !text.starts_with(&*all[at].text)
            {
                parent = all[at].parent;
            }
            all.push(Prefix { text, parent, entries });
        }
        Self(all)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries of every prefix of `text`, longest first.
    fn of<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a [usize]> {
        // Every prefix of `text` in the list sorts before it, and is a prefix of the last that does.
        let last = self.0.partition_point(|prefix| *prefix.text <= *text).checked_sub(1);
        let chain = std::iter::successors(last, |at| self.0[*at].parent);
        chain.map(|at| &self.0[at]).filter(|prefix| text.starts_with(&*prefix.text)).map(|prefix| &*prefix.entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::http::{DirectResponse, HttpAction};
    use crate::route::matcher::UriMatch;
    use crate::route::pattern::{Expression, StringMatcher};
    use crate::route::tests::{origin_of, service};

    fn uri() -> impl Strategy<Value = Option<UriMatch>> {
        let path = || "(/[ab]{0,2}){0,3}";
        let matcher = prop_oneof![
            path().prop_map(|path| PathMatcher::Exact(path.into())),
            path().prop_map(|path| PathMatcher::Prefix(path.into())),
            path().prop_map(|path| PathMatcher::Segments(path.trim_end_matches('/').into())),
            path().prop_map(|path| PathMatcher::Expression(Expression::of_all(&format!("{path}.*")).unwrap())),
        ];
        let uri = (matcher, any::<bool>()).prop_map(|(path, fold)| {
            let ignore_case = fold && !matches!(path, PathMatcher::Expression(_));
            UriMatch { path, ignore_case }
        });
        proptest::option::weighted(0.9, uri)
    }

    proptest! {
        /// Whatever the index does, the rule found is the first in order that matches.
        #[test]
        fn the_index_finds_the_first_rule_that_matches(
            uris in proptest::collection::vec((proptest::collection::vec(uri(), 0..3), any::<bool>()), 0..12),
            path in "(/[abAB]{0,2}){1,3}(\\?a=b)?",
        ) {
            let rules: Vec<_> = uris.into_iter().enumerate().map(|(at, (uris, only_post))| {
                let response = HttpAction::Respond(DirectResponse { status: 200, body: bytes::Bytes::new() });
                let resource = culvert_api::ObjectRef::new(culvert_api::Kind::VirtualService, "a", "b");
                let mut rule = HttpRule::new(resource, at, response);
                let method = only_post.then(|| StringMatcher::Exact("POST".into()));
                rule.matches =
                    uris.into_iter().map(|uri| HttpMatch { uri, method: method.clone(), ..HttpMatch::default() }).collect();
                Arc::new(rule)
            }).collect();
            let service = service();
            let origin = origin_of(&service);
            let headers = http::HeaderMap::new();
            let request = RequestHead {
                method: &http::Method::GET, scheme: "http", authority: "a", path: &path, protocol: "", headers: &headers,
            };
            let first = rules.iter().find_map(|rule| {
                let holds = |m: &HttpMatch| {
                    m.uri.as_ref().is_none_or(|uri| uri.matches(request.path_alone()))
                        && m.matches_but_for_path(&origin, &request)
                };
                match rule.matches.iter().position(holds) {
                    Some(at) => Some((rule.rule, Some(at))),
                    None => rule.matches.is_empty().then_some((rule.rule, None)),
                }
            });
            let table = HttpTable::new(rules);
            let found = table.find(&origin, &request).map(|found| (found.rule.rule, found.matched));
            prop_assert_eq!(found, first);
        }
    }
}
