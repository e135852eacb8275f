//! Reading `extensionProviders`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Reader;
use crate::options::ext_authz::{
    BodyInCheck, DEFAULT_STATUS, DEFAULT_TIMEOUT, ExtAuthz, ExtAuthzProtocol, HttpCheck, MAX_BODY, MAX_HEADERS,
    MAX_PROVIDERS,
};

/// The kinds of providers that are for something else.
const OTHERS: &[&str] = &[
    "datadog",
    "envoyFileAccessLog",
    "envoyHttpAls",
    "envoyOtelAls",
    "envoyTcpAls",
    "lightstep",
    "opencensus",
    "opentelemetry",
    "prometheus",
    "sds",
    "skywalking",
    "stackdriver",
    "zipkin",
];

/// The providers of `entries` that authorize. One that cannot be read is not there, so that policies that name it deny.
pub(super) fn read(entries: Vec<Value>, parent: &mut Reader<'_>) -> Vec<Arc<ExtAuthz>> {
    if entries.len() > MAX_PROVIDERS {
        parent.error("extensionProviders", format!("more than {MAX_PROVIDERS}: the rest is not there"));
    }
    let mut providers: Vec<Arc<ExtAuthz>> = Vec::new();
    for (i, entry) in entries.into_iter().take(MAX_PROVIDERS).enumerate() {
        let field = format!("extensionProviders[{i}]");
        let Value::Object(fields) = entry else {
            parent.error(&field, "not a mapping: the provider is not there");
            continue;
        };
        let path = format!("{}.{field}", parent.path);
        let mut reader = Reader { object: parent.object, findings: &mut *parent.findings, path, fields };
        let Some(provider) = provider(&mut reader) else { continue };
        if providers.iter().any(|known| known.name == provider.name) {
            reader.error("name", "another provider has this name: the first holds");
            continue;
        }
        providers.push(Arc::new(provider));
    }
    providers
}

fn provider(reader: &mut Reader<'_>) -> Option<ExtAuthz> {
    let name = reader.take::<Arc<str>>("name", "a name").filter(|name| !name.is_empty());
    let http = reader.take::<Map<String, Value>>("envoyExtAuthzHttp", "a mapping");
    let grpc = reader.take::<Map<String, Value>>("envoyExtAuthzGrpc", "a mapping");
    for field in OTHERS {
        if reader.fields.remove(*field).is_some() {
            reader.warn(field, "has no effect here");
        }
    }
    reader.finish();
    let (kind, fields) = match (http, grpc) {
        (Some(_), Some(_)) => {
            reader.error("envoyExtAuthzGrpc", "only one kind may be set: the provider is not there");
            return None;
        }
        (Some(fields), None) => ("envoyExtAuthzHttp", fields),
        (None, Some(fields)) => ("envoyExtAuthzGrpc", fields),
        (None, None) => return None,
    };
    let Some(name) = name else {
        reader.error("name", "is missing: no policy can name the provider");
        return None;
    };
    let path = format!("{}.{kind}", reader.path);
    let mut reader = Reader { object: reader.object, findings: &mut *reader.findings, path, fields };
    let provider = ext_authz(name, kind == "envoyExtAuthzHttp", &mut reader);
    reader.finish();
    provider
}

fn ext_authz(name: Arc<str>, is_http: bool, reader: &mut Reader<'_>) -> Option<ExtAuthz> {
    let service = reader.take::<String>("service", "a host").unwrap_or_default();
    let (namespace, host) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, service.as_str()),
    };
    let is_host = |text: &str| {
        (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let port = reader.take::<u16>("port", "a port").filter(|port| *port != 0);
    let timeout = reader.duration("timeout").unwrap_or(DEFAULT_TIMEOUT);
    let fail_open = reader.take::<bool>("failOpen", "true or false").unwrap_or(false);
    let clear_route_cache = reader.take::<bool>("clearRouteCache", "true or false").unwrap_or(false);
    let status_on_error = status(reader);
    let body = reader.mapping("includeRequestBodyInCheck");
    let body = (!body.is_empty()).then(|| body_in_check(body, reader));
    let protocol = match is_http {
        true => ExtAuthzProtocol::Http(http_check(reader)),
        false => ExtAuthzProtocol::Grpc,
    };
    if !is_host(host) || namespace.is_some_and(|namespace| !is_host(namespace)) {
        reader
            .error("service", "not HOST or NAMESPACE/HOST: the provider is not there, and policies that name it deny");
        return None;
    }
    let Some(port) = port else {
        reader.error("port", "not a port from 1 to 65535: the provider is not there, and policies that name it deny");
        return None;
    };
    let (namespace, host) = (namespace.map(Arc::from), Arc::from(host));
    Some(ExtAuthz {
        name,
        namespace,
        host,
        port,
        timeout,
        fail_open,
        status_on_error,
        clear_route_cache,
        body,
        protocol,
    })
}

/// Istio writes the status as text.
fn status(reader: &mut Reader<'_>) -> u16 {
    let status = match reader.fields.remove("statusOnError") {
        None | Some(Value::Null) => return DEFAULT_STATUS,
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Number(number)) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Some(_) => None,
    };
    status.filter(|status| (200..=599).contains(status)).unwrap_or_else(|| {
        reader.error("statusOnError", "not a status from 200 to 599: the default holds");
        DEFAULT_STATUS
    })
}

fn body_in_check(fields: Map<String, Value>, parent: &mut Reader<'_>) -> BodyInCheck {
    let path = format!("{}.includeRequestBodyInCheck", parent.path);
    let mut reader = Reader { object: parent.object, findings: &mut *parent.findings, path, fields };
    let max_bytes = reader.take::<u32>("maxRequestBytes", "a number of bytes").unwrap_or(0);
    if max_bytes > MAX_BODY {
        reader.error("maxRequestBytes", format!("at most {MAX_BODY} are held: that is the limit"));
    }
    let allow_partial = reader.take::<bool>("allowPartialMessage", "true or false").unwrap_or(false);
    let pack_as_bytes = reader.take::<bool>("packAsBytes", "true or false").unwrap_or(false);
    reader.finish();
    BodyInCheck { max_bytes: max_bytes.min(MAX_BODY), allow_partial, pack_as_bytes }
}

fn http_check(reader: &mut Reader<'_>) -> HttpCheck {
    let path_prefix = reader.take::<Arc<str>>("pathPrefix", "a path").unwrap_or_default();
    let mut request_headers = headers("includeRequestHeadersInCheck", reader);
    // The name before Istio 1.10.
    request_headers.extend(headers("includeHeadersInCheck", reader));
    let additional = reader.mapping("includeAdditionalHeadersInCheck");
    let mut additional_headers = Vec::new();
    for (name, value) in additional.into_iter().take(MAX_HEADERS) {
        match (is_header(&name), value) {
            (true, Value::String(value)) if value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) => {
                additional_headers.push((name.to_ascii_lowercase().into(), value.into()));
            }
            _ => reader.error("includeAdditionalHeadersInCheck", "one of its headers is none: it is not sent"),
        }
    }
    HttpCheck {
        path_prefix,
        request_headers,
        additional_headers,
        to_upstream_on_allow: headers("headersToUpstreamOnAllow", reader),
        to_downstream_on_allow: headers("headersToDownstreamOnAllow", reader),
        to_downstream_on_deny: headers("headersToDownstreamOnDeny", reader),
    }
}

fn headers(field: &str, reader: &mut Reader<'_>) -> Vec<Arc<str>> {
    let names = reader.take::<Vec<String>>(field, "a list of names of headers").unwrap_or_default();
    if names.len() > MAX_HEADERS {
        reader.error(field, format!("more than {MAX_HEADERS}: the rest is ignored"));
    }
    let mut kept = Vec::new();
    for (i, name) in names.into_iter().take(MAX_HEADERS).enumerate() {
        let bare = name.strip_suffix('*').or_else(|| name.strip_prefix('*')).unwrap_or(&name);
        if name == "*" || is_header(bare) {
            kept.push(name.to_ascii_lowercase().into());
        } else {
            reader.error(&format!("{field}[{i}]"), "not the name of a header: it is ignored");
        }
    }
    kept
}

fn is_header(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::MeshOptions;

    fn read(text: &str) -> (MeshOptions, Vec<String>) {
        let mut findings = Vec::new();
        let options = super::super::parse(text, &crate::options::config_map("culvert"), &mut findings);
        (options.unwrap(), findings.into_iter().map(|finding| finding.field).collect())
    }

    #[test]
    fn every_field_of_an_http_provider_is_read() {
        let (options, findings) = read(
            "
extensionProviders:
- name: opa
  envoyExtAuthzHttp:
    service: foo/opa.foo.svc.cluster.local
    port: 8000
    timeout: 1.5s
    pathPrefix: /check
    failOpen: true
    statusOnError: '503'
    clearRouteCache: true
    includeRequestHeadersInCheck: [X-Ext-Authz, 'x-b3-*']
    includeHeadersInCheck: [cookie]
    includeAdditionalHeadersInCheck: {X-Mesh: culvert}
    includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true, packAsBytes: true}
    headersToUpstreamOnAllow: [authorization]
    headersToDownstreamOnAllow: [set-cookie]
    headersToDownstreamOnDeny: [content-type, '*']
",
        );
        assert_eq!(findings, [""; 0]);
        let list = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>();
        let expected = ExtAuthz {
            name: "opa".into(),
            namespace: Some("foo".into()),
            host: "opa.foo.svc.cluster.local".into(),
            port: 8000,
            timeout: Duration::from_millis(1500),
            fail_open: true,
            status_on_error: 503,
            clear_route_cache: true,
            body: Some(BodyInCheck { max_bytes: 1024, allow_partial: true, pack_as_bytes: true }),
            protocol: ExtAuthzProtocol::Http(HttpCheck {
                path_prefix: "/check".into(),
                request_headers: list(&["x-ext-authz", "x-b3-*", "cookie"]),
                additional_headers: vec![("x-mesh".into(), "culvert".into())],
                to_upstream_on_allow: list(&["authorization"]),
                to_downstream_on_allow: list(&["set-cookie"]),
                to_downstream_on_deny: list(&["content-type", "*"]),
            }),
        };
        assert_eq!(*options.ext_authz[0], expected);
    }

    #[test]
    fn a_grpc_provider_has_istios_defaults() {
        let (options, findings) =
            read("extensionProviders: [{name: g, envoyExtAuthzGrpc: {service: g.example.com, port: 9000}}]");
        assert_eq!(findings, [""; 0]);
        let [provider] = &*options.ext_authz else { panic!() };
        assert_eq!((provider.namespace.as_deref(), provider.port, provider.fail_open), (None, 9000, false));
        assert_eq!((provider.timeout, provider.status_on_error), (Duration::from_secs(600), 403));
        assert_eq!((provider.body, &provider.protocol), (None, &ExtAuthzProtocol::Grpc));
    }

    #[test]
    fn a_provider_that_cannot_be_read_is_not_there_and_is_reported() {
        const AT: &str = "data[mesh].extensionProviders";
        for (entry, field) in [
            ("1", "[0]"),
            ("{name: p, envoyExtAuthzGrpc: {service: 'a b', port: 1}}", "[0].envoyExtAuthzGrpc.service"),
            ("{name: p, envoyExtAuthzGrpc: {port: 1}}", "[0].envoyExtAuthzGrpc.service"),
            ("{name: p, envoyExtAuthzGrpc: {service: a, port: 0}}", "[0].envoyExtAuthzGrpc.port"),
            ("{envoyExtAuthzGrpc: {service: a, port: 1}}", "[0].name"),
            (
                "{name: p, envoyExtAuthzGrpc: {service: a, port: 1}, envoyExtAuthzHttp: {service: a, port: 1}}",
                "[0].envoyExtAuthzGrpc",
            ),
            ("{name: p, zipkin: {service: a, port: 1}}", "[0].zipkin"),
        ] {
            let (options, findings) = read(&format!("extensionProviders: [{entry}]"));
            assert_eq!((options.ext_authz.len(), findings), (0, vec![format!("{AT}{field}")]), "{entry}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_read_has_the_strict_default_and_is_reported() {
        let (options, findings) = read(
            "extensionProviders: [{name: p, envoyExtAuthzHttp: {service: a, port: 1, failOpen: maybe, \
             statusOnError: 99, headersToUpstreamOnAllow: ['a b'], includeRequestBodyInCheck: {maxRequestBytes: 9999999}, \
             odd: 1}}]",
        );
        let [provider] = &*options.ext_authz else { panic!() };
        assert_eq!((provider.fail_open, provider.status_on_error), (false, 403));
        assert_eq!(provider.body.map(|body| body.max_bytes), Some(MAX_BODY));
        let fields: Vec<_> = findings.iter().filter_map(|field| field.split("Http.").nth(1)).collect();
        assert_eq!(
            fields,
            [
                "failOpen",
                "statusOnError",
                "includeRequestBodyInCheck.maxRequestBytes",
                "headersToUpstreamOnAllow[0]",
                "odd"
            ]
        );
    }

    #[test]
    fn of_two_providers_of_one_name_the_first_holds() {
        let one = |host: &str| format!("{{name: p, envoyExtAuthzGrpc: {{service: {host}, port: 1}}}}");
        let (options, findings) = read(&format!("extensionProviders: [{}, {}]", one("a"), one("b")));
        assert_eq!((options.ext_authz.len(), &*options.ext_authz[0].host, findings.len()), (1, "a", 1));
    }
}
