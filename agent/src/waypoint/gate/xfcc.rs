//! `x-forwarded-client-cert`: telling applications who their client is, in Envoy's form.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::SessionFacts;

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Takes away what the client says of itself, and says who it is where `tells_client` and that is known.
///
/// The client's certificate ends here: what is told of it is its identity, as Istio's waypoints do
/// (`ambient.istio.io/xfcc-include-client-identity`). Returns whether the header has changed.
pub(super) fn set(headers: &mut HeaderMap, tells_client: bool, session: &SessionFacts<'_>) -> bool {
    let was_there = headers.remove(XFCC).is_some();
    let Some(client) = session.principal.filter(|_| tells_client) else { return was_there };
    let text = match session.own {
        Some(own) => format!("By={own};URI={client}"),
        None => format!("URI={client}"),
    };
    // The names of an identity could hold anything that a certificate can; what is no header is not said.
    match HeaderValue::try_from(text) {
        Ok(value) => {
            headers.insert(XFCC, value);
            true
        }
        Err(_) => was_there,
    }
}
