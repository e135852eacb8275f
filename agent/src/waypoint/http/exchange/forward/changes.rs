//! What a route does to a request and to its answer.

use std::net::SocketAddr;

use culvert_core::route::decide::{Forward, RouteDecision};
use culvert_core::route::headers::{HeaderOp, HeaderOps};
use culvert_core::route::template::Variables;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

use crate::waypoint::http::exchange::{Decided, replies};
use crate::waypoint::http::head::Admitted;
use crate::waypoint::http::reply::LocalReply;
use crate::waypoint::session::Session;

/// The path before it was rewritten.
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What a route does to an answer.
pub(super) struct Changes<'d> {
    decision: &'d RouteDecision,
    client: SocketAddr,
    /// The request as it came; `None` if nothing is written of it.
    original: Option<Box<(Parts, Admitted)>>,
}

impl<'d> Changes<'d> {
    /// Makes of a request what the service gets.
    pub(super) fn begin(
        decision: &'d RouteDecision,
        forward: &Forward,
        session: &Session,
        decided: &mut Decided,
    ) -> Result<Self, Box<LocalReply>> {
        let quoting = |operations: &HeaderOps| operations.iter().any(quotes);
        let quoted = decision.request_operations().any(quoting) || decision.response_operations().any(quoting);
        let original = quoted.then(|| Box::new((decided.head.clone(), decided.admitted)));
        let changes = Self { decision, client: session.client_address, original };
        decision.apply_to_request(&mut decided.head.headers, &changes.variables(None));
        if let Some(path) = &forward.path {
            let invalid = |_| LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "rewritten_path_invalid");
            rewrite(&mut decided.head, path).map_err(invalid)?;
        }
        Ok(changes)
    }

    /// Makes of an endpoint's answer what the client gets.
    pub(super) fn of_answer(&self, headers: &mut HeaderMap, upstream: Option<SocketAddr>) {
        self.decision.apply_to_response(headers, &self.variables(upstream));
    }

    /// The same for an answer that says that there is none.
    pub(super) fn of_failure(&self, reply: &mut LocalReply) {
        replies::add_cors(self.decision, reply);
    }

    fn variables(&self, upstream: Option<SocketAddr>) -> Variables<'_> {
        let request = self.original.as_ref().map(|original| original.1.view(&original.0));
        Variables { request, client: Some(self.client), upstream }
    }
}

/// Whether an operation writes what is not known before.
fn quotes(operation: &HeaderOp) -> bool {
    match operation {
        HeaderOp::Set(_, template) | HeaderOp::Add(_, template) => !template.is_literal(),
        HeaderOp::Remove(_) => false,
    }
}

fn rewrite(head: &mut Parts, path: &str) -> Result<(), http::uri::InvalidUri> {
    let before = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if let Ok(before) = HeaderValue::from_str(before) {
        head.headers.insert(ORIGINAL_PATH, before);
    }
    head.uri = Uri::from(PathAndQuery::try_from(path)?);
    Ok(())
}
