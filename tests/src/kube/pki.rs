//! The certificates of a control plane, by openssl, and kubeconfigs that name them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::SERVICE_ADDRESS;

/// A directory of keys and certificates, all of one CA.
#[derive(Debug)]
pub(super) struct Pki {
    directory: PathBuf,
    server: String,
}

impl Pki {
    /// Everything the API server needs, and the administrator's kubeconfig.
    pub(super) fn create(directory: &Path, port: u16) -> Result<Self> {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        let pki = Self { directory: directory.to_path_buf(), server: format!("https://127.0.0.1:{port}") };
        pki.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout ca.key -out ca.crt -subj \
             /CN=kubernetes",
        )?;
        let service = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                       DNS:kubernetes.default.svc.cluster.local";
        pki.certificate(
            "apiserver",
            "/CN=kube-apiserver",
            &format!(
                "subjectAltName=DNS:localhost,{service},IP:127.0.0.1,IP:{SERVICE_ADDRESS}\nextendedKeyUsage=serverAuth"
            ),
        )?;
        pki.client("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")?;
        pki.client("admin", "/O=system:masters/CN=admin")?;
        // RSA: its signatures are the same in PKCS #1 and in a JWT, so openssl can sign a forged token.
        pki.openssl("genrsa -out sa.key 2048")?;
        pki.openssl("rsa -in sa.key -pubout -out sa.pub")?;
        Ok(pki)
    }

    /// A file of this directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A client with a certificate of its own, and its kubeconfig. The subject's O are groups, its CN the user.
    pub(super) fn client(&self, name: &str, subject: &str) -> Result<PathBuf> {
        self.certificate(name, subject, "extendedKeyUsage=clientAuth")?;
        let user = json!({
            "client-certificate": self.path(&format!("{name}.crt")),
            "client-key": self.path(&format!("{name}.key")),
        });
        self.write_kubeconfig(name, &user)
    }

    /// A client with a token, and its kubeconfig.
    pub(super) fn bearer(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig(name, &json!({ "token": token }))
    }

    /// Where a client's kubeconfig is.
    pub(super) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.kubeconfig"))
    }

    fn write_kubeconfig(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf> {
        let cluster = json!({ "server": self.server, "certificate-authority": self.path("ca.crt") });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
            "current-context": "test",
        });
        let path = self.kubeconfig(name);
        fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn certificate(&self, name: &str, subject: &str, extensions: &str) -> Result<()> {
        fs::write(self.path(&format!("{name}.ext")), extensions)?;
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj {subject}"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext -out \
             {name}.crt"
        ))
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        let output = command.current_dir(&self.directory).args(arguments.split_whitespace()).output();
        let output = output.context("cannot run openssl: apt-get install openssl")?;
        if !output.status.success() {
            bail!("openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
