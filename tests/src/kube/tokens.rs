//! Tokens of service accounts: by TokenRequest as the kubelet gets them, or forged with the API server's own key.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{AUDIENCE, ControlPlane};

impl ControlPlane {
    /// A token of a service account for this audience, bound to a pod if one is named, by TokenRequest.
    ///
    /// # Errors
    /// When there is no such service account or pod.
    pub fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&str>) -> Result<String> {
        let mut spec = json!({ "audiences": [audience], "expirationSeconds": 3600 });
        if let Some(pod) = pod {
            let found = self.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))?.success()?;
            let uid = &found["metadata"]["uid"];
            spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid });
        }
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.request("POST", &path, Some(&request))?.success()?;
        Ok(answer["status"]["token"].as_str().context("a TokenRequest without a token")?.to_owned())
    }

    /// What TokenReview says of a token: its `status`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn review(&self, token: &str, audience: &str) -> Result<Value> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        Ok(self.request("POST", path, Some(&review))?.success()?["status"].take())
    }

    /// A kubeconfig of a service account, with a token of an hour: what its pods may do, its holder may.
    ///
    /// # Errors
    /// When there is no such service account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.token(namespace, account, AUDIENCE, None)?;
        self.pki.bearer(&format!("{namespace}-{account}"), &token)
    }

    /// A kubeconfig with this token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.pki.bearer(name, token)
    }

    /// A kubeconfig with a certificate of its own: the subject's O are groups, its CN is the user.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn kubeconfig_with_certificate(&self, name: &str, subject: &str) -> Result<PathBuf> {
        self.pki.client(name, subject)
    }

    /// The key that the API server signs tokens with (RSA, PEM).
    pub fn sa_key(&self) -> PathBuf {
        self.pki.path("sa.key")
    }

    /// A token with these claims, signed (RS256) as the API server would: for those it would never issue, such as
    /// expired ones.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn forge(&self, claims: &Value) -> Result<String> {
        let header = json!({ "alg": "RS256", "typ": "JWT" });
        let signed =
            format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(self.sa_key()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = openssl.spawn().context("cannot run openssl: apt-get install openssl")?;
        child.stdin.take().context("no standard input")?.write_all(signed.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "openssl cannot sign with {}", self.sa_key().display());
        Ok(format!("{signed}.{}", base64url(&output.stdout)))
    }

    /// The claims of a token.
    ///
    /// # Errors
    /// When it is no JWT.
    pub fn claims(token: &str) -> Result<Value> {
        let claims = token.split('.').nth(1).and_then(from_base64url).context("not a JWT")?;
        serde_json::from_slice(&claims).context("a JWT whose claims are not JSON")
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// RFC 4648 §5, without padding, as JWTs have it.
fn base64url(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            text.push(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize].into());
        }
    }
    text
}

fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for letter in group {
            bits = bits << 6 | ALPHABET.iter().position(|one| one == letter)? as u32;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(base64url(bytes.as_bytes()), text);
            assert_eq!(from_base64url(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
        assert_eq!(from_base64url("a+b/"), None);
    }
}
