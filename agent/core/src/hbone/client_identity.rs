//! `culvert-client-identity`: on whose behalf a waypoint opens a tunnel.
//!
//! Behind a waypoint the node of the destination sees the waypoint's certificate, so that policies there could only name
//! the waypoint. This header of the CONNECT request carries the SPIFFE id of the client whose requests the tunnel is for:
//!
//! ```text
//! :method: CONNECT
//! :authority: 10.0.1.1:8080
//! culvert-client-identity: spiffe://cluster.local/ns/shop/sa/front
//! ```
//!
//! It is believed only of a waypoint of the workload that is reached, or of a service that leads to the port; the mesh
//! state says which pods that is ([`crate::policy::authorize`]). Of anybody else it is disregarded, as a peer that does
//! not know it disregards it: who forges it gains nothing. What is no SPIFFE id, or several, is refused (400). A node never sends it for its own pods, whose identity is in
//! their certificate.
//!
//! One tunnel stream is for one client: a waypoint that keeps connections for several requests keeps them apart by client.

use std::str::FromStr;

use super::h2::Headers;
use crate::identity::{Identity, NotAnIdentity};

/// The name of the header.
pub const CLIENT_IDENTITY: &str = "culvert-client-identity";

/// On whose behalf a CONNECT request says that it is made; `None` if it does not say.
///
/// # Errors
/// When what it says is no identity, or it says several.
pub fn client_identity(headers: &Headers) -> Result<Option<Identity>, NotAnIdentity> {
    let mut values = headers.iter().filter(|(name, _)| *name == CLIENT_IDENTITY).map(|(_, value)| value);
    let text = |value: &[u8]| String::from_utf8_lossy(value).chars().take(256).collect::<String>();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => {
            let value = std::str::from_utf8(one).map_err(|_| NotAnIdentity(text(one)))?;
            Identity::from_str(value).map(Some)
        }
        (Some(first), Some(_)) => Err(NotAnIdentity(text(first))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::h2::Request;
    use super::*;

    fn read(values: &[&str]) -> Result<Option<Identity>, NotAnIdentity> {
        let request = Request::connect(&"10.0.0.1:80".parse().unwrap()).with_header("baggage", "a=b");
        let request = values.iter().fold(request, |request, value| request.with_header(CLIENT_IDENTITY, value));
        client_identity(&request.headers)
    }

    #[test]
    fn one_identity_is_read_and_none_is_none() {
        assert_eq!(read(&[]), Ok(None));
        let front = Identity::new("cluster.local", "shop", "front");
        assert_eq!(read(&[&front.to_string()]), Ok(Some(front)));
    }

    #[test]
    fn what_is_no_identity_or_several_is_refused() {
        let front = "spiffe://cluster.local/ns/shop/sa/front";
        for values in [vec![""], vec!["front"], vec!["cluster.local/ns/shop/sa/front"], vec![front, front]] {
            assert!(read(&values).is_err(), "{values:?}");
        }
    }
}
