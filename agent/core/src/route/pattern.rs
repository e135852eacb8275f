//! Texts that configuration writes down to be compared with what a request says.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// The most characters of an expression, by Istio's webhook.
const MAX_EXPRESSION: usize = 1024;
/// The most memory of a compiled expression, and of what it remembers as it runs, in bytes. `\w{1000}` takes megabytes
/// with Unicode tables; RE2, which Envoy uses, refuses it at the same order of size.
const MAX_COMPILED: usize = 256 << 10;

/// A regular expression: bounded in size, linear in time.
#[derive(Clone)]
pub struct Expression(Regex);

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExpression {
    /// It says nothing.
    #[error("is an empty expression: write one, or leave the field out")]
    Empty,
    /// It is too long.
    #[error("is longer than {MAX_EXPRESSION} characters: shorten it")]
    TooLong,
    /// It would take too much memory.
    #[error("takes more than {MAX_COMPILED} bytes once compiled: use smaller repetitions")]
    TooLarge,
    /// RE2 reads it as something else.
    #[error("has {0:?} within brackets, which RE2 takes literally and this engine does not: escape it with \\")]
    SetOperation(&'static str),
    /// It is none.
    #[error("is no expression: {0}")]
    Syntax(String),
}

impl Expression {
    /// An expression for all of a text, as every `regex` of Istio is.
    ///
    /// # Errors
    /// When it cannot be one, or must not.
    pub fn of_all(text: &str) -> Result<Self, BadExpression> {
        check(text)?;
        // Compiled alone as well: `a)(b` would close the group that is put around it.
        build(text)?;
        build(&format!(r"\A(?:{text})\z"))
    }

    /// An expression that finds its matches anywhere within a text.
    ///
    /// # Errors
    /// When it cannot be one, or must not.
    pub fn within(text: &str) -> Result<Self, BadExpression> {
        check(text)?;
        build(text)
    }

    /// Whether `text` is what it describes.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    pub(super) fn regex(&self) -> &Regex {
        &self.0
    }
}

fn build(text: &str) -> Result<Expression, BadExpression> {
    let built = RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).nest_limit(64).build();
    built.map(Expression).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => BadExpression::TooLarge,
        error => {
            let said = error.to_string();
            let last = said.lines().last().unwrap_or_default();
            BadExpression::Syntax(last.trim_start_matches("error: ").chars().take(200).collect())
        }
    })
}

fn check(text: &str) -> Result<(), BadExpression> {
    if text.is_empty() {
        return Err(BadExpression::Empty);
    }
    if text.chars().nth(MAX_EXPRESSION).is_some() {
        return Err(BadExpression::TooLong);
    }
    match set_operation(text) {
        Some(found) => Err(BadExpression::SetOperation(found)),
        None => Ok(()),
    }
}

/// What this engine would take for an operation on sets, and RE2 for the characters themselves.
fn set_operation(text: &str) -> Option<&'static str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut class_start = None;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match (rest[0], class_start) {
            (b'\\', _) => at += 1,
            (b'[', None) => {
                let negated = rest.get(1) == Some(&b'^');
                at += usize::from(negated);
                class_start = Some(at + 1);
            }
            (b'[', Some(_)) if rest.get(1) == Some(&b':') => {
                // A named class, such as [:alpha:].
                at += rest.windows(2).position(|pair| pair == b":]").map_or(0, |end| end + 1);
            }
            (b'[', Some(_)) => return Some("["),
            (b']', Some(start)) if at != start => class_start = None,
            (_, Some(_)) => {
                for operation in ["&&", "--", "~~"] {
                    if rest.starts_with(operation.as_bytes()) {
                        return Some(operation);
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0.as_str())
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// What a text has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum StringMatcher {
    /// This.
    Exact(Box<str>),
    /// Something that starts with this.
    Prefix(Box<str>),
    /// Something that this describes.
    Expression(Expression),
}

impl StringMatcher {
    /// Whether `text` is such.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Expression(expression) => expression.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_for_the_whole_text() {
        for (expression, text, matches) in [
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("/api/.*", "/api/x", true),
            ("/api", "/api/x", false),
            ("^/api$", "/api", true),
            ("(?i)/API", "/api", true),
            (".*", "a\nb", false),
            (r"\d+", "123", true),
            ("", "", false),
        ] {
            let matched = Expression::of_all(expression).is_ok_and(|e| e.is_match(text.as_bytes()));
            assert_eq!(matched, matches, "{expression} {text}");
        }
    }

    #[test]
    fn what_would_explode_is_refused_and_what_backtracks_elsewhere_is_linear() {
        assert_eq!(Expression::of_all(r"(\w{1,100}){1,100}"), Err(BadExpression::TooLarge));
        assert_eq!(Expression::of_all(&"a".repeat(1025)), Err(BadExpression::TooLong));
        let evil = Expression::of_all("(a+)+b").unwrap();
        let started = std::time::Instant::now();
        assert!(!evil.is_match(&vec![b'a'; 1 << 20]));
        assert!(started.elapsed().as_secs() < 5, "an exponential engine would never end");
        assert!(matches!(Expression::of_all("(?=a)"), Err(BadExpression::Syntax(_))));
        assert!(matches!(Expression::of_all("a)(b"), Err(BadExpression::Syntax(_))));
        assert!(matches!(Expression::of_all(&"(".repeat(500)), Err(BadExpression::Syntax(_))));
    }

    #[test]
    fn what_re2_reads_as_something_else_is_refused() {
        for (text, found) in
            [("[a&&b]", Some("&&")), ("[a--b]", Some("--")), ("[x~~]", Some("~~")), ("[[a]]", Some("["))]
        {
            assert_eq!(set_operation(text), found, "{text}");
        }
        for text in ["a&&b", "[a-b]", "[[:alpha:]_]", r"[\[a]", "[]a]", "[^]a]", "x[a]--[b]", r"[a\&&]"] {
            assert_eq!(set_operation(text), None, "{text}");
        }
    }
}
