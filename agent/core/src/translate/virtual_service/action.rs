//! What becomes of a request.

use bytes::Bytes;
use culvert_api::networking::virtual_service::{
    DerivePort, Destination, HttpDirectResponse, HttpMatchRequest, HttpRedirect, HttpRoute, HttpRouteDestination,
};

use super::super::values::{self, shown};
use super::Reader;
use crate::route::http::{Backend, DirectResponse, HttpAction, HttpRule, ServiceRef, WeightedBackend};
use crate::route::pattern::Expression;
use crate::route::redirect::{Redirect, RedirectPort, is_authority, is_path};
use crate::route::rewrite::{PathRewrite, Substitution};

/// The most bytes of a body, by Istio's webhook.
const MAX_BODY: usize = 1 << 20;
/// The most destinations of a rule.
const MAX_DESTINATIONS: usize = 512;

impl Reader<'_, '_> {
    /// What becomes of the requests of a rule: of several answers, a redirect before a direct response before a route.
    pub(super) fn action(&mut self, field: &str, route: &HttpRoute) -> HttpAction {
        let several = [route.redirect.is_some(), route.direct_response.is_some(), !route.route.is_empty()];
        if several.iter().filter(|there| **there).count() > 1 {
            self.error(field, "has more than one of redirect, directResponse and route: the first of them counts");
        }
        let answered = route.redirect.is_some() || route.direct_response.is_some();
        if answered && (route.rewrite.is_some() || route.fault.is_some()) {
            self.warning(field, "redirect and directResponse go with neither rewrite nor fault: rewrite has no effect");
        }
        if let Some(redirect) = &route.redirect {
            return self.redirect(&format!("{field}.redirect"), redirect, &route.matches);
        }
        if let Some(response) = &route.direct_response {
            return self.respond(&format!("{field}.directResponse"), response);
        }
        self.forward(&format!("{field}.route"), &route.route)
    }

    fn invalid(&mut self, field: &str, message: &str) -> HttpAction {
        self.error(field, format!("{message}: the rule answers with 500"));
        HttpAction::Invalid(format!("{field} {message}").into())
    }

    fn redirect(&mut self, field: &str, written: &HttpRedirect, matches: &[HttpMatchRequest]) -> HttpAction {
        let HttpRedirect { uri, prefix_rewrite, authority, port, derive_port, scheme, redirect_code } = written;
        if [uri, prefix_rewrite, authority, scheme].iter().all(|text| text.is_empty())
            && port.is_none()
            && derive_port.is_none()
        {
            return self.invalid(field, "sends clients where they came from: set uri, authority, scheme or port");
        }
        let status = match redirect_code {
            0 => 301,
            301 | 302 | 303 | 307 | 308 => *redirect_code as u16,
            other => {
                return self.invalid(field, &format!("has code {other}, which is none of 301, 302, 303, 307, 308"));
            }
        };
        if !authority.is_empty() && !is_authority(authority) {
            return self.invalid(field, &format!("has authority {}, which is none", shown(authority)));
        }
        if !matches!(scheme.as_str(), "" | "http" | "https") {
            return self.invalid(field, &format!("has scheme {}, which is neither http nor https", shown(scheme)));
        }
        let by_prefix = |m: &HttpMatchRequest| m.uri.as_ref().is_some_and(|uri| uri.prefix.is_some());
        let path = match (uri.as_str(), prefix_rewrite.as_str()) {
            ("", "") => None,
            ("", prefix) if !matches.iter().all(by_prefix) => {
                return self
                    .invalid(field, &format!("replaces a prefix by {}, and not every match has one", shown(prefix)));
            }
            ("", prefix) => Some((prefix, PathRewrite::Matched(prefix.into()))),
            (uri, "") => Some((uri, PathRewrite::Full(uri.into()))),
            _ => return self.invalid(field, "has both uri and prefixRewrite"),
        };
        if let Some((text, _)) = path.as_ref().filter(|(text, _)| !is_path(text)) {
            return self.invalid(field, &format!("has path {}: percent-encode what is no ASCII", shown(text)));
        }
        let port = match (port, derive_port) {
            (None | Some(0), None) => RedirectPort::Unchanged,
            (None, Some(DerivePort::FromProtocolDefault)) => RedirectPort::OfScheme,
            (None, Some(DerivePort::FromRequestPort)) => RedirectPort::OfRequest,
            (Some(port), None) => match values::port(*port) {
                Some(port) => RedirectPort::Number(port),
                None => return self.invalid(field, &format!("has port {port}, which is none")),
            },
            (Some(_), Some(_)) => return self.invalid(field, "has both port and derivePort"),
        };
        let some = |text: &String| (!text.is_empty()).then(|| text.as_str().into());
        HttpAction::Redirect(Redirect {
            status,
            scheme: some(scheme),
            authority: some(authority),
            port,
            path: path.map(|(_, path)| path),
        })
    }

    fn respond(&mut self, field: &str, written: &HttpDirectResponse) -> HttpAction {
        let status = match u16::try_from(written.status) {
            Ok(status @ 200..=599) => status,
            _ => return self.invalid(field, &format!("has status {}, which is not from 200 to 599", written.status)),
        };
        let body = match written.body.as_ref().map(|body| (&body.string, &body.bytes)) {
            None | Some((None, None)) => Bytes::new(),
            Some((Some(text), None)) => Bytes::copy_from_slice(text.as_bytes()),
            Some((None, Some(encoded))) => match base64(encoded) {
                Some(body) => body.into(),
                None => return self.invalid(field, "has body.bytes that are not in base64"),
            },
            Some((Some(_), Some(_))) => return self.invalid(field, "has both body.string and body.bytes"),
        };
        if body.len() > MAX_BODY {
            return self.invalid(field, &format!("has a body of more than {MAX_BODY} bytes"));
        }
        HttpAction::Respond(DirectResponse { status, body })
    }

    fn forward(&mut self, field: &str, written: &[HttpRouteDestination]) -> HttpAction {
        if written.is_empty() {
            return self.invalid(field, "is missing: write route, redirect, directResponse or delegate");
        }
        let weights: Vec<i32> = written.iter().map(|destination| destination.weight).collect();
        let weights = match self.weights(field, &weights) {
            Ok(weights) => weights,
            Err(invalid) => return invalid,
        };
        let mut backends = Vec::new();
        for (at, (destination, weight)) in written.iter().zip(weights).enumerate().filter(|(_, (_, w))| *w > 0) {
            let field = format!("{field}[{at}]");
            let backend = self.backend(&format!("{field}.destination"), &destination.destination);
            let headers = destination.headers.as_ref();
            let request = headers.and_then(|headers| headers.request.as_ref());
            let response = headers.and_then(|headers| headers.response.as_ref());
            let (request_headers, authority) = self.operations(&format!("{field}.headers.request"), request, true);
            let (response_headers, _) = self.operations(&format!("{field}.headers.response"), response, false);
            backends.push(WeightedBackend { backend, weight, request_headers, response_headers, authority });
        }
        HttpAction::Forward(backends)
    }

    /// The shares of destinations: a single one gets everything, whatever its weight.
    pub(super) fn weights(&mut self, field: &str, written: &[i32]) -> Result<Vec<u32>, HttpAction> {
        if written.len() > MAX_DESTINATIONS {
            return Err(self.invalid(field, &format!("has more than {MAX_DESTINATIONS} destinations")));
        }
        if written.iter().any(|weight| *weight < 0) {
            return Err(self.invalid(field, "has a negative weight"));
        }
        if let [_] = written {
            return Ok(vec![1]);
        }
        if written.iter().all(|weight| *weight == 0) {
            return Err(self.invalid(field, "has several destinations, and no weight: give each one"));
        }
        Ok(written.iter().map(|weight| weight.unsigned_abs()).collect())
    }

    pub(super) fn backend(&mut self, field: &str, written: &Destination) -> Backend {
        match self.destination(field, written) {
            Ok(service) => Backend::Service(service),
            Err(reason) => {
                self.error(field, format!("{reason}: requests that go there are answered with 500"));
                Backend::Invalid(reason.into())
            }
        }
    }

    pub(super) fn destination(&self, field: &str, written: &Destination) -> Result<ServiceRef, String> {
        if written.host.is_empty() || written.host.contains('*') || written.host.len() > 253 {
            return Err(format!("{field}.host {} is no host", shown(&written.host)));
        }
        let port = match &written.port {
            None => None,
            Some(port) => Some(values::port(port.number).ok_or_else(|| format!("{field}.port.number is no port"))?),
        };
        let subset = (!written.subset.is_empty()).then(|| written.subset.as_str().into());
        Ok(ServiceRef { subset, port, ..self.service(&written.host) })
    }

    /// Reads the rewrite of a rule that forwards.
    pub(super) fn rewrite(&mut self, field: &str, route: &HttpRoute, rule: &mut HttpRule) {
        let Some(rewrite) = route.rewrite.as_ref().filter(|_| matches!(rule.action, HttpAction::Forward(_))) else {
            return;
        };
        let field = format!("{field}.rewrite");
        if !rewrite.authority.is_empty() {
            match self.authority(&format!("{field}.authority"), &rewrite.authority) {
                // What the rewrite says counts before what headers.request says.
                Some(authority) => rule.authority = Some(authority),
                None => rule.action = self.invalid(&field, "has an authority that is none"),
            }
        }
        let path = match (rewrite.uri.as_str(), &rewrite.uri_regex_rewrite) {
            ("", None) if rewrite.authority.is_empty() => {
                self.warning(&field, "says nothing: set uri, uriRegexRewrite or authority");
                return;
            }
            ("", None) => return,
            (uri, None) if is_path(uri) => Ok(PathRewrite::Matched(uri.into())),
            (uri, None) => Err(format!("has uri {}: percent-encode what is no ASCII", shown(uri))),
            ("", Some(regex)) => match Expression::within(&regex.pattern) {
                Err(why) => Err(format!("has uriRegexRewrite.match {} that {why}", shown(&regex.pattern))),
                Ok(expression) => match Substitution::parse(&regex.rewrite, &expression) {
                    Ok(substitution) => Ok(PathRewrite::Expression(expression, substitution)),
                    Err(why) => Err(format!("has uriRegexRewrite.rewrite {} that {why}", shown(&regex.rewrite))),
                },
            },
            (_, Some(_)) => Err("has both uri and uriRegexRewrite".to_owned()),
        };
        match path {
            Ok(path) => rule.rewrite = Some(path),
            Err(message) => rule.action = self.invalid(&field, &message),
        }
    }
}

/// Decodes base64 (RFC 4648), with or without padding; `None` for what is none.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits: u32 = 0;
        for byte in chunk {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let [_, a, b, c] = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        match chunk.len() {
            2 => out.push(a),
            3 => out.extend([a, b]),
            4 => out.extend([a, b, c]),
            _ => return None,
        }
    }
    Some(out)
}
