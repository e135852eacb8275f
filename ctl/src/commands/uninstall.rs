//! `culvertctl uninstall`: the agents first, while they still may clean up their nodes; then the rest.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::time::{Instant, sleep};

use super::install::{CREATED, installed, refuse_helms};
use crate::chart;
use crate::cluster::{self, Cluster, ClusterOptions, Id, explain};
use crate::output::write;

const POLL: Duration = Duration::from_millis(500);
/// The roots that the controller writes into every namespace, and the label it knows its own by.
const ROOT_CERT: &str = "istio-ca-root-cert";

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
            if self.nodes_only {
                self.remove(&cluster, &agents).await?;
                self.wait_for_agents(&cluster).await?;
                return Ok(ExitCode::SUCCESS);
            }
            refuse_helms(&cluster, &self.namespace).await?;
            // The API server is asked for everything before anything is deleted: a permission that is missing must
            // not leave half of it.
            let mut objects = installed(&cluster).await?;
            objects.extend(self.written_at_run_time(&cluster).await?);
            let namespaces: Vec<_> = objects.extract_if(.., |id| id.kind == "Namespace").collect();
            let definitions = if self.crds { definitions(&cluster).await? } else { Vec::new() };
            if objects.is_empty() && namespaces.is_empty() && definitions.is_empty() {
                bail!("nothing of Culvert's is installed that culvertctl has made");
            }
            objects.retain(|id| *id != agents);
            self.remove(&cluster, &agents).await?;
            self.wait_for_agents(&cluster).await?;
            for id in objects.iter().rev() {
                self.remove(&cluster, id).await?;
            }
            for id in &definitions {
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

    /// Agents that are told to stop after their DaemonSet is gone take every pod out of the mesh and remove their CNI
    /// plugin. Their permissions must last until then.
    async fn wait_for_agents(&self, cluster: &Cluster) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &self.namespace);
        let mut said = 0;
        loop {
            let left = pods.list(&ListParams::default().labels("app=culvert-node").limit(500)).await;
            let left = left.map_err(|error| explain(&error, "list", "pods"))?.items;
            if left.is_empty() {
                return write("clean     every node: no agent is left\n");
            }
            if left.len() != said {
                said = left.len();
                write(&format!("waiting   {said} agents to take their pods out of the mesh\n"))?;
            }
            if Instant::now() >= deadline {
                let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                let nodes: Vec<_> = left.iter().map(node).take(5).collect();
                bail!(
                    "agents have not stopped within {} seconds on: {}; are these nodes up? Run this again, or delete \
                     their pods (kubectl delete pod --force) and reboot the nodes",
                    self.timeout,
                    nodes.join(", ")
                );
            }
            sleep(POLL).await;
        }
    }

    /// What the controller makes: roots in every namespace, its own secret and lease.
    async fn written_at_run_time(&self, cluster: &Cluster) -> Result<Vec<Id>> {
        let mut found = vec![
            Id::new("coordination.k8s.io/v1", "Lease", Some(&self.namespace), "culvert-controller"),
            Id::new("v1", "Secret", Some(&self.namespace), "culvert-ca-secret"),
        ];
        let maps = Api::<ConfigMap>::all(cluster.client.clone());
        let roots = maps.list(&ListParams::default().fields(&format!("metadata.name={ROOT_CERT}"))).await;
        for map in roots.map_err(|error| explain(&error, "list", "configmaps"))?.items {
            // Istio's own controller labels its with istio.io/config.
            let managers = map.managed_fields().iter().filter_map(|fields| fields.manager.as_deref());
            if managers.into_iter().any(|manager| manager == "culvert-controller") {
                found.push(Id::new("v1", "ConfigMap", map.namespace().as_deref(), ROOT_CERT));
            }
        }
        let mut there = Vec::new();
        for id in found {
            there.extend(cluster.find(&id).await?.map(|_| id));
        }
        Ok(there)
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
