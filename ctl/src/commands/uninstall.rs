//! `culvertctl uninstall`: the agents first, while they still may clean up their nodes; then the rest.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::time::{Instant, sleep};

use super::install::{CREATED, installed, refuse_helms};
use crate::chart;
use crate::cluster::{self, Cluster, ClusterOptions, Id, explain};
use crate::output::write;

const POLL: Duration = Duration::from_millis(500);
/// The label by which the controller knows the ConfigMaps that it has written, and their names.
const WRITTEN: &str = "app.kubernetes.io/managed-by=culvert";
const WRITTEN_MAPS: [&str; 2] = ["istio-ca-root-cert", "istio-ca-crl"];

#[derive(Debug, clap::Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    cluster: ClusterOptions,

    /// The namespace it is installed in.
    #[arg(short, long, value_name = "NAMESPACE", default_value = chart::NAMESPACE)]
    namespace: String,

    /// Say what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,

    /// Only take the pods out of the mesh and the agents from their nodes: what `helm uninstall` asks for beforehand.
    #[arg(long)]
    nodes_only: bool,

    /// Delete the CustomResourceDefinitions too, and with them every policy; not those that somebody else installed.
    #[arg(long)]
    crds: bool,

    /// How long the agents may take to clean up, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

impl Uninstall {
    pub(crate) fn run(self) -> Result<ExitCode> {
        cluster::run(async {
            let cluster = Cluster::connect(&self.cluster).await?;
            let agents = Id::new("apps/v1", "DaemonSet", Some(&self.namespace), "culvert-node");
            let controller = Id::new("apps/v1", "Deployment", Some(&self.namespace), "culvert-controller");
            if self.nodes_only {
                return self.stop(&cluster, &agents).await.map(|()| ExitCode::SUCCESS);
            }
            refuse_helms(&cluster, &self.namespace).await?;
            // The API server is asked for everything before anything is deleted: a permission that is missing must
            // not leave half of it.
            let mut objects = installed(&cluster).await?;
            let definitions = if self.crds { definitions(&cluster).await? } else { Vec::new() };
            let namespaces: Vec<_> = objects.extract_if(.., |id| id.kind == "Namespace").collect();
            if objects.is_empty() && namespaces.is_empty() && definitions.is_empty() {
                bail!("nothing of Culvert's is installed that culvertctl has made");
            }
            self.written_at_run_time(&cluster).await?;
            objects.retain(|id| *id != agents && *id != controller);
            self.stop(&cluster, &agents).await?;
            self.stop(&cluster, &controller).await?;
            // Whatever the controller wrote, it writes no more.
            let written = self.written_at_run_time(&cluster).await?;
            for id in objects.iter().rev().chain(&written).chain(&definitions) {
                self.remove(&cluster, id).await?;
            }
            for id in namespaces {
                self.remove_namespace(&cluster, &id).await?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    async fn remove(&self, cluster: &Cluster, id: &Id) -> Result<()> {
        if self.dry_run {
            return match cluster.find(id).await? {
                Some(_) => write(&format!("would delete {id}\n")),
                None => Ok(()),
            };
        }
        match cluster.delete(id).await? {
            true => write(&format!("deleted   {id}\n")),
            false => Ok(()),
        }
    }

    /// Deletes a DaemonSet or Deployment and waits for its pods to go.
    ///
    /// Agents that are told to stop when their DaemonSet is gone take every pod out of the mesh and remove their CNI
    /// plugin. Their permissions must last until then.
    async fn stop(&self, cluster: &Cluster, id: &Id) -> Result<()> {
        self.remove(cluster, id).await?;
        if self.dry_run {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &self.namespace);
        let selected = ListParams::default().labels(&format!("app={}", id.name)).limit(500);
        let mut said = 0;
        loop {
            let left = pods.list(&selected).await.map_err(|error| explain(&error, "list", "pods"))?.items;
            if left.is_empty() {
                return write(&format!("stopped   {}: none of its pods is left\n", id.name));
            }
            if left.len() != said {
                said = left.len();
                write(&format!("waiting   for {said} pods of {} to stop\n", id.name))?;
            }
            if Instant::now() >= deadline {
                let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                let nodes: Vec<_> = left.iter().map(node).take(5).collect();
                bail!(
                    "pods of {} have not stopped within {} seconds on: {}; are these nodes up? Run this again, or \
                     delete the pods (kubectl delete pod --force) and reboot the nodes",
                    id.name,
                    self.timeout,
                    nodes.join(", ")
                );
            }
            sleep(POLL).await;
        }
    }

    /// What the controller makes: roots and revocations in every namespace, its own key and its lease.
    async fn written_at_run_time(&self, cluster: &Cluster) -> Result<Vec<Id>> {
        let mut found = Vec::new();
        for map in cluster.labelled("v1", "ConfigMap", WRITTEN).await? {
            if WRITTEN_MAPS.contains(&map.name_any().as_str()) {
                found.push(Id::new("v1", "ConfigMap", map.namespace().as_deref(), &map.name_any()));
            }
        }
        for (api_version, kind, name) in
            [("coordination.k8s.io/v1", "Lease", "culvert-controller"), ("v1", "Secret", "culvert-ca-secret")]
        {
            let id = Id::new(api_version, kind, Some(&self.namespace), name);
            found.extend(cluster.find(&id).await?.map(|_| id));
        }
        Ok(found)
    }

    async fn remove_namespace(&self, cluster: &Cluster, id: &Id) -> Result<()> {
        let Some(there) = cluster.find(id).await? else { return Ok(()) };
        if !there.annotations().contains_key(CREATED) {
            return write(&format!("kept      {id}: it was there before\n"));
        }
        let secret = Id::new("v1", "Secret", Some(&id.name), "cacerts");
        if cluster.find(&secret).await?.is_some() {
            return write(&format!("kept      {id}: it holds {secret}, your own CA\n"));
        }
        self.remove(cluster, id).await?;
        // Whoever installs again at once must not meet the old one.
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        while !self.dry_run && cluster.find(id).await?.is_some() {
            if Instant::now() >= deadline {
                bail!("{id} is still there after {} seconds: kubectl describe says what keeps it", self.timeout);
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

async fn definitions(cluster: &Cluster) -> Result<Vec<Id>> {
    let (key, value) = culvert_api::crd::OWNER_LABEL;
    let (api_version, kind) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let found = cluster.labelled(api_version, kind, &format!("{key}={value}")).await?;
    Ok(found.iter().map(|definition| Id::new(api_version, kind, None, &definition.name_any())).collect())
}
