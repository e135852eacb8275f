//! Path templates: `{*}` stands for one segment, `{**}` for any number of them (Istio `operation.paths`).

/// A path that holds `{*}` or `{**}`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    /// Segments before the `{**}`, or all; `None` for `{*}`.
    segments: Box<[Option<Box<str>>]>,
    /// What follows the `{**}`, if there is one: a literal, usually empty.
    rest: Option<Box<str>>,
}

impl PathTemplate {
    /// Whether `path` is meant as a template.
    pub fn is_one(path: &str) -> bool {
        path.contains("{*}") || path.contains("{**}")
    }

    /// Reads a template: a segment is literal, or all of it is `{*}` or, once and after every `{*}`, `{**}`.
    ///
    /// # Errors
    /// When it is none, with the reason.
    pub fn parse(path: &str) -> Result<Self, &'static str> {
        let Some(path) = path.strip_prefix('/') else { return Err("is a path template that does not start with /") };
        let mut segments = Vec::new();
        let mut remaining = path.split('/');
        while let Some(segment) = remaining.next() {
            match segment {
                "{*}" => segments.push(None),
                "{**}" => {
                    let mut rest = String::new();
                    for literal in remaining {
                        if !is_literal(literal) {
                            return Err("is a path template with something after {**} that is not literal");
                        }
                        rest.push('/');
                        rest.push_str(literal);
                    }
                    return Ok(Self { segments: segments.into(), rest: Some(rest.into()) });
                }
                literal if is_literal(literal) => segments.push(Some(literal.into())),
                _ => return Err("is a path template with a segment that is neither literal nor {*} nor {**}"),
            }
        }
        Ok(Self { segments: segments.into(), rest: None })
    }

    /// Whether `path`, without its query, is of this form. `{*}` is never empty; `{**}` may be.
    pub fn matches(&self, path: &str) -> bool {
        let Some(mut remaining) = path.strip_prefix('/').map(Some) else { return false };
        for segment in &self.segments {
            let Some(path) = remaining else { return false };
            let (first, after) = match path.split_once('/') {
                Some((first, after)) => (first, Some(after)),
                None => (path, None),
            };
            let fits = match segment {
                Some(literal) => first == &**literal,
                None => !first.is_empty(),
            };
            if !fits {
                return false;
            }
            remaining = after;
        }
        match (&self.rest, remaining) {
            (None, remaining) => remaining.is_none(),
            (Some(_), None) => false,
            (Some(rest), Some(remaining)) => remaining.ends_with(&**rest),
        }
    }
}

fn is_literal(segment: &str) -> bool {
    !segment.contains(['*', '{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_as_istio_says() {
        for (template, path, matches) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz.txt/", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/foo/a/b", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
            ("/foo/{*}/bar/{**}", "/foo//bar/x", false),
            ("/{**}", "/", true),
            ("/{**}/end", "/a/b/end", true),
            ("/{**}/end", "/a/bend", false),
            ("/{*}", "/", false),
            ("/{*}", "a", false),
            ("/{*}/", "/a/", true),
            ("/{*}/", "/a", false),
        ] {
            assert_eq!(PathTemplate::parse(template).map(|t| t.matches(path)), Ok(matches), "{template} {path}");
        }
    }

    #[test]
    fn what_cannot_be_a_template_is_refused() {
        for template in
            ["/*/baz/{*}", "/**/baz/{*}", "/{**}/foo/{*}", "/foo/{*}.txt", "{*}", "/{**}/{**}", "/a{**}", "/{*}/*"]
        {
            assert!(PathTemplate::is_one(template) && PathTemplate::parse(template).is_err(), "{template}");
        }
    }
}
