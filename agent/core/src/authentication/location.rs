//! Where in a request a token may be.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;

/// A place of a request that may hold a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Location {
    /// A header, after this prefix. The name is in lower case.
    Header {
        /// The header.
        name: Box<str>,
        /// What comes before the token, exactly.
        prefix: Box<str>,
    },
    /// A parameter of the query.
    Param(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

impl Location {
    /// Where tokens are looked for when a rule says nothing: `Authorization: Bearer `, then the parameter
    /// `access_token`.
    pub fn default_places() -> Arc<[Self]> {
        let header = Self::Header { name: "authorization".into(), prefix: "Bearer ".into() };
        Arc::new([header, Self::Param("access_token".into())])
    }

    /// The token there, if there is one; an error where there are several.
    pub fn find<'r>(&self, headers: &'r HeaderMap, query: &'r str) -> Result<Option<Cow<'r, str>>, Several> {
        match self {
            Self::Header { name, prefix } => {
                let after = |value: &'r http::HeaderValue| value.to_str().ok()?.strip_prefix(&**prefix);
                only(headers.get_all(&**name).iter().filter_map(after).map(|token| Cow::Borrowed(token.trim())))
            }
            Self::Param(name) => {
                let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                only(
                    pairs
                        .filter(|(known, _)| percent_decoded(known) == **name)
                        .map(|(_, value)| percent_decoded(value)),
                )
            }
            Self::Cookie(name) => {
                let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
                let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
                only(
                    pairs
                        .filter(|(known, _)| known == &&**name)
                        .map(|(_, value)| Cow::Borrowed(value.trim_matches('"'))),
                )
            }
        }
    }

    /// Takes what is there away, and returns the path and query without it, where it is in the query.
    pub fn remove(&self, headers: &mut HeaderMap, path_and_query: &str) -> Option<String> {
        match self {
            Self::Header { name, .. } => {
                headers.remove(&**name);
                None
            }
            Self::Param(name) => {
                let (path, query) = path_and_query.split_once('?')?;
                let is_other =
                    |pair: &&str| percent_decoded(pair.split_once('=').map_or(pair, |(key, _)| key)) != **name;
                let rest: Vec<&str> = query.split('&').filter(is_other).collect();
                Some(if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) })
            }
            Self::Cookie(name) => {
                remove_cookie(name, headers);
                None
            }
        }
    }
}

fn remove_cookie(name: &str, headers: &mut HeaderMap) {
    let is_other = |pair: &&str| pair.split_once('=').is_none_or(|(known, _)| known != name);
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let rest: Vec<&str> = lines.flat_map(|line| line.split(';')).map(str::trim).filter(is_other).collect();
    // It was text, and a part of it is too.
    let rest = HeaderValue::try_from(rest.join("; ")).ok().filter(|rest| !rest.is_empty());
    match rest {
        Some(rest) => drop(headers.insert(COOKIE, rest)),
        None => drop(headers.remove(COOKIE)),
    }
}

/// One place holds several tokens: nobody can say which counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request holds several tokens in one place")]
pub struct Several;

fn only<T>(mut found: impl Iterator<Item = T>) -> Result<Option<T>, Several> {
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        _ => Err(Several),
    }
}

/// A part of a query; what is no sound encoding stays as it is, and is no token then.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn header(name: &str, prefix: &str) -> Location {
        Location::Header { name: name.into(), prefix: prefix.into() }
    }

    #[test]
    fn a_token_is_found_where_it_may_be() {
        let headers = headers(&[("authorization", "Bearer t"), ("x-jwt", "u"), ("cookie", "a=b; tok=c; d=\"e\"")]);
        let find =
            |location: Location| location.find(&headers, "p=1&access_token=q%2er&z").unwrap().map(Cow::into_owned);
        assert_eq!(find(header("authorization", "Bearer ")).as_deref(), Some("t"));
        assert_eq!(find(header("authorization", "Basic ")), None);
        assert_eq!(find(header("authorization", "bearer ")), None, "a prefix is exact");
        assert_eq!(find(header("x-jwt", "")).as_deref(), Some("u"));
        assert_eq!(find(Location::Param("access_token".into())).as_deref(), Some("q.r"));
        assert_eq!(find(Location::Param("z".into())), None);
        assert_eq!(find(Location::Cookie("tok".into())).as_deref(), Some("c"));
        assert_eq!(find(Location::Cookie("d".into())).as_deref(), Some("e"));
        assert_eq!(find(Location::Cookie("to".into())), None);
    }

    #[test]
    fn what_is_taken_away_is_gone_and_the_rest_is_not() {
        let mut headers = headers(&[("authorization", "Bearer t"), ("cookie", "a=b; tok=c"), ("cookie", "d=e")]);
        let mut remove = |location: Location, path: &str| location.remove(&mut headers, path);
        assert_eq!(remove(header("authorization", "Bearer "), "/p?a=1"), None);
        assert_eq!(remove(Location::Cookie("tok".into()), "/p"), None);
        let param = || Location::Param("t".into());
        assert_eq!(remove(param(), "/p?a=1&%74=x&b").as_deref(), Some("/p?a=1&b"));
        assert_eq!(remove(param(), "/p?t=x").as_deref(), Some("/p"));
        assert_eq!(remove(param(), "/p").as_deref(), None);
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("cookie", "a=b; d=e")]);
        Location::Cookie("a".into()).remove(&mut headers, "/");
        Location::Cookie("d".into()).remove(&mut headers, "/");
        assert!(headers.is_empty());
    }

    #[test]
    fn several_in_one_place_are_none() {
        let headers = headers(&[("authorization", "Bearer t"), ("authorization", "Bearer u"), ("cookie", "a=b; a=c")]);
        assert_eq!(header("authorization", "Bearer ").find(&headers, ""), Err(Several));
        assert_eq!(Location::Param("t".into()).find(&headers, "t=1&t=2"), Err(Several));
        assert_eq!(Location::Param("t".into()).find(&headers, "t=1&%74=2"), Err(Several));
        assert_eq!(Location::Cookie("a".into()).find(&headers, ""), Err(Several));
    }
}
