//! Sessions of Gateway API (GEP-1619): a client is given a token that says which endpoint answered it first, and is
//! sent there again as long as the session lasts.
//!
//! A token is `ENDPOINT.BEGUN.USED`, hexadecimal: the endpoint as [`token_of`](crate::waypoint::upstream::token_of)
//! has it, and seconds since 1970. Whoever makes one up chooses an endpoint, no more.

use std::time::Duration;

use culvert_core::route::http::SessionPersistence;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// A session of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) endpoint: u64,
    begun: u64,
    used: u64,
}

impl Token {
    /// The client's, unless its time is over at `now`, in seconds since 1970.
    pub(super) fn read(session: &SessionPersistence, headers: &HeaderMap, now: u64) -> Option<Self> {
        let value = match session.header {
            true => headers.get(&*session.name)?.to_str().ok()?,
            false => cookie(&session.name, headers)?,
        };
        let mut parts = value.splitn(3, '.').map(|part| u64::from_str_radix(part, 16).ok());
        let token = Self { endpoint: parts.next()??, begun: parts.next()??, used: parts.next()?? };
        let over =
            |since: u64, time: Option<Duration>| time.is_some_and(|time| now.saturating_sub(since) >= time.as_secs());
        (!over(token.begun, session.lifetime) && !over(token.used, session.idle)).then_some(token)
    }

    /// The header that tells the client of the session with `endpoint`; `None` if it knows all that it has to.
    pub(super) fn write(
        session: &SessionPersistence,
        before: Option<Self>,
        endpoint: u64,
        now: u64,
    ) -> Option<(HeaderName, HeaderValue)> {
        let same = before.filter(|before| before.endpoint == endpoint);
        if same.is_some() && session.idle.is_none() {
            return None;
        }
        let begun = same.map_or(now, |token| token.begun);
        let mut text = format!("{endpoint:016x}.{begun:x}.{now:x}");
        if session.header {
            return Some((HeaderName::from_bytes(session.name.as_bytes()).ok()?, text.try_into().ok()?));
        }
        text.insert_str(0, &format!("{}=", session.name));
        text.push_str("; Path=/; HttpOnly");
        if let Some(lifetime) = session.lifetime {
            text.push_str(&format!("; Max-Age={}", lifetime.as_secs().saturating_sub(now - begun)));
        }
        Some((SET_COOKIE, text.try_into().ok()?))
    }
}

fn cookie<'h>(name: &str, headers: &'h HeaderMap) -> Option<&'h str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(header: bool, lifetime: Option<u64>, idle: Option<u64>) -> SessionPersistence {
        let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        SessionPersistence { name: "s".into(), header, lifetime: seconds(lifetime), idle: seconds(idle) }
    }

    /// What the client sends back of what it was told.
    fn back((name, value): (HeaderName, HeaderValue)) -> HeaderMap {
        let text = value.to_str().unwrap().split(';').next().unwrap().to_owned();
        let (name, text) = if name == SET_COOKIE { (COOKIE, format!("a=b; {text}")) } else { (name, text) };
        [(name, text.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn a_client_comes_back_with_what_it_was_told() {
        for header in [true, false] {
            let session = session(header, None, None);
            let told = Token::write(&session, None, 7, 1000).unwrap();
            let token = Token::read(&session, &back(told), 5000).unwrap();
            assert_eq!((token.endpoint, token.begun), (7, 1000));
            assert_eq!(Token::write(&session, Some(token), 7, 5000), None, "it knows");
            assert!(Token::write(&session, Some(token), 8, 5000).is_some(), "it has to know of another");
        }
    }

    #[test]
    fn a_session_ends_when_its_time_is_over_and_when_it_was_not_used() {
        let absolute = session(false, Some(100), None);
        let told = Token::write(&absolute, None, 7, 1000).unwrap();
        assert_eq!(told.1, "s=0000000000000007.3e8.3e8; Path=/; HttpOnly; Max-Age=100");
        let headers = back(told);
        assert!(Token::read(&absolute, &headers, 1099).is_some() && Token::read(&absolute, &headers, 1100).is_none());
        let idle = session(true, Some(100), Some(10));
        let first = Token::read(&idle, &back(Token::write(&idle, None, 7, 1000).unwrap()), 1009).unwrap();
        let again = back(Token::write(&idle, Some(first), 7, 1009).unwrap());
        assert!(Token::read(&idle, &again, 1018).is_some() && Token::read(&idle, &again, 1019).is_none());
        assert_eq!(Token::read(&idle, &again, 1018).unwrap().begun, 1000);
    }

    #[test]
    fn what_is_no_token_is_none() {
        for value in ["", "7", "7.1", "x.1.1", "7.1.1.1", "-7.1.1", "ffffffffffffffffff.1.1"] {
            let headers = [("s".parse::<HeaderName>().unwrap(), value.parse().unwrap())].into_iter().collect();
            assert_eq!(Token::read(&session(true, None, None), &headers, 1), None, "{value:?}");
        }
    }
}
