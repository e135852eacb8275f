//! `culvertctl waypoint apply`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use culvert_api::names::label;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Place;
use super::gateway::{Wanted, condition, id, not_installed};
use crate::Options;
use crate::cluster::{Cluster, Id, MANAGER, explain};
use crate::output::{self, Format, write};

const POLL: Duration = Duration::from_millis(500);

const HELP: &str = "\
Exit status: 0 applied (with --wait: and it takes connections), 1 not.

Examples:
  culvertctl waypoint apply -n shop --enroll-namespace --wait
  culvertctl waypoint apply -n shop --name egress --for all --dry-run -o yaml";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Apply {
    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    wanted: Wanted,

    /// Have everything in the namespace use it that does not say otherwise: label istio.io/use-waypoint.
    #[arg(long)]
    enroll_namespace: bool,

    /// Do so though the namespace uses another waypoint; and take over what others have set in the Gateway.
    #[arg(long)]
    overwrite: bool,

    /// Wait until it takes connections.
    #[arg(short, long)]
    wait: bool,

    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,

    /// Print the Gateway, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode> {
        if self.dry_run && self.place.namespace.is_some() {
            return self.print(options, self.place.namespace.as_deref().unwrap_or_default());
        }
        let (cluster, namespace) = self.place.connect().await?;
        if self.dry_run {
            return self.print(options, &namespace);
        }
        let gateway = self.wanted.gateway(Some(&namespace))?;
        if self.enroll_namespace {
            self.check_namespace(&cluster, &namespace).await?;
        }
        let applied = self.apply(&cluster, &namespace, &gateway).await?;
        if options.output == Format::Table {
            write(&format!("waypoint {namespace}/{} applied\n", self.wanted.name))?;
        }
        let ready = if self.wait { self.wait(&cluster, &namespace, options).await? } else { applied };
        // Only now: until it takes connections, whoever names it is refused.
        if self.enroll_namespace {
            self.enroll(&cluster, &namespace).await?;
            if options.output == Format::Table {
                write(&format!("namespace {namespace} labelled {}={}\n", label::USE_WAYPOINT, self.wanted.name))?;
            }
        }
        if options.output != Format::Table {
            output::print(options.output, &ready, String::new)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, options: &Options, namespace: &str) -> Result<ExitCode> {
        let format = if options.output == Format::Json { Format::Json } else { Format::Yaml };
        output::print(format, &self.wanted.gateway(Some(namespace))?, String::new)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses to take a namespace away from another waypoint, before anything is done.
    async fn check_namespace(&self, cluster: &Cluster, namespace: &str) -> Result<()> {
        let Some(there) = cluster.find(&Id::new("v1", "Namespace", None, namespace)).await? else {
            bail!("namespace {namespace} is not there");
        };
        let labels = there.labels();
        let other = labels.get(label::USE_WAYPOINT).filter(|other| **other != self.wanted.name);
        if let Some(other) = other.filter(|_| !self.overwrite) {
            bail!("namespace {namespace} uses the waypoint {other:?}: --overwrite has it use {:?}", self.wanted.name);
        }
        if labels.get(label::DATAPLANE_MODE).is_none_or(|mode| mode != "ambient") {
            eprintln!(
                "culvertctl: namespace {namespace} is not in the mesh: kubectl label namespace {namespace} {}=ambient",
                label::DATAPLANE_MODE
            );
        }
        Ok(())
    }

    async fn apply(&self, cluster: &Cluster, namespace: &str, gateway: &Value) -> Result<DynamicObject> {
        let id = id(namespace, &self.wanted.name);
        let api = cluster.api(&id.api_version, &id.kind, Some(namespace));
        let parameters =
            PatchParams { field_manager: Some(MANAGER.to_owned()), force: self.overwrite, ..PatchParams::default() };
        match api.patch(&id.name, &parameters, &Patch::Apply(gateway)).await {
            Ok(applied) => Ok(applied),
            Err(kube::Error::Api(status)) if status.code == 404 && !status.message.contains("namespaces") => {
                Err(not_installed())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let why: Vec<_> = status.message.split_whitespace().collect();
                Err(anyhow!("{id}: somebody else has set some of it; --overwrite takes it over: {}", why.join(" ")))
            }
            Err(error) => Err(explain(&error, "apply", &id.to_string())),
        }
    }

    async fn wait(&self, cluster: &Cluster, namespace: &str, options: &Options) -> Result<DynamicObject> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let id = id(namespace, &self.wanted.name);
        loop {
            let Some(gateway) = cluster.find(&id).await? else { bail!("{id} is gone") };
            let programmed = condition(&gateway, "Programmed").unwrap_or_default();
            if programmed["status"] == "True" {
                if options.output == Format::Table {
                    write(&format!("waypoint {namespace}/{} is ready\n", self.wanted.name))?;
                }
                return Ok(gateway);
            }
            if Instant::now() >= deadline {
                let none = "nobody has said anything of it: is a controller running? see culvertctl check";
                let why = [condition(&gateway, "Accepted").filter(|accepted| accepted["status"] != "True")]
                    .into_iter()
                    .flatten()
                    .chain([programmed])
                    .find_map(|condition| condition["message"].as_str().map(str::to_owned));
                bail!("{id} is not ready within {} seconds: {}", self.timeout, why.as_deref().unwrap_or(none));
            }
            sleep(POLL).await;
        }
    }

    async fn enroll(&self, cluster: &Cluster, namespace: &str) -> Result<()> {
        let labels = json!({"metadata": {"labels": {(label::USE_WAYPOINT): self.wanted.name}}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let api = cluster.api("v1", "Namespace", None);
        let labelled = api.patch(namespace, &parameters, &Patch::Merge(labels)).await;
        labelled.map(drop).map_err(|error| explain(&error, "label", &format!("Namespace {namespace}")))
    }
}
