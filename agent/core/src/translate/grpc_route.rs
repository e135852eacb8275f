//! GRPCRoute into rules (Gateway API `apis/v1/grpcroute_types.go`): its methods are paths, `/package.Service/Method`.

use culvert_api::GRPCRoute;
use culvert_api::gateway_api::experimental::grpcroutes::{
    GrpcRouteRules, GrpcRouteRulesBackendRefsFiltersType as BackendKind, GrpcRouteRulesFilters,
    GrpcRouteRulesFiltersType as Filter, GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeadersType as HeaderKind,
    GrpcRouteRulesMatchesMethodType as MethodKind,
};

use super::gateway_route::filters::{modifier, shared_backend};
use super::gateway_route::{GatewayRouteFacts, MAX_MATCHES, MAX_RULES, RouteReader, Surroundings, backend_ref};
use super::http_route::below;
use super::values::shown;
use crate::route::http::{HttpAction, HttpRule};
use crate::route::matcher::{HttpMatch, PathMatcher, UriMatch};

/// Reads `object`.
pub(crate) fn translate(
    object: &GRPCRoute,
    reference: culvert_api::ObjectRef,
    around: &Surroundings<'_>,
) -> GatewayRouteFacts {
    let mut reader = RouteReader::new(reference, super::metadata::created(&object.metadata), around);
    let rules = object.spec.rules.as_deref().unwrap_or_default();
    for (at, rule) in reader.at_most(MAX_RULES, "spec.rules", rules).iter().enumerate() {
        reader.grpc_rule(at, rule);
    }
    reader.finish(object.spec.parent_refs.as_ref())
}

impl RouteReader<'_> {
    fn grpc_rule(&mut self, at: usize, written: &GrpcRouteRules) {
        let field = format!("spec.rules[{at}]");
        let backends = written.backend_refs.iter().flatten();
        let action = self.forward(&field, backends.map(|backend| shared_backend!(backend, BackendKind)));
        let mut rule = HttpRule::new(self.object.clone(), at, action);
        rule.name = written.name.as_deref().unwrap_or_default().into();
        for (at, filter) in written.filters.iter().flatten().enumerate() {
            self.grpc_filter(&format!("{field}.filters[{at}]"), filter, &mut rule);
        }
        match written.matches.as_deref().unwrap_or_default() {
            [] => self.http_push(rule, HttpMatch { uri: Some(below("")), ..HttpMatch::default() }, 0, 0),
            matches => {
                let matches = self.at_most(MAX_MATCHES, &format!("{field}.matches"), matches);
                for (position, matched) in matches.iter().enumerate() {
                    let field = format!("{field}.matches[{position}]");
                    if let Some((matched, length)) = self.grpc_match(&field, matched) {
                        self.http_push(rule.clone(), matched, position, length);
                    }
                }
            }
        }
    }

    fn grpc_match(&mut self, field: &str, written: &GrpcRouteRulesMatches) -> Option<(HttpMatch, usize)> {
        let mut matched = HttpMatch::default();
        let mut length = 0;
        matched.uri = Some(below(""));
        if let Some(method) = &written.method {
            let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
            let (service, name) = (some(&method.service), some(&method.method));
            length = service.as_ref().map_or(0, String::len) + name.as_ref().map_or(0, String::len);
            let path = match (&method.r#type, service, name) {
                (Some(MethodKind::RegularExpression), service, name) => {
                    let any = || "[^/]+".to_owned();
                    let text = format!("/(?:{})/(?:{})", service.unwrap_or_else(any), name.unwrap_or_else(any));
                    PathMatcher::Expression(self.expression(&format!("{field}.method"), &text)?)
                }
                (_, Some(service), Some(name)) => PathMatcher::Exact(format!("/{service}/{name}").into()),
                (_, Some(service), None) => PathMatcher::Prefix(format!("/{service}/").into()),
                (_, None, Some(name)) => {
                    let text = format!("/[^/]+/{}", regex::escape(&name));
                    PathMatcher::Expression(self.expression(&format!("{field}.method.method"), &text)?)
                }
                (_, None, None) => {
                    self.unsupported("UnsupportedValue", format!("{field}.method names neither service nor method"));
                    return None;
                }
            };
            matched.uri = Some(UriMatch { path, ignore_case: false });
        }
        for header in written.headers.iter().flatten() {
            let regex = header.r#type == Some(HeaderKind::RegularExpression);
            self.header_match(&format!("{field}.headers"), &mut matched, &header.name, &header.value, regex)?;
        }
        Some((matched, length))
    }

    fn grpc_filter(&mut self, field: &str, filter: &GrpcRouteRulesFilters, rule: &mut HttpRule) {
        match (
            &filter.r#type,
            &filter.request_header_modifier,
            &filter.response_header_modifier,
            &filter.request_mirror,
        ) {
            (Filter::RequestHeaderModifier, Some(written), _, _) => {
                let operations = self.operations(field, &modifier!(written));
                rule.request_headers = rule.request_headers.followed_by(&operations);
            }
            (Filter::ResponseHeaderModifier, _, Some(written), _) => {
                let operations = self.operations(field, &modifier!(written));
                rule.response_headers = rule.response_headers.followed_by(&operations);
            }
            (Filter::RequestMirror, _, _, Some(mirror)) => {
                let to = self.backend(&format!("{field}.requestMirror.backendRef"), &backend_ref!(mirror.backend_ref));
                let fraction = mirror.fraction.as_ref().map(|part| (part.numerator, part.denominator));
                self.mirror(field, rule, to, mirror.percent, fraction);
            }
            (kind, ..) => {
                let message = format!("{field} of type {} is not supported, or is empty", shown(&format!("{kind:?}")));
                rule.action = HttpAction::Invalid(self.unsupported("UnsupportedValue", message));
            }
        }
    }
}
