//! Requests, responses and their headers, as far as HBONE needs them.

use std::fmt;

use super::super::authority::{Authority, AuthorityError};
use smallvec::SmallVec;

/// The headers HBONE knows. Others are kept only as far as [`MAX_OTHER_FIELDS`] and [`MAX_OTHER_BYTES`] go.
pub(super) const KNOWN: [&str; 5] = ["baggage", "forwarded", "traceparent", "x-istio-source", "x-forwarded-network"];

/// How many headers besides [`KNOWN`] are kept; further ones are dropped.
const MAX_OTHER_FIELDS: usize = 32;

/// How many bytes of names and values besides [`KNOWN`] are kept; what does not fit is dropped.
const MAX_OTHER_BYTES: usize = 8 << 10;

/// A method, as far as a tunnel cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// The only method that opens a tunnel.
    Connect,
    /// Anything else, cut at 32 bytes.
    Other(Box<str>),
}

/// The head of a request: well-formed HTTP/2, but not yet known to be a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `:method`.
    pub method: Method,
    /// `:authority`, unparsed.
    pub authority: Option<Box<str>>,
    /// Whether `:scheme`, `:path` or `:protocol` was there, which a plain CONNECT does not have.
    pub has_scheme_or_path: bool,
    /// The header fields.
    pub headers: Headers,
}

/// Why a request opens no tunnel. The answer to each is 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// Another method.
    #[error("the method is {0}, not CONNECT")]
    NotConnect(Box<str>),
    /// `:scheme`, `:path` or `:protocol` on a CONNECT.
    #[error("CONNECT with :scheme, :path or :protocol")]
    SchemeOrPath,
    /// No `:authority`.
    #[error("CONNECT without :authority")]
    NoAuthority,
    /// An `:authority` that is not an address or host name with a port.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Request {
    /// A CONNECT to `authority` without headers.
    pub fn connect(authority: &Authority) -> Self {
        Self {
            method: Method::Connect,
            authority: Some(authority.to_string().into()),
            has_scheme_or_path: false,
            headers: Headers::default(),
        }
    }

    /// The same request with one more header. The name must be lower case.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(name.as_bytes(), value.as_bytes());
        self
    }

    /// Where the tunnel is to lead, or why this request opens none.
    pub fn target(&self) -> Result<Authority, BadTarget> {
        if let Method::Other(method) = &self.method {
            return Err(BadTarget::NotConnect(method.clone()));
        }
        if self.has_scheme_or_path {
            return Err(BadTarget::SchemeOrPath);
        }
        Ok(self.authority.as_deref().ok_or(BadTarget::NoAuthority)?.parse()?)
    }
}

/// The head of a final response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// `:status`, 200 to 999.
    pub status: u16,
    /// The header fields.
    pub headers: Headers,
}

/// Header fields in the order they came, in one buffer. Names are lower case; values hold no NUL, CR or LF.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    bytes: Vec<u8>,
    fields: SmallVec<[Field; 4]>,
}

/// Name and value follow one another in the buffer from where the previous field ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    name: u16,
    value: u32,
}

impl Headers {
    /// The first field called `name`, if its value is text.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.iter().find(|(n, _)| *n == name)?;
        std::str::from_utf8(value).ok()
    }

    /// All fields, name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.fields.iter().filter_map(move |field| {
            let (name, after) = rest.split_at_checked(usize::from(field.name))?;
            let (value, after) = after.split_at_checked(field.value as usize)?;
            rest = after;
            Some((std::str::from_utf8(name).ok()?, value))
        })
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Adds a field, unless it is none of [`KNOWN`] and the others already take all the room they may.
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        let known = KNOWN.iter().any(|k| k.as_bytes() == name);
        let full =
            self.fields.len() >= MAX_OTHER_FIELDS || self.bytes.len() + name.len() + value.len() > MAX_OTHER_BYTES;
        let (Ok(name_len), Ok(value_len)) = (u16::try_from(name.len()), u32::try_from(value.len())) else { return };
        if !known && full {
            return;
        }
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.fields.push(Field { name: name_len, value: value_len });
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, value.escape_ascii().to_string()))).finish()
    }
}
