//! Header values with variables, as Envoy writes them: `%REQ(x-request-id?x-other):8%`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName};

use super::request::RequestHead;

/// The most bytes that a value may come to.
const MAX_VALUE: usize = 16 << 10;

/// A header value with variables.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(Box<str>),
    /// A header of the request, or else another, cut to a length.
    Request(Field, Option<Field>, usize),
    /// A header of the headers that are being changed, of a response.
    Response(HeaderName, Option<HeaderName>, usize),
    Protocol,
    ClientAddress,
    ClientIp,
    UpstreamAddress,
}

#[derive(Clone, Debug, PartialEq)]
enum Field {
    Header(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
}

/// What variables stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// The request, as it arrived.
    pub request: Option<RequestHead<'a>>,
    /// The client.
    pub client: Option<SocketAddr>,
    /// The endpoint that was chosen, once one is.
    pub upstream: Option<SocketAddr>,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// A variable does not end.
    #[error("has a % without its other one: write %% for a percent sign")]
    Unclosed,
    /// A variable that is not known.
    #[error(
        "has the variable {0:?}: REQ, RESP, PROTOCOL, DOWNSTREAM_REMOTE_ADDRESS, \
         DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT and UPSTREAM_HOST are supported"
    )]
    Unknown(String),
    /// It cannot be in a header.
    #[error("has a character that no header value may have: remove line breaks and control characters")]
    Character,
    /// It is too long.
    #[error("is longer than {MAX_VALUE} bytes: shorten it")]
    TooLong,
}

impl Template {
    /// Reads a value.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        if text.len() > MAX_VALUE {
            return Err(BadTemplate::TooLong);
        }
        if http::HeaderValue::from_str(text).is_err() {
            return Err(BadTemplate::Character);
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let (variable, after) = rest[at + 1..].split_once('%').ok_or(BadTemplate::Unclosed)?;
            rest = after;
            if variable.is_empty() {
                literal.push('%');
                continue;
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(part(variable).ok_or_else(|| BadTemplate::Unknown(variable.chars().take(64).collect()))?);
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self(parts))
    }

    /// A value that is taken as it is, percent signs and all (Gateway API).
    ///
    /// # Errors
    /// When no header may have it.
    pub fn literal(text: &str) -> Result<Self, BadTemplate> {
        match (text.len() > MAX_VALUE, http::HeaderValue::from_str(text)) {
            (true, _) => Err(BadTemplate::TooLong),
            (_, Err(_)) => Err(BadTemplate::Character),
            _ if text.is_empty() => Ok(Self(Vec::new())),
            _ => Ok(Self(vec![Part::Literal(text.into())])),
        }
    }

    /// Whether it has no variables.
    pub fn is_literal(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Literal(_)))
    }

    /// The text, if it has no variables.
    pub fn as_literal(&self) -> Option<String> {
        self.is_literal().then(|| {
            self.0.iter().filter_map(|part| if let Part::Literal(text) = part { Some(&**text) } else { None }).collect()
        })
    }

    /// What it comes to, where `headers` are those that are being changed. Too long a value is cut.
    pub fn render(&self, headers: &HeaderMap, variables: &Variables<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let address = |out: &mut Vec<u8>, address: Option<String>| out.extend(address.unwrap_or_default().bytes());
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Request(first, second, length) => {
                    let field = field(first, variables).or_else(|| field(second.as_ref()?, variables));
                    let field = field.unwrap_or_default();
                    out.extend_from_slice(&field[..field.len().min(*length)]);
                }
                Part::Response(first, second, length) => {
                    let value = headers.get(first).or_else(|| headers.get(second.as_ref()?));
                    let value = value.map(http::HeaderValue::as_bytes).unwrap_or_default();
                    out.extend_from_slice(&value[..value.len().min(*length)]);
                }
                Part::Protocol => out.extend_from_slice(variables.request.map_or("", |r| r.protocol).as_bytes()),
                Part::ClientAddress => address(&mut out, variables.client.map(|client| client.to_string())),
                Part::ClientIp => address(&mut out, variables.client.map(|client| client.ip().to_string())),
                Part::UpstreamAddress => address(&mut out, variables.upstream.map(|upstream| upstream.to_string())),
            }
            if out.len() > MAX_VALUE {
                out.truncate(MAX_VALUE);
                break;
            }
        }
        out
    }
}

fn part(variable: &str) -> Option<Part> {
    Some(match variable {
        "PROTOCOL" => Part::Protocol,
        "DOWNSTREAM_REMOTE_ADDRESS" => Part::ClientAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Part::ClientIp,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Part::UpstreamAddress,
        _ => {
            let (kind, rest) = variable.split_once('(')?;
            let (names, length) = rest.split_once(')')?;
            let length = match length.strip_prefix(':') {
                Some(length) => length.parse().ok()?,
                None if length.is_empty() => MAX_VALUE,
                None => return None,
            };
            let (first, second) = match names.split_once('?') {
                Some((first, second)) => (first, Some(second)),
                None => (names, None),
            };
            let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).ok();
            let maybe = |second: Option<&str>| second.map_or(Some(None), |text| name(text).map(Some));
            match kind {
                "REQ" => {
                    let second = second.map_or(Some(None), |text| field_of(text).map(Some))?;
                    Part::Request(field_of(first)?, second, length)
                }
                "RESP" => Part::Response(name(first)?, maybe(second)?, length),
                _ => return None,
            }
        }
    })
}

fn field_of(text: &str) -> Option<Field> {
    Some(match text.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        other => Field::Header(HeaderName::from_bytes(other.as_bytes()).ok()?),
    })
}

fn field<'a>(field: &Field, variables: &Variables<'a>) -> Option<&'a [u8]> {
    let request = variables.request?;
    Some(match field {
        Field::Header(name) => request.headers.get(name)?.as_bytes(),
        Field::Method => request.method.as_str().as_bytes(),
        Field::Path => request.path.as_bytes(),
        Field::Authority => request.authority.as_bytes(),
        Field::Scheme => request.scheme.as_bytes(),
    })
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in &self.0 {
            match part {
                Part::Literal(text) => f.write_str(&text.replace('%', "%%"))?,
                Part::Protocol => f.write_str("%PROTOCOL%")?,
                Part::ClientAddress => f.write_str("%DOWNSTREAM_REMOTE_ADDRESS%")?,
                Part::ClientIp => f.write_str("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")?,
                Part::UpstreamAddress => f.write_str("%UPSTREAM_HOST%")?,
                Part::Request(first, second, length) => {
                    let mut names = first.to_string();
                    if let Some(second) = second {
                        write!(names, "?{second}")?;
                    }
                    display(f, "REQ", &names, *length)?;
                }
                Part::Response(first, second, length) => {
                    let mut names = first.to_string();
                    if let Some(second) = second {
                        write!(names, "?{second}")?;
                    }
                    display(f, "RESP", &names, *length)?;
                }
            }
        }
        Ok(())
    }
}

fn display(f: &mut std::fmt::Formatter<'_>, kind: &str, names: &str, length: usize) -> std::fmt::Result {
    match length {
        MAX_VALUE => write!(f, "%{kind}({names})%"),
        length => write!(f, "%{kind}({names}):{length}%"),
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header(name) => name.as_str(),
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let mut headers = HeaderMap::new();
        headers.insert("x-id", "abcdef".parse().unwrap());
        let request = RequestHead {
            method: &http::Method::GET,
            scheme: "http",
            authority: "cart",
            path: "/a?b=c",
            protocol: "HTTP/1.1",
            headers: &headers,
        };
        let client = Some("10.0.0.1:99".parse().unwrap());
        let variables = Variables { request: Some(request), client, upstream: None };
        let mut answer = HeaderMap::new();
        answer.insert("server", "s".parse().unwrap());
        for (text, expected) in [
            ("100%%", "100%"),
            ("%REQ(X-Id)%", "abcdef"),
            ("<%REQ(x-no?x-id):3%>", "<abc>"),
            ("%REQ(:path)% %REQ(:METHOD)% %REQ(:authority)%", "/a?b=c GET cart"),
            ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1:99 10.0.0.1"),
            ("%PROTOCOL% %RESP(server)% %UPSTREAM_HOST%", "HTTP/1.1 s "),
        ] {
            let template = Template::parse(text).unwrap();
            assert_eq!(String::from_utf8(template.render(&answer, &variables)).unwrap(), expected, "{text}");
            assert_eq!(Template::parse(&template.to_string()), Ok(template), "{text}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        assert_eq!(Template::parse("50% off"), Err(BadTemplate::Unclosed));
        assert!(matches!(Template::parse("%NO_SUCH%"), Err(BadTemplate::Unknown(_))));
        assert!(matches!(Template::parse("%REQ(x%"), Err(BadTemplate::Unknown(_))));
        assert_eq!(Template::parse("a\r\nb"), Err(BadTemplate::Character));
        assert_eq!(Template::literal("50% off").unwrap().as_literal().unwrap(), "50% off");
    }
}
