//! From where a rule says that keys are, to the keys.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use culvert_core::authentication::KeySource;
use culvert_core::authentication::keys::{KeySet, MAX_KEY_SET};
use culvert_core::mesh::Snapshot;
use culvert_core::service::Resolution;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::Uri;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Fetch, address, client};
use crate::waypoint::gate::reach::{Reach, Server, Stream};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Places that are asked at once.
const MAX_FETCHES: usize = 16;
/// Where an issuer says where its keys are (OpenID Connect Discovery 1.0, 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Fetches key sets over the network.
pub(super) struct Fetcher {
    mesh: Arc<ArcSwap<Snapshot>>,
    reach: Arc<dyn Reach>,
    tls: client::Tls,
    /// Why nothing is fetched from an address.
    refused: fn(IpAddr) -> Option<&'static str>,
    places: Arc<Semaphore>,
}

/// What an issuer says of itself, as far as it is read.
#[derive(Deserialize)]
struct Discovered {
    jwks_uri: String,
}

impl Fetcher {
    /// Fetches from servers elsewhere, by the roots of the system, and by `reach` from those that `mesh` knows.
    pub(super) fn new(mesh: Arc<ArcSwap<Snapshot>>, reach: Arc<dyn Reach>) -> Self {
        Self::with(mesh, reach, client::Tls::of_system(), address::refused)
    }

    pub(super) fn with(
        mesh: Arc<ArcSwap<Snapshot>>,
        reach: Arc<dyn Reach>,
        tls: client::Tls,
        refused: fn(IpAddr) -> Option<&'static str>,
    ) -> Self {
        Self { mesh, reach, tls, refused, places: Arc::new(Semaphore::new(MAX_FETCHES)) }
    }

    async fn keys(&self, source: &KeySource) -> Result<KeySet, String> {
        let text = match source {
            KeySource::Inline(keys) => return Ok(KeySet::clone(keys)),
            KeySource::Url(url) => self.get(url).await?,
            KeySource::Discovery(issuer) => {
                let url = format!("{issuer}{WELL_KNOWN}");
                let document = self.get(&url).await?;
                let found: Discovered =
                    serde_json::from_slice(&document).map_err(|_| format!("{url} has no \"jwks_uri\": set jwksUri"))?;
                if url.starts_with("https://") && !found.jwks_uri.starts_with("https://") {
                    return Err(format!(
                        "{url} says that the keys are at {:?}, which is not https",
                        shown(&found.jwks_uri)
                    ));
                }
                self.get(&found.jwks_uri).await?
            }
        };
        let text = std::str::from_utf8(&text).map_err(|_| "the answer is not text".to_owned())?;
        KeySet::parse(text).map_err(|bad| format!("the answer {bad}"))
    }

    /// What is at `url`.
    async fn get(&self, url: &str) -> Result<Bytes, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{:?} is no URL", shown(url)))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{:?} is neither http nor https", shown(url))),
        };
        let host = uri.host().ok_or_else(|| format!("{:?} names no host", shown(url)))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream: Stream = match self.in_mesh(&host, port) {
            Some(server) => self.reach.connect(server, self.refused).await.map_err(|error| error.to_string())?,
            None => Box::new(self.dial(&host, port).await?),
        };
        let tls = if secure { Some(self.tls.get().await?) } else { None };
        client::get(stream, tls, &host, &uri, MAX_KEY_SET).await
    }

    /// The server of this name in the mesh, unless its addresses are still to be resolved: only here they are looked at.
    fn in_mesh(&self, host: &str, port: u16) -> Option<Server> {
        let snapshot = self.mesh.load_full();
        let domain = &snapshot.options().cluster_domain;
        // As the resolver of a pod completes them.
        let names = [host.to_owned(), format!("{host}.{domain}"), format!("{host}.svc.{domain}")];
        let service = names.iter().find_map(|name| snapshot.services_by_hostname(name).next().cloned())?;
        service.port(port).filter(|_| service.resolution == Resolution::Endpoints)?;
        Some(Server { snapshot, service, port })
    }

    /// A connection to one of the addresses of `host`.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let mut failure = format!("{host} has no address");
        for address in self.resolve(host, port).await?.into_iter().take(MAX_ADDRESSES) {
            if let Some(why) = (self.refused)(address.ip()) {
                failure = format!("{host} leads to {}, {why}: keys are not fetched from there", address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = format!("{address} cannot be reached: {error}"),
            }
        }
        Err(failure)
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<std::net::SocketAddr>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![(ip, port).into()]);
        }
        let found = tokio::net::lookup_host((host, port)).await;
        Ok(found.map_err(|error| format!("{host} does not resolve: {error}"))?.collect())
    }
}

impl Fetch for Arc<Fetcher> {
    fn fetch(&self, source: KeySource, within: Duration) -> BoxFuture<'static, Result<KeySet, String>> {
        let this = self.clone();
        async move {
            let _place = this.places.acquire().await.map_err(|error| error.to_string())?;
            match timeout(within, this.keys(&source)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {within:?}: check the server, or set the rule's timeout")),
            }
        }
        .boxed()
    }
}

/// A text from elsewhere, as much of it as belongs in a line.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}
