//! What a container runtime does with a CNI plugin: it reads the network configuration, and calls the plugin named there
//! with the environment and input of the specification.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use culvert_tests::agent::binary;
use culvert_tests::process::{Finished, Process};
use culvert_tests::{Place, Pod, Topology, eventually};
use serde_json::{Value, json};

use crate::datapath::{LIMIT, START};

/// The node's network configuration before Culvert comes.
pub(crate) const CONFLIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\n      \
                                   \"type\": \"bridge\"\n    }\n  ]\n}\n";

/// The first node's container runtime.
pub(crate) struct Runtime {
    root: PathBuf,
    place: Place,
    /// The UIDs of pods by name, where they are not `NAMESPACE-NAME`.
    pub(crate) uids: BTreeMap<String, String>,
}

impl Runtime {
    pub(crate) fn create(topology: &Topology) -> Result<Self> {
        let root = topology.scope().directory().join("runtime");
        let runtime = Self { root, place: topology.node(1).place(), uids: BTreeMap::new() };
        fs::create_dir_all(runtime.configurations())?;
        fs::create_dir_all(runtime.state())?;
        fs::write(runtime.configurations().join("10-net.conflist"), CONFLIST)?;
        Ok(runtime)
    }

    /// For the agent of the node.
    pub(crate) fn flags(&self) -> Vec<OsString> {
        let mut flags = vec!["--cni".into(), "--state-dir".into(), self.state().into()];
        flags.extend(self.directories());
        flags
    }

    fn directories(&self) -> Vec<OsString> {
        let pairs = [
            ("--cni-bin-dir", self.root.join("bin")),
            ("--cni-conf-dir", self.configurations()),
            ("--cni-socket", self.socket()),
        ];
        pairs.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
    }

    pub(crate) fn configurations(&self) -> PathBuf {
        self.root.join("net.d")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("run/cni.sock")
    }

    pub(crate) fn plugin(&self) -> PathBuf {
        self.root.join("bin/culvert-cni")
    }

    /// `culvert cni uninstall` on the node.
    pub(crate) fn uninstall(&self) -> Result<()> {
        let mut command = self.place.command(binary("culvert")?)?;
        command.args(["cni", "uninstall", "--state-dir"]).arg(self.state()).args(self.directories());
        Process::spawn("culvert cni uninstall", command)?.finish(LIMIT)?.success().map(drop)
    }

    /// What the plugin before ours says of a pod.
    pub(crate) fn result(pod: &Pod) -> String {
        result(&pod.addresses()).to_string()
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<Finished> {
        self.call("ADD", pod)
    }

    /// The code and message with which an ADD is refused.
    pub(crate) fn refusal(&self, pod: &Pod) -> Result<(u64, String)> {
        let refused = self.add(pod)?;
        ensure!(!refused.status.success(), "{} may start", pod.name());
        let error: Value = serde_json::from_str(&refused.stdout)?;
        let code = error["code"].as_u64().context("an error has a code")?;
        Ok((code, error["msg"].as_str().context("an error has a message")?.to_owned()))
    }

    pub(crate) fn call(&self, command: &str, pod: &Pod) -> Result<Finished> {
        self.call_as(command, pod.namespace(), pod)
    }

    /// As if the pod were of another namespace.
    pub(crate) fn call_as(&self, command: &str, namespace: &str, pod: &Pod) -> Result<Finished> {
        self.call_with(command, namespace, pod, &pod.netns().path().display().to_string(), &pod.addresses())
    }

    pub(crate) fn call_with(
        &self,
        command: &str,
        namespace: &str,
        pod: &Pod,
        netns: &str,
        addresses: &[IpAddr],
    ) -> Result<Finished> {
        self.start(command, namespace, pod, netns, addresses)?.finish(START)
    }

    /// A GC with this list of what is in use, or without one.
    pub(crate) fn collect_garbage(&self, valid: Option<&[&str]>, pod: &Pod) -> Result<Finished> {
        let mut input = self.netconf(&[])?;
        if let (Some(valid), Some(fields)) = (valid, input.as_object_mut()) {
            let valid: Vec<_> = valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
            fields.insert("cni.dev/valid-attachments".to_owned(), valid.into());
        }
        self.spawn_with("GC", &input, pod.namespace(), pod, "")?.finish(START)
    }

    pub(crate) fn spawn(&self, command: &str, pod: &Pod) -> Result<Process> {
        self.start(command, pod.namespace(), pod, &pod.netns().path().display().to_string(), &pod.addresses())
    }

    fn start(&self, name: &str, namespace: &str, pod: &Pod, netns: &str, addresses: &[IpAddr]) -> Result<Process> {
        self.spawn_with(name, &self.netconf(addresses)?, namespace, pod, netns)
    }

    fn spawn_with(&self, name: &str, conf: &Value, namespace: &str, pod: &Pod, netns: &str) -> Result<Process> {
        let input = self.root.join(format!("{}-{name}.json", pod.name()));
        fs::write(&input, conf.to_string())?;
        let mut command = self.place.command(self.program()?)?;
        let pod_name = pod.name();
        let uid = self.uids.get(pod_name).cloned().unwrap_or_else(|| format!("{namespace}-{pod_name}"));
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod_name};K8S_POD_UID={uid}");
        command.env_clear().env("CNI_COMMAND", name).env("CNI_CONTAINERID", format!("sandbox-{pod_name}"));
        command.env("CNI_NETNS", netns).env("CNI_IFNAME", "eth0").env("CNI_ARGS", args).env("CNI_PATH", "/opt/cni/bin");
        command.stdin(File::open(&input)?);
        Process::spawn("culvert-cni", command)
    }

    /// The plugin that is installed, or one under its name while none is.
    fn program(&self) -> Result<PathBuf> {
        if self.plugin().exists() {
            return Ok(self.plugin());
        }
        let link = self.root.join("culvert-cni");
        if !link.exists() {
            std::os::unix::fs::symlink(binary("culvert")?, &link)?;
        }
        Ok(link)
    }

    /// Our plugin's entry as the runtime hands it on: that of the configuration, with what a runtime adds.
    fn netconf(&self, addresses: &[IpAddr]) -> Result<Value> {
        let mut entry = self
            .installed_entry()
            .unwrap_or_else(|| json!({ "type": "culvert-cni", "socket": self.socket(), "stateDir": self.state() }));
        let fields = entry.as_object_mut().context("an entry is an object")?;
        fields.insert("cniVersion".to_owned(), "1.0.0".into());
        fields.insert("name".to_owned(), "net".into());
        fields.insert("prevResult".to_owned(), result(addresses));
        fields.entry("timeoutSeconds").or_insert(if self.plugin().exists() { 25 } else { 2 }.into());
        Ok(entry)
    }

    fn installed_entry(&self) -> Option<Value> {
        let text = fs::read(self.configurations().join("10-net.conflist")).ok()?;
        let conflist: Value = serde_json::from_slice(&text).ok()?;
        conflist["plugins"].as_array()?.iter().find(|plugin| plugin["type"] == "culvert-cni").cloned()
    }

    /// Waits until the agent has installed the plugin.
    pub(crate) fn await_installed(&self) -> Result<()> {
        eventually(START, "the plugin to be installed", || self.installed_entry().map(drop))
    }
}

fn result(addresses: &[IpAddr]) -> Value {
    let prefix = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let ips: Vec<_> =
        addresses.iter().map(|ip| json!({ "address": format!("{ip}/{}", prefix(ip)), "interface": 0 })).collect();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": Path::new("/run/netns/x") }],
        "ips": ips,
    })
}
