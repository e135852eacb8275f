//! `culvertctl install` and `upgrade`: the chart's objects, by server-side apply.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::chart::{self, Release};
use crate::cluster::{self, Cluster, ClusterOptions, Id, MANAGER};
use crate::output::write;
use crate::rollout;

/// The version that a dry run is for unless another is named.
const KUBE_VERSION: &str = "v1.34.0";
/// Where the values of the last run are kept, for `upgrade`.
pub(crate) const RECORD: &str = "culvertctl";
/// On a namespace that was not there before.
pub(crate) const CREATED: &str = "culvert.dev/created-by";
/// By which Helm leaves an object where it is, and this program does.
const KEEP: &str = "helm.sh/resource-policy";

#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    #[command(flatten)]
    cluster: ClusterOptions,

    /// A file of values, as for Helm; may be given more than once, the last one wins.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// A value: node.workers=4, cni.excludeNamespaces={a,b}; may be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,

    /// Print all values with their defaults, each with a comment, and do nothing.
    #[arg(long)]
    print_values: bool,

    /// The namespace to install in.
    #[arg(short, long, value_name = "NAMESPACE", default_value = chart::NAMESPACE)]
    namespace: String,

    /// Print the objects as YAML, and ask no cluster.
    #[arg(long)]
    dry_run: bool,

    /// For --dry-run: the version of the API server that it is for.
    #[arg(long, value_name = "VERSION", default_value = KUBE_VERSION, requires = "dry_run")]
    kube_version: String,

    /// Leave out the CustomResourceDefinitions.
    #[arg(long)]
    skip_crds: bool,

    /// Do not wait until everything runs.
    #[arg(long)]
    no_wait: bool,

    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,

    /// Take over what others have set in these objects.
    #[arg(long)]
    force_conflicts: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    install: Install,

    /// Start from the defaults rather than from the values of the last install or upgrade.
    #[arg(long)]
    reset_values: bool,
}

impl Install {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.print_values {
            write(chart::VALUES)?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            return self.print(self.values_files()?);
        }
        cluster::run(async {
            let cluster = Cluster::connect(&self.cluster).await?;
            self.apply(&cluster, self.values_files()?).await
        })
    }

    /// The objects as they would be applied.
    fn print(&self, files: Vec<(String, String)>) -> Result<ExitCode> {
        let release = Release::new(&self.namespace, &self.kube_version, &files, &self.sets)?;
        let mut objects = if self.skip_crds { Vec::new() } else { Release::definitions()? };
        objects.push(release.namespace());
        objects.extend(release.objects()?);
        write(&chart::yaml(&objects)?)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn apply(&self, cluster: &Cluster, files: Vec<(String, String)>) -> Result<ExitCode> {
        let release = Release::new(&self.namespace, &cluster.version().await?, &files, &self.sets)?;
        let objects = release.objects()?;
        refuse_helms(cluster, &self.namespace).await?;
        if !self.skip_crds {
            for definition in Release::definitions()? {
                self.apply_one(cluster, &definition).await?;
            }
        }
        self.namespace(cluster, release.namespace()).await?;
        let mut namespaces = BTreeSet::from([self.namespace.as_str()]);
        for object in &objects {
            // Only the mesh's root namespace is another.
            let namespace = object["metadata"]["namespace"].as_str();
            if let Some(namespace) = namespace.filter(|namespace| namespaces.insert(namespace)) {
                let bare = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                if cluster.find(&Id::of(&bare)?).await?.is_none() {
                    self.apply_one(cluster, &bare).await?;
                }
            }
        }
        let record = self.record(&files)?;
        for object in objects.iter().chain([&record]) {
            self.apply_one(cluster, object).await?;
        }
        remove_others(cluster, &objects).await?;
        if !self.no_wait {
            let workloads: Vec<_> = objects.iter().filter_map(|object| Id::of(object).ok()).collect();
            let workloads: Vec<_> =
                workloads.into_iter().filter(|id| matches!(&*id.kind, "Deployment" | "DaemonSet")).collect();
            rollout::wait(cluster, &workloads, Duration::from_secs(self.timeout)).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The namespace, marked when it is made here: `uninstall` leaves one that was there before.
    async fn namespace(&self, cluster: &Cluster, mut namespace: Value) -> Result<()> {
        let there = cluster.find(&Id::of(&namespace)?).await?;
        if there.is_none_or(|there| there.annotations().contains_key(CREATED)) {
            namespace["metadata"]["annotations"] = json!({CREATED: MANAGER});
        }
        self.apply_one(cluster, &namespace).await
    }

    async fn apply_one(&self, cluster: &Cluster, object: &Value) -> Result<()> {
        let id = Id::of(object)?;
        let before = cluster.find(&id).await?;
        let (owner, culvert) = culvert_api::crd::OWNER_LABEL;
        let is_foreign = |there: &DynamicObject| there.labels().get(owner).is_none_or(|value| value != culvert);
        if id.kind == "CustomResourceDefinition" && before.as_ref().is_some_and(is_foreign) {
            return write(&format!("kept      {id}: somebody else's, as a rule Istio's\n"));
        }
        let after = cluster.apply(object, self.force_conflicts).await?;
        let outcome = match before {
            None => "created  ",
            Some(before) if before.resource_version() == after.resource_version() => "unchanged",
            Some(_) => "changed  ",
        };
        write(&format!("{outcome} {id}\n"))
    }

    /// What `upgrade` starts from.
    fn record(&self, files: &[(String, String)]) -> Result<Value> {
        let overlay = chart::overlay(files, &self.sets)?;
        Ok(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": RECORD,
                "namespace": self.namespace,
                "labels": {"app.kubernetes.io/part-of": "culvert"},
            },
            "data": {"version": env!("CARGO_PKG_VERSION"), "values": overlay},
        }))
    }

    fn values_files(&self) -> Result<Vec<(String, String)>> {
        let read = self.files.iter().map(|path| {
            let name = path.display().to_string();
            let text = fs::read_to_string(path).with_context(|| format!("--values {name}"))?;
            Ok((name, text))
        });
        read.collect()
    }
}

impl Upgrade {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let install = self.install;
        if install.print_values {
            return install.run();
        }
        cluster::run(async {
            let cluster = Cluster::connect(&install.cluster).await?;
            let id = Id::new("v1", "ConfigMap", Some(&install.namespace), RECORD);
            refuse_helms(&cluster, &install.namespace).await?;
            let Some(record) = cluster.find(&id).await? else {
                bail!("nothing to upgrade in namespace {}: use culvertctl install", install.namespace);
            };
            let mut files = Vec::new();
            if !self.reset_values {
                let values = record.data["data"]["values"].as_str().unwrap_or_default();
                files.push((id.to_string(), values.to_owned()));
            }
            files.extend(install.values_files()?);
            if install.dry_run {
                return install.print(files);
            }
            install.apply(&cluster, files).await
        })
    }
}

/// What Helm has installed is Helm's to change.
pub(crate) async fn refuse_helms(cluster: &Cluster, namespace: &str) -> Result<()> {
    let id = Id::new("apps/v1", "DaemonSet", Some(namespace), "culvert-node");
    let there = cluster.find(&id).await?;
    if there.is_some_and(|there| there.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "Helm")) {
        bail!("{id} was installed by Helm: use helm upgrade, or helm uninstall first");
    }
    Ok(())
}

/// The objects that this program has made, in whatever version of the chart.
pub(crate) async fn installed(cluster: &Cluster) -> Result<Vec<Id>> {
    let mut found = Vec::new();
    // Before 1.21 there is no policy/v1, and since 1.25 nothing else.
    let older = cluster.labelled("policy/v1", "PodDisruptionBudget", chart::OWNED).await?.is_empty();
    let older = older.then_some(("policy/v1beta1", "PodDisruptionBudget"));
    for (api_version, kind) in chart::KINDS.into_iter().chain(older) {
        for object in cluster.labelled(api_version, kind, chart::OWNED).await? {
            // The mesh's root namespace, where people's policies are.
            if object.annotations().get(KEEP).is_some_and(|policy| policy == "keep") {
                continue;
            }
            let managers = object.managed_fields().iter().filter_map(|fields| fields.manager.as_deref());
            if managers.into_iter().any(|manager| manager == MANAGER) {
                found.push(Id::new(api_version, kind, object.namespace().as_deref(), &object.name_any()));
            }
        }
    }
    Ok(found)
}

/// Deletes what an earlier run has made and this one does not.
async fn remove_others(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let key = |id: &Id| (id.kind.clone(), id.namespace.clone(), id.name.clone());
    let wanted = objects.iter().map(|object| Ok(key(&Id::of(object)?))).collect::<Result<BTreeSet<_>>>()?;
    for id in installed(cluster).await? {
        let is_kept = id.kind == "Namespace" || id.name == RECORD || wanted.contains(&key(&id));
        if !is_kept && cluster.delete(&id).await? {
            write(&format!("deleted   {id}: no longer part of it\n"))?;
        }
    }
    Ok(())
}
