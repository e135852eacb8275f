//! The Kubernetes API server: how it is reached, and what it says when it says no.
//!
//! One client for everything: watches, reviews, Events, Leases. It gives up on a server that does not answer; what it
//! reads after the head of an answer is for the caller to bound, since a watch is meant to be silent.

mod explain;

use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use http::header::{HeaderValue, USER_AGENT};
use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use tower::BoxError;
use tower::util::MapFutureLayer;

pub use explain::{Notices, explain, explain_failure, forbidden, root_cause};

/// How long a TCP connection and its TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the head of an answer may take; the API server itself gives up on a request after 60 seconds, but answers
/// the ones that Culvert makes at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be silent. A watch is sent a bookmark about once a minute.
const READ_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a request may take to be sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// By which the API server knows the caller in its audit log and metrics.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("culvert/", env!("CARGO_PKG_VERSION")));

/// A cluster's API server. Cloning is cheap.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    id: u64,
}

impl Cluster {
    /// Finds the API server: by `KUBECONFIG`, or else as a pod finds it. Nothing is sent yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// One line that says what is missing, with the cure.
    pub async fn connect() -> anyhow::Result<Self> {
        // The kube crate panics without one; chosen here, so that no feature of a dependency chooses another.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may have installed the same one in between.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let config = match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => Config::from_kubeconfig(&KubeConfigOptions::default()).await.map_err(|error| {
                let path = Path::new(&path).display();
                anyhow!("KUBECONFIG: {path}: {}: give a kubeconfig file with a current context", root_cause(&error))
            })?,
            None if is_in_cluster() => Config::incluster().map_err(|error| {
                anyhow!(
                    "the pod's service account: {}: leave automountServiceAccountToken on, as the chart does",
                    root_cause(&error)
                )
            })?,
            None => return Err(anyhow!(NOT_CONFIGURED)),
        };
        Self::with(config)
    }

    /// The API server that `config` says; its time-outs are replaced.
    ///
    /// # Errors
    /// When its certificates or tokens cannot be read.
    pub fn with(mut config: Config) -> anyhow::Result<Self> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        // Who asks knows better when to ask again: watches back off, and requests have deadlines.
        config.default_retry = false;
        config.headers.push((USER_AGENT, AGENT));
        let id = identify(&config);
        let server = config.cluster_url.clone();
        let client = ClientBuilder::try_from(config)
            .map_err(|error| anyhow!("{}", root_cause(&error)))
            .with_context(|| format!("the credentials for the API server {server}"))?
            .with_layer(&MapFutureLayer::new(bounded))
            .build();
        Ok(Self { client, id })
    }

    /// The client. Its requests fail when the head of the answer takes more than 30 seconds.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A cluster behind any client: tests answer in the API server's place.
    #[cfg(test)]
    pub(crate) fn of_client(client: Client) -> Self {
        Self { client, id: 0 }
    }

    /// What tells this cluster from others: a hash of its address and its certificate authority. The same for one
    /// version of Culvert only.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether [`Cluster::connect`] has anything to go by.
pub fn is_configured() -> bool {
    is_in_cluster() || std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty())
}

/// What is wrong where it has nothing.
pub const NOT_CONFIGURED: &str = "--config-dir: not given, and there is no Kubernetes to read objects from (neither \
                                  KUBECONFIG nor KUBERNETES_SERVICE_HOST is set): give a directory of YAML files, or \
                                  set KUBECONFIG";

fn is_in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

fn identify(config: &Config) -> u64 {
    let mut id = DefaultHasher::new();
    (config.cluster_url.to_string(), &config.root_cert).hash(&mut id);
    id.finish()
}

async fn bounded<T>(answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    match tokio::time::timeout(HEAD_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} seconds", HEAD_TIMEOUT.as_secs()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_one_line() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Port 1 of the loopback: refused.
        let config = Config::new("http://127.0.0.1:1/".parse().unwrap());
        let cluster = Cluster::with(config).unwrap();
        let error = cluster.client().apiserver_version().await.unwrap_err();
        let line = explain(&error, "get", "version");
        assert!(line.starts_with("cannot get version: the API server cannot be reached: ") && !line.contains('\n'));
        assert!(line.to_lowercase().contains("refused"), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_given_up() {
        let never = std::future::pending::<Result<(), BoxError>>();
        assert!(bounded(never).await.unwrap_err().to_string().contains("30 seconds"));
    }

    #[test]
    fn clusters_are_told_apart_by_address_and_authority() {
        let id = |url: &str, root: Option<Vec<Vec<u8>>>| {
            let mut config = Config::new(url.parse().unwrap());
            config.root_cert = root;
            identify(&config)
        };
        assert_eq!(id("http://10.0.0.1/", None), id("http://10.0.0.1/", None));
        assert_ne!(id("http://10.0.0.1/", None), id("http://10.0.0.2/", None));
        assert_ne!(id("http://10.0.0.1/", None), id("http://10.0.0.1/", Some(vec![vec![1]])));
    }
}
