//! The Kubernetes API server: which one, and the few requests that installing needs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;

/// By which the API server knows what this program has set.
pub(crate) const MANAGER: &str = "culvertctl";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ClusterOptions {
    /// The kubeconfig file; otherwise as kubectl finds it, or as a pod does.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, where it is not the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// A cluster's API server.
pub(crate) struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub(crate) async fn connect(options: &ClusterOptions) -> Result<Self> {
        let choice = KubeConfigOptions { context: options.context.clone(), ..Default::default() };
        let mut config = match &options.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(read, &choice).await.context("--kubeconfig")?
            }
            None if options.context.is_some() => Config::from_kubeconfig(&choice).await.context("--context")?,
            None => {
                Config::infer().await.context("no cluster is configured: set KUBECONFIG, or give --kubeconfig FILE")?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(ANSWER_TIMEOUT);
        let server = config.cluster_url.clone();
        let client = Client::try_from(config).with_context(|| format!("the credentials for {server}"))?;
        Ok(Self { client })
    }

    /// The server's version, `v1.30.0`.
    pub(crate) async fn version(&self) -> Result<String> {
        let info = self.client.apiserver_version().await.map_err(|error| explain(&error, "ask for", "the version"))?;
        Ok(info.git_version)
    }

    /// Where objects like this one are.
    pub(crate) fn api(&self, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// The object of this name, if it is there.
    pub(crate) async fn find(&self, id: &Id) -> Result<Option<DynamicObject>> {
        match self.api(&id.api_version, &id.kind, id.namespace.as_deref()).get(&id.name).await {
            Ok(found) => Ok(Some(found)),
            // Also where the kind itself is not known.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(explain(&error, "get", &id.to_string())),
        }
    }

    /// Sets what `object` says by server-side apply, and returns what has become of it.
    pub(crate) async fn apply(&self, object: &Value, force: bool) -> Result<DynamicObject> {
        let id = Id::of(object)?;
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), force, ..Default::default() };
        let api = self.api(&id.api_version, &id.kind, id.namespace.as_deref());
        match api.patch(&id.name, &parameters, &Patch::Apply(object)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && !force => Err(anyhow!(
                "cannot apply {id}: somebody else has set some of it; --force-conflicts takes it over: {}",
                one_line(&status.message)
            )),
            applied => applied.map_err(|error| explain(&error, "apply", &id.to_string())),
        }
    }

    /// Deletes an object; one that is not there is fine. Returns whether it was.
    pub(crate) async fn delete(&self, id: &Id) -> Result<bool> {
        let api = self.api(&id.api_version, &id.kind, id.namespace.as_deref());
        match api.delete(&id.name, &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(explain(&error, "delete", &id.to_string())),
        }
    }

    /// The objects of a kind that carry a label, in every namespace; none where the kind itself is not known.
    pub(crate) async fn labelled(&self, api_version: &str, kind: &str, label: &str) -> Result<Vec<DynamicObject>> {
        match self.api(api_version, kind, None).list(&ListParams::default().labels(label)).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(explain(&error, "list", kind)),
        }
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Id {
    pub(crate) fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    pub(crate) fn of(object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        Ok(Self {
            api_version: text(&object["apiVersion"]).context("an object without apiVersion")?,
            kind: text(&object["kind"]).context("an object without kind")?,
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]).context("an object without a name")?,
        })
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// The API server's word that whoever asks may not.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) verb: String,
    pub(crate) what: String,
    message: String,
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, what, message } = self;
        write!(f, "cannot {verb} {what}: not allowed; installing needs a cluster administrator: {message}")
    }
}

impl std::error::Error for Denied {}

/// One line that says what was tried and what to do.
pub(crate) fn explain(error: &kube::Error, verb: &str, what: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            Denied { verb: verb.to_owned(), what: what.to_owned(), message: one_line(&status.message) }.into()
        }
        kube::Error::Api(status) => anyhow!("cannot {verb} {what}: {}", one_line(&status.message)),
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(next) = cause.source() {
                cause = next;
            }
            anyhow!("cannot {verb} {what}: no answer from the API server: {}", one_line(&cause.to_string()))
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

/// Runs what asks an API server to its end.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(work)
}
