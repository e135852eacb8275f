//! `extensionProviders` that authorize: `envoyExtAuthzHttp` and `envoyExtAuthzGrpc` (istio/api
//! `mesh/v1alpha1/config.proto`).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// A service that is asked about requests, for policies of action CUSTOM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtAuthz {
    /// The name by which policies name it.
    pub name: Arc<str>,
    /// The namespace of the service, where `service` is written as `NAMESPACE/HOST`.
    pub namespace: Option<Arc<str>>,
    /// The host of the service.
    pub host: Arc<str>,
    /// The port of the service.
    pub port: u16,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Whether a request goes on when it does not answer.
    pub fail_open: bool,
    /// The HTTP status of a request that is refused because it did not answer.
    pub status_on_error: u16,
    /// Whether the route is chosen again by what it has changed.
    pub clear_route_cache: bool,
    /// What of the body it is sent; nothing if absent.
    pub body: Option<BodyInCheck>,
    /// How it is spoken to.
    pub protocol: ExtAuthzProtocol,
}

/// `includeRequestBodyInCheck`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BodyInCheck {
    /// The most bytes that are sent.
    pub max_bytes: u32,
    /// Whether a longer body is sent in part; else its request is refused (413).
    pub allow_partial: bool,
    /// Whether it is sent as bytes, and not as text (gRPC only).
    pub pack_as_bytes: bool,
}

/// How a provider is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ExtAuthzProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`
    Grpc,
    /// The request's own method and path, without its body.
    Http(HttpCheck),
}

/// What an HTTP provider is told, and what is taken from its answer. Names of headers are in lower case, and match
/// exactly, by `prefix*`, by `*suffix`, or all by `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HttpCheck {
    /// `pathPrefix`: what is put before the path.
    pub path_prefix: Arc<str>,
    /// `includeRequestHeadersInCheck`: headers of the request that are sent beside Host, Method, Path, Content-Length
    /// and Authorization.
    pub request_headers: Vec<Arc<str>>,
    /// `includeAdditionalHeadersInCheck`: headers that are added.
    pub additional_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `headersToUpstreamOnAllow`: headers of an agreeing answer that the request is sent on with.
    pub to_upstream_on_allow: Vec<Arc<str>>,
    /// `headersToDownstreamOnAllow`: headers of an agreeing answer that the response carries.
    pub to_downstream_on_allow: Vec<Arc<str>>,
    /// `headersToDownstreamOnDeny`: headers of a refusing answer that the response carries beside those of HTTP;
    /// empty for all.
    pub to_downstream_on_deny: Vec<Arc<str>>,
}

/// Istio's default for `timeout`.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// Envoy's default for `status_on_error`.
pub(super) const DEFAULT_STATUS: u16 = 403;
/// The most providers that are read.
pub(super) const MAX_PROVIDERS: usize = 64;
/// The most names of a list of headers that are read.
pub(super) const MAX_HEADERS: usize = 128;
/// The largest body that is ever held for a provider.
pub(super) const MAX_BODY: u32 = 4 << 20;
