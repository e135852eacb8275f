//! The plugin's own credentials: a kubeconfig with a token that may read pods and namespaces and nothing else, so that
//! a plugin without an agent can still ask whose a pod is.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use culvert_api::k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use culvert_api::k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use crate::cluster::{Cluster, explain};
use crate::files::{make_private_directory, write_atomically};

/// The file, in the state directory: the plugin, which runs on the node itself, finds it at the same path as the agent.
pub(super) const KUBECONFIG: &str = "cni.kubeconfig";
/// Whose token it is, in the agent's namespace.
const SERVICE_ACCOUNT: &str = "culvert-cni";
/// How long a token is asked to be valid: longer than anyone leaves a node without an agent.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the API server has to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The pauses between attempts: after a success, and after a failure.
const RENEW: Duration = Duration::from_secs(8 * 60 * 60);
const RETRY: Duration = Duration::from_secs(60);

/// Where the API server is, as the agent itself reaches it.
#[derive(Clone, Debug)]
pub struct Server {
    url: String,
    /// Certificates in PEM; empty where the API server needs none.
    authority: String,
}

impl Server {
    /// Finds it as [`Cluster::connect`] does.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find() -> anyhow::Result<Self> {
        let config = kube::Config::infer().await.context("the API server's address")?;
        let pem = |der: &Vec<u8>| {
            let text = base64(der);
            let lines: Vec<&str> =
                (0..text.len()).step_by(64).filter_map(|at| text.get(at..(at + 64).min(text.len()))).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        };
        let authority = config.root_cert.iter().flatten().map(pem).collect();
        Ok(Self { url: config.cluster_url.to_string(), authority })
    }

    /// A kubeconfig, as JSON, which is YAML too.
    fn kubeconfig(&self, token: &str) -> serde_json::Value {
        let mut cluster = serde_json::json!({ "server": self.url });
        if !self.authority.is_empty() {
            cluster["certificate-authority-data"] = base64(self.authority.as_bytes()).into();
        }
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "cluster", "cluster": cluster }],
            "users": [{ "name": SERVICE_ACCOUNT, "user": { "token": token } }],
            "contexts": [{ "name": "cni", "context": { "cluster": "cluster", "user": SERVICE_ACCOUNT } }],
            "current-context": "cni",
        })
    }
}

/// Keeps the plugin's credentials fresh, for as long as the task lives.
pub async fn keep(cluster: Cluster, server: Server, state_dir: std::path::PathBuf) {
    let mut said = None;
    loop {
        let pause = match renew(&cluster, &server, &state_dir).await {
            Ok(()) => {
                said = None;
                RENEW
            }
            Err(error) => {
                let line = format!("{error:#}");
                if said.as_ref() != Some(&line) {
                    tracing::warn!(
                        "the CNI plugin has no fresh credentials: {line}. While no agent runs, pods are judged by \
                         what the agent last knew"
                    );
                    said = Some(line);
                }
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(cluster: &Cluster, server: &Server, state_dir: &Path) -> anyhow::Result<()> {
    let client = cluster.client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), client.default_namespace());
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: i64::try_from(LIFE.as_secs()).ok(), ..Default::default() },
        ..Default::default()
    };
    let params = PostParams::default();
    let answer = tokio::time::timeout(ANSWER, accounts.create_token_request(SERVICE_ACCOUNT, &params, &request)).await;
    let answer = answer.context("the API server does not answer")?;
    let granted = answer.map_err(|error| anyhow::anyhow!(explain(&error, "create", "serviceaccounts/token")))?;
    let token = granted.status.context("the API server granted no token")?.token;
    let (directory, text) = (state_dir.to_owned(), server.kubeconfig(&token).to_string());
    let write = move || {
        make_private_directory(&directory)?;
        write_atomically(&directory.join(KUBECONFIG), text.as_bytes(), 0o600)
    };
    tokio::task::spawn_blocking(write).await?.with_context(|| state_dir.join(KUBECONFIG).display().to_string())
}

/// As Kubernetes writes bytes in JSON.
fn base64(bytes: &[u8]) -> String {
    let text = serde_json::to_value(culvert_api::k8s_openapi::ByteString(bytes.to_owned()));
    text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_can_be_made_from_the_credentials() {
        let key = rcgen::generate_simple_self_signed(vec!["api".to_owned()]).unwrap();
        let server = Server { url: "https://10.96.0.1:443/".to_owned(), authority: key.cert.pem() };
        let text = server.kubeconfig("secret").to_string();
        let credentials = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(credentials, &Default::default()).await.unwrap();
        assert_eq!(config.cluster_url.host(), Some("10.96.0.1"));
        assert_eq!(config.root_cert.as_ref().unwrap(), &[key.cert.der().to_vec()]);
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Cluster::with(config).unwrap();
    }
}
