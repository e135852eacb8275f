//! What is written in place of a request's path.

use super::matcher::{PathMatcher, UriMatch, ends_segment};
use super::pattern::Expression;
use super::request::split_path;

/// The most bytes that a rewritten path may come to.
const MAX_PATH: usize = 64 << 10;

/// What is written in place of a path; the query stays.
#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    /// This, in place of the prefix that matched, or else of all of it (VirtualService `rewrite.uri`).
    Matched(Box<str>),
    /// This, in place of all of it (Gateway API `ReplaceFullPath`).
    Full(Box<str>),
    /// These segments, in place of those that matched (Gateway API `ReplacePrefixMatch`).
    Segments(Box<str>),
    /// This, in place of everything that the expression finds.
    Expression(Expression, Substitution),
}

/// What replaces a match of an expression: `\1` is its first group, `\0` all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Substitution(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Literal(Box<str>),
    Group(usize),
}

/// Why a text is no substitution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubstitution {
    /// A backslash before something else.
    #[error("has a \\ that is followed by neither a digit nor another \\")]
    Escape,
    /// A group that the expression does not have.
    #[error("names group {0}, which the expression does not have")]
    Group(usize),
    /// It cannot be in a path.
    #[error("has a character that no path may have: percent-encode it")]
    Character,
}

/// What came out of a rewrite is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten path is longer than {MAX_PATH} bytes")]
pub struct TooLong;

impl Substitution {
    /// Reads what replaces matches of `expression`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, expression: &Expression) -> Result<Self, BadSubstitution> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some('\\') => literal.push('\\'),
                    Some(digit @ '0'..='9') => {
                        let group = digit as usize - '0' as usize;
                        if group >= expression.regex().captures_len() {
                            return Err(BadSubstitution::Group(group));
                        }
                        if !literal.is_empty() {
                            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                        }
                        pieces.push(Piece::Group(group));
                    }
                    _ => return Err(BadSubstitution::Escape),
                },
                '!'..='~' => literal.push(character),
                _ => return Err(BadSubstitution::Character),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self(pieces))
    }
}

impl PathRewrite {
    /// What becomes of `path` (with its query), which a rule with `uri` took.
    ///
    /// # Errors
    /// When it becomes too long.
    pub fn apply(&self, path: &str, uri: Option<&UriMatch>) -> Result<String, TooLong> {
        let (path, query) = split_path(path);
        let mut new = match self {
            Self::Full(full) => full.to_string(),
            Self::Matched(text) => {
                let length = match uri.map(|uri| &uri.path) {
                    // What matches everything is, to Envoy, the prefix `/`.
                    None => 1,
                    Some(PathMatcher::Prefix(prefix) | PathMatcher::Segments(prefix)) => prefix.len(),
                    Some(PathMatcher::Exact(_) | PathMatcher::Expression(_)) => path.len(),
                };
                format!("{text}{}", path.get(length..).unwrap_or_default())
            }
            Self::Segments(text) => {
                let length = match uri.map(|uri| &uri.path) {
                    Some(PathMatcher::Segments(prefix)) if ends_segment(path, prefix.len()) => prefix.len(),
                    Some(PathMatcher::Exact(_)) => path.len(),
                    _ => 0,
                };
                join(text, path.get(length..).unwrap_or_default())
            }
            Self::Expression(expression, substitution) => replace_all(expression, substitution, path)?,
        };
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        // A rewrite may bring a query of its own; then what there was is added to it.
        if let Some(query) = query {
            new.push(if new.contains('?') { '&' } else { '?' });
            new.push_str(query);
        }
        if new.len() > MAX_PATH { Err(TooLong) } else { Ok(new) }
    }
}

/// `prefix` and what came after the one that it replaces, with one slash between them and at least one in all.
fn join(prefix: &str, rest: &str) -> String {
    let (prefix, rest) = (prefix.trim_end_matches('/'), rest.trim_start_matches('/'));
    match (prefix, rest) {
        (prefix, "") if !prefix.is_empty() => prefix.to_owned(),
        (prefix, rest) => format!("{prefix}/{rest}"),
    }
}

fn replace_all(expression: &Expression, substitution: &Substitution, path: &str) -> Result<String, TooLong> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut copied = 0;
    for captures in expression.regex().captures_iter(path.as_bytes()) {
        let Some(found) = captures.get(0) else { continue };
        out.extend_from_slice(&path.as_bytes()[copied..found.start()]);
        copied = found.end();
        for piece in &substitution.0 {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Group(group) => {
                    out.extend_from_slice(captures.get(*group).map(|group| group.as_bytes()).unwrap_or_default());
                }
            }
        }
        if out.len() > MAX_PATH {
            return Err(TooLong);
        }
    }
    out.extend_from_slice(&path.as_bytes()[copied..]);
    // An expression may cut within a character of a path that is no ASCII.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(path: PathMatcher) -> Option<UriMatch> {
        Some(UriMatch { path, ignore_case: false })
    }

    fn regex(pattern: &str, rewrite: &str) -> PathRewrite {
        let expression = Expression::within(pattern).unwrap();
        let substitution = Substitution::parse(rewrite, &expression).unwrap();
        PathRewrite::Expression(expression, substitution)
    }

    #[test]
    fn each_rewrite_replaces_what_it_is_for() {
        let prefix = |text: &str| uri(PathMatcher::Prefix(text.into()));
        let segments = |text: &str| uri(PathMatcher::Segments(text.into()));
        let exact = |text: &str| uri(PathMatcher::Exact(text.into()));
        let matched = |text: &str| PathRewrite::Matched(text.into());
        for (fact, rewrite, uri, path, expected) in [
            ("the prefix that matched", matched("/v2"), prefix("/v1"), "/v1/a?q=1", "/v2/a?q=1"),
            ("a prefix is only characters", matched("/x"), prefix("/foo"), "/foobar", "/xbar"),
            ("a slash too many stays, as in Istio", matched("/"), prefix("/foo"), "/foo/bar", "//bar"),
            ("all of an exact path", matched("/x"), exact("/foo"), "/foo?a", "/x?a"),
            ("the slash of what matches everything", matched("/v2/"), None, "/a/b", "/v2/a/b"),
            (
                "all of a path that an expression matched",
                matched("/x"),
                uri(PathMatcher::Expression(Expression::of_all("/f.*").unwrap())),
                "/foo/bar",
                "/x",
            ),
            ("the full path", PathRewrite::Full("/x".into()), segments("/foo"), "/foo/bar?q", "/x?q"),
            ("segments", PathRewrite::Segments("/x".into()), segments("/foo"), "/foo/bar", "/x/bar"),
            ("segments, with a slash", PathRewrite::Segments("/x/".into()), segments("/foo"), "/foo/bar", "/x/bar"),
            ("segments, by none", PathRewrite::Segments("/".into()), segments("/foo"), "/foo/bar", "/bar"),
            ("segments, by none, of nothing", PathRewrite::Segments("/".into()), segments("/foo"), "/foo", "/"),
            ("segments, alone", PathRewrite::Segments("/x".into()), segments("/foo"), "/foo", "/x"),
            (
                "what an expression finds",
                regex("^/user/([^/]+)/(.*)$", r"/\2?id=\1"),
                None,
                "/user/7/cart?q",
                "/cart?id=7&q",
            ),
            ("everything that it finds", regex("a", "b"), None, "/aXa", "/bXb"),
            ("nothing", regex("z+", "b"), None, "/aXa", "/aXa"),
            ("all of it, and a backslash", regex("x", r"\\\0"), None, "/x", r"/\x"),
        ] {
            assert_eq!(rewrite.apply(path, uri.as_ref()).unwrap(), expected, "{fact}");
        }
    }

    #[test]
    fn a_rewrite_cannot_grow_without_bound() {
        let rewrite = regex("a", &r"\0".repeat(500));
        assert_eq!(rewrite.apply(&format!("/{}", "a".repeat(60_000)), None), Err(TooLong));
    }

    #[test]
    fn what_is_no_substitution_is_refused() {
        let expression = Expression::within("(a)").unwrap();
        for (text, error) in [
            (r"\2", BadSubstitution::Group(2)),
            (r"\x", BadSubstitution::Escape),
            (r"\", BadSubstitution::Escape),
            ("a b", BadSubstitution::Character),
            ("a\r\n", BadSubstitution::Character),
        ] {
            assert_eq!(Substitution::parse(text, &expression), Err(error));
        }
    }
}
