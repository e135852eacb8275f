//! Requests to the API server: by curl where a test wants one answer, by kubectl where it does what a user does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::ControlPlane;
use crate::process::{Finished, Process};

const ANSWER: Duration = Duration::from_secs(60);

/// What the API server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, if it is JSON; else a string.
    pub body: Value,
}

impl Answer {
    /// The object that was asked for.
    ///
    /// # Errors
    /// When the server refused, with its message.
    pub fn success(self) -> Result<Value> {
        let message = self.body["message"].as_str().unwrap_or_default();
        ensure!((200..300).contains(&self.status), "the API server answers {}: {message}", self.status);
        Ok(self.body)
    }
}

/// The administrator's way to the API server, for threads of their own.
#[derive(Debug, Clone)]
pub(super) struct Administrator {
    server: SocketAddr,
    /// The CA's certificate, the administrator's, and its key.
    files: [PathBuf; 3],
}

impl Administrator {
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)?.success()
    }

    pub(super) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let [ca, certificate, key] = &self.files;
        let mut curl = curl(self.server, ca, method, path, body);
        curl.arg("--cert").arg(certificate).arg("--key").arg(key);
        answer(curl)
    }
}

impl ControlPlane {
    pub(super) fn administrator(&self) -> Administrator {
        let files = ["ca.crt", "admin.crt", "admin.key"].map(|name| self.pki.path(name));
        Administrator { server: self.address(), files }
    }

    /// `GET` as administrator.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.request("GET", path, None)
    }

    /// A request as administrator. `PATCH` sends a merge patch.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.administrator().request(method, path, body)
    }

    /// Sends many requests with a body as administrator, several at a time: `(method, path, body)`.
    ///
    /// # Errors
    /// When one is refused, with the number of those.
    pub fn request_many(&self, requests: &[(&str, String, Value)]) -> Result<()> {
        let [ca, certificate, key] = self.administrator().files;
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut config = String::new();
        for (method, path, body) in requests {
            for (option, value) in [
                ("url", format!("https://{}{path}", self.address())),
                ("request", (*method).to_owned()),
                ("header", format!("Content-Type: {}", content_type(method))),
                ("data-binary", body.to_string()),
                ("cacert", ca.display().to_string()),
                ("cert", certificate.display().to_string()),
                ("key", key.display().to_string()),
                ("output", "/dev/null".to_owned()),
                ("write-out", "%{http_code}\\n".to_owned()),
            ] {
                config += &format!("{option} = {}\n", quoted(&value));
            }
            config += "next\n";
        }
        let file = self.directory().join("requests");
        std::fs::write(&file, config.trim_end_matches("next\n"))?;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--parallel", "--parallel-max", "16", "--config"]).arg(&file);
        let output = curl.output().context("cannot run curl: apt-get install curl")?;
        std::fs::remove_file(file)?;
        let answers = String::from_utf8_lossy(&output.stdout);
        let good = answers.lines().filter(|status| status.starts_with('2')).count();
        let other = answers.lines().find(|status| !status.starts_with('2')).unwrap_or("none");
        ensure!(good == requests.len(), "{good} of {} requests succeeded; another status: {other}", requests.len());
        Ok(())
    }

    /// A request with a bearer token and no certificate.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn request_with_token(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut curl = curl(self.address(), &self.ca(), method, path, body);
        curl.arg("--oauth2-bearer").arg(token);
        answer(curl)
    }

    /// kubectl as administrator; its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_as(&self.kubeconfig(), arguments)?.success().with_context(|| format!("kubectl {arguments:?}"))
    }

    /// kubectl with another kubeconfig, to its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Finished> {
        Process::spawn("kubectl", self.kubectl_command(kubeconfig, arguments)?)?.finish(ANSWER)
    }

    /// `kubectl apply` of YAML documents.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.with_file(yaml, &["apply", "-f"]).map(drop)
    }

    /// `kubectl delete` of the objects of YAML documents, without waiting for finalizers.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.with_file(yaml, &["delete", "--wait=false", "--ignore-not-found", "-f"]).map(drop)
    }

    /// Creates or replaces CustomResourceDefinitions and waits until they are served.
    ///
    /// Not by `apply`: a server without CEL refuses its rules there, while these lose them.
    ///
    /// # Errors
    /// When the server refuses one, or does not serve it.
    pub fn crds(&self, yaml: &str) -> Result<()> {
        self.with_file(yaml, &["create", "--validate=false", "-f"])
            .or_else(|_| self.with_file(yaml, &["replace", "--validate=false", "-f"]))?;
        self.with_file(yaml, &["wait", "--for=condition=Established", "--timeout=60s", "-f"]).map(drop)
    }

    fn with_file(&self, yaml: &str, arguments: &[&str]) -> Result<String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = self.directory().join(format!("objects-{}.yaml", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&file, yaml)?;
        let path = file.to_str().context("a path that is not UTF-8")?;
        let printed = self.kubectl(&[arguments, &[path]].concat());
        std::fs::remove_file(&file)?;
        printed
    }

    fn kubectl_command(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.programs.path("kubectl")?);
        command.stdin(std::process::Stdio::null()).arg("--kubeconfig").arg(kubeconfig).args(arguments);
        // What it caches of the server's API would be another server's the next time.
        command.arg("--cache-dir").arg(self.directory().join("kubectl-cache")).env("HOME", self.directory());
        Ok(command)
    }
}

fn curl(server: SocketAddr, ca: &Path, method: &str, path: &str, body: Option<&Value>) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]);
    command.args(["--request", method]).arg("--cacert").arg(ca);
    if let Some(body) = body {
        let header = format!("Content-Type: {}", content_type(method));
        command.args(["--header", &header, "--data-binary", &body.to_string()]);
    }
    command.arg(format!("https://{server}{path}"));
    command
}

fn content_type(method: &str) -> &'static str {
    if method == "PATCH" { "application/merge-patch+json" } else { "application/json" }
}

fn answer(mut curl: Command) -> Result<Answer> {
    let output = curl.output().context("cannot run curl: apt-get install curl")?;
    if !output.status.success() {
        bail!("no answer of the API server: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').context("curl tells no status")?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    Ok(Answer { status: status.parse()?, body })
}
