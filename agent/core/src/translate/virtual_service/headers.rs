//! What is done to headers.

use std::collections::BTreeMap;

use culvert_api::networking::virtual_service::{HeaderOperations, HttpRoute};
use http::{HeaderName, HeaderValue};

use super::super::values::shown;
use super::Reader;
use crate::route::headers::{HeaderOp, HeaderOps};
use crate::route::http::{HttpAction, HttpRule};
use crate::route::redirect::is_authority;
use crate::route::template::Template;

/// The most operations of one list.
const MAX_OPERATIONS: usize = 256;

impl Reader<'_, '_> {
    /// Reads the operations of a rule. A rule with one destination does that one's after its own, in one go.
    pub(super) fn headers(&mut self, field: &str, route: &HttpRoute, rule: &mut HttpRule) {
        let headers = route.headers.as_ref();
        let request = headers.and_then(|headers| headers.request.as_ref());
        let response = headers.and_then(|headers| headers.response.as_ref());
        (rule.request_headers, rule.authority) = self.operations(&format!("{field}.headers.request"), request, true);
        (rule.response_headers, _) = self.operations(&format!("{field}.headers.response"), response, false);
        if let HttpAction::Forward(backends) = &mut rule.action
            && let ([_], [only]) = (&*route.route, backends.as_mut_slice())
        {
            rule.request_headers = rule.request_headers.followed_by(&std::mem::take(&mut only.request_headers));
            rule.response_headers = rule.response_headers.followed_by(&std::mem::take(&mut only.response_headers));
        }
    }

    /// The operations of a list: in order, those that remove, that set, and that add, each by the names of the headers;
    /// and the authority that a request gets.
    pub(super) fn operations(
        &mut self,
        field: &str,
        written: Option<&HeaderOperations>,
        of_request: bool,
    ) -> (HeaderOps, Option<HeaderValue>) {
        let Some(HeaderOperations { set, add, remove }) = written else { return (HeaderOps::default(), None) };
        let mut operations = Vec::new();
        for (at, name) in remove.iter().take(MAX_OPERATIONS).enumerate() {
            let field = format!("{field}.remove[{at}]");
            operations.extend(self.header(&field, name).map(HeaderOp::Remove));
        }
        let mut authority = None;
        for (list, name, values) in [("set", "set", set), ("add", "add", add)] {
            if values.len() > MAX_OPERATIONS {
                self.error(format!("{field}.{name}"), format!("more than {MAX_OPERATIONS}: the rest has no effect"));
            }
            authority = authority.or(self.authority_of(&format!("{field}.{list}"), values, of_request));
            for (name, value) in values.iter().filter(|(name, _)| !is_authority_header(name)).take(MAX_OPERATIONS) {
                let field = format!("{field}.{list}[{name}]");
                let Some(name) = self.header(&field, name) else { continue };
                let template = match Template::parse(value) {
                    Ok(template) => template,
                    Err(why) => {
                        self.error(field, format!("{} {why}; it has no effect", shown(value)));
                        continue;
                    }
                };
                operations.push(match list {
                    "set" => HeaderOp::Set(name, template),
                    _ => HeaderOp::Add(name, template),
                });
            }
        }
        (HeaderOps::new(operations), authority)
    }

    fn authority_of(
        &mut self,
        field: &str,
        values: &BTreeMap<String, String>,
        of_request: bool,
    ) -> Option<HeaderValue> {
        let mut named = values.iter().filter(|(name, _)| is_authority_header(name));
        let (name, value) = named.next()?;
        let field = format!("{field}[{name}]");
        if !of_request {
            self.error(field, "an answer has no authority: it has no effect");
            return None;
        }
        if named.next().is_some() {
            self.warning(field.clone(), "the authority is there twice: this one counts");
        }
        self.authority(&field, value)
    }

    pub(super) fn authority(&mut self, field: &str, value: &str) -> Option<HeaderValue> {
        let header = is_authority(value).then(|| HeaderValue::from_str(value).ok()).flatten();
        if header.is_none() {
            self.error(field, format!("{} is no authority: it has no effect", shown(value)));
        }
        header
    }

    fn header(&mut self, field: &str, name: &str) -> Option<HeaderName> {
        let known = HeaderName::from_bytes(name.as_bytes()).ok().filter(|_| !is_authority_header(name));
        if known.is_none() {
            self.error(field, format!("{} is no header that can be changed: it has no effect", shown(name)));
        }
        known
    }
}

fn is_authority_header(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}
