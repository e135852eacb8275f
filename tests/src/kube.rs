//! A real Kubernetes control plane: etcd, kube-apiserver and, where they are wanted, kube-controller-manager,
//! kube-scheduler and whole nodes.
//!
//! RBAC is on, tokens are bound and signed by a key of ours, every request is in the audit log. Each control plane has
//! its own ports, files and certificates, and is gone when it is dropped or when its process ends, however that ends.
//!
//! The programs are those of `$KUBEBUILDER_ASSETS`, else those that `cargo xtask setup` built: Kubernetes 1.20, which
//! Debian has the source of. What 1.20 lacks and is made good here: EndpointSlices v1 (kept in a CRD without a schema;
//! nobody derives them from Services). What stays different: no streaming lists, no CEL rules in CRDs.

mod api;
mod audit;
mod cluster;
mod forwarder;
mod image;
mod machine;
mod node;
mod pki;
mod programs;
mod services;
mod tokens;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::deadline::eventually;
use crate::process::Process;
use crate::scope::Scope;

pub use api::Answer;
pub use audit::Request;
pub use forwarder::Forwarder;
pub use image::Image;
pub use machine::Machine;
pub use node::{BUSYBOX, KubeNode, container};
pub use programs::Programs;
pub use services::{DNS_ADDRESS, Services};

use pki::Pki;

/// Where Services get their addresses from.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// And from where their IPv6 addresses come, where the cluster has both families.
pub const SERVICE_RANGE_V6: &str = "fd00:96::/112";
/// The Service `default/kubernetes`: the API server's certificate names it.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The audience of the API server's own tokens, and their issuer.
pub const AUDIENCE: &str = "https://kubernetes.default.svc";

/// Without which older releases have one family only.
pub(crate) const DUAL_STACK_GATE: &str = "IPv6DualStack";

/// A cold start on a busy machine of two cores.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(3);

/// A running control plane; killed and wiped when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    // Stopped in this order.
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    apiserver: Mutex<Option<Process>>,
    _etcd: Process,
    programs: Programs,
    pki: Pki,
    ports: Ports,
    directory: PathBuf,
    scope: Scope,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    apiserver: u16,
    controller_manager: u16,
    scheduler: u16,
}

impl ControlPlane {
    /// etcd and an API server, ready. Nothing acts on what is written there: Services have no Endpoints, namespaces get
    /// no service account but by [`ControlPlane::namespace`], and a namespace that is deleted stays.
    ///
    /// # Errors
    /// When a program is missing, or did not get ready; with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with kube-controller-manager.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_with_controllers() -> Result<Self> {
        Self::start()?.with_controllers()
    }

    /// The same with both families: pods and Services may have an address of each.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_dual_stack() -> Result<Self> {
        let ranges = format!("--service-cluster-ip-range={SERVICE_RANGE},{SERVICE_RANGE_V6}");
        let gate = format!("--feature-gates={DUAL_STACK_GATE}=true");
        let mut flags = vec![ranges.as_str()];
        if Programs::find()?.gates_dual_stack() {
            flags.push(&gate);
        }
        Self::start_with(&flags)?.with_controllers()
    }

    fn with_controllers(mut self) -> Result<Self> {
        self.start_controller_manager()?;
        Ok(self)
    }

    /// With further flags of the API server.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_with(apiserver_flags: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let programs = Programs::find()?;
        let scope = Scope::new()?;
        let directory = scope.directory().join(format!("kube{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let ports = Ports::free()?;
        let pki = Pki::create(&directory.join("pki"), ports.apiserver)?;
        fs::write(directory.join("flags"), apiserver_flags.join("\n"))?;
        let etcd = start_etcd(&programs, &directory, ports)?;
        let started = Self {
            scheduler: None,
            controller_manager: None,
            apiserver: Mutex::new(None),
            _etcd: etcd,
            programs,
            pki,
            ports,
            directory,
            scope,
        };
        started.start_apiserver()?;
        if started.programs.lacks_endpoint_slices() {
            started.crds(ENDPOINT_SLICES)?;
        }
        Ok(started)
    }

    /// The one that all tests of this process share, without controllers; it goes with the process.
    ///
    /// # Panics
    /// When it cannot be started: there is no test without it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(|| {
            Scope::remove_at_exit();
            match Self::start() {
                Ok(started) => started,
                Err(error) => panic!("{error:#}"),
            }
        })
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.ports.apiserver)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.kubeconfig("admin")
    }

    /// The certificate of its CA.
    pub fn ca(&self) -> PathBuf {
        self.pki.path("ca.crt")
    }

    /// Where this control plane keeps its files: a test may put its own there.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The scope all its names are in.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What it runs on.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Starts the API server, after [`ControlPlane::stop_apiserver`] or [`ControlPlane::kill_apiserver`], and waits
    /// until it is ready. Its port stays the same.
    ///
    /// # Errors
    /// When it does not get ready, with the end of its log.
    pub fn start_apiserver(&self) -> Result<()> {
        let mut running = self.apiserver();
        if running.is_some() {
            return Ok(());
        }
        let log = self.directory.join("kube-apiserver.log");
        let mut process = Process::spawn_server("kube-apiserver", self.apiserver_command()?, &log)?;
        self.wait_ready(&mut process, &log)?;
        *running = Some(process);
        Ok(())
    }

    /// Ends the API server as its host would: it lets requests finish. Etcd keeps what was written.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_apiserver(&self) -> Result<()> {
        let Some(mut process) = self.apiserver().take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        if process.wait(STOP).is_err() {
            // Open watches can hold it longer than any test wants to wait.
            process.kill()?;
        }
        Ok(())
    }

    /// `kill -9` of the API server.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_apiserver(&self) -> Result<()> {
        self.apiserver().take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Has etcd forget what was before now: who watched from earlier is told 410 Gone, unless the API server remembers
    /// (`--watch-cache=false` keeps it from that).
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: serde_json::Value| -> Result<serde_json::Value> {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--max-time", "30", "--data", &body.to_string()]);
            let output = curl.arg(format!("http://127.0.0.1:{}/v3/kv/{path}", self.ports.etcd)).output()?;
            if !output.status.success() {
                bail!("etcd refuses {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        // "/", as etcd's JSON has bytes.
        let now = ask("range", serde_json::json!({ "key": "Lw==" }))?["header"]["revision"].take();
        ask("compaction", serde_json::json!({ "revision": now, "physical": true })).map(drop)
    }

    fn apiserver(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_ready(&self, process: &mut Process, log: &Path) -> Result<()> {
        let ready = eventually(START, "the API server to be ready", || {
            if let Ok(Some(status)) = process.try_wait() {
                return Some(Err(status));
            }
            self.get("/readyz").is_ok_and(|answer| answer.status == 200).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("kube-apiserver ended before it was ready, {status}: {}", end_of(log)),
            Err(error) => Err(error.context(format!("kube-apiserver's log: {}", end_of(log)))),
        }
    }

    fn apiserver_command(&self) -> Result<Command> {
        let pki = &self.pki;
        let policy = self.directory.join("audit-policy.yaml");
        fs::write(&policy, AUDIT_POLICY)?;
        let mut command = Command::new(self.programs.path("kube-apiserver")?);
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
            .arg(format!("--secure-port={}", self.ports.apiserver))
            .arg(format!("--service-cluster-ip-range={SERVICE_RANGE}"))
            .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
            .args(["--allow-privileged=true", "--profiling=false"])
            .arg(format!("--service-account-issuer={AUDIENCE}"))
            .arg(format!("--api-audiences={AUDIENCE}"))
            .arg(flag("service-account-key-file", &pki.path("sa.pub")))
            .arg(flag("service-account-signing-key-file", &pki.path("sa.key")))
            .arg(flag("tls-cert-file", &pki.path("apiserver.crt")))
            .arg(flag("tls-private-key-file", &pki.path("apiserver.key")))
            .arg(flag("client-ca-file", &pki.path("ca.crt")))
            .arg(flag("kubelet-client-certificate", &pki.path("kubelet-client.crt")))
            .arg(flag("kubelet-client-key", &pki.path("kubelet-client.key")))
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(flag("audit-policy-file", &policy))
            .arg(flag("audit-log-path", &self.audit_log()))
            .args(["--audit-log-maxsize=1000", "--v=1"]);
        if self.programs.lacks_endpoint_slices() {
            // That group as it was before v1; and pods without a token Secret, as has been the rule since 1.22.
            command.arg("--runtime-config=discovery.k8s.io/v1beta1=false");
            command.arg("--feature-gates=BoundServiceAccountTokenVolume=true");
        }
        let flags = fs::read_to_string(self.directory.join("flags"))?;
        command.args(flags.lines());
        Ok(command)
    }

    fn start_controller_manager(&mut self) -> Result<()> {
        let kubeconfig = self.pki.client("kcm", "/CN=system:kube-controller-manager")?;
        let log = self.directory.join("kube-controller-manager.log");
        let mut command = Command::new(self.programs.path("kube-controller-manager")?);
        command
            .arg(flag("kubeconfig", &kubeconfig))
            .arg(flag("authentication-kubeconfig", &kubeconfig))
            .arg(flag("authorization-kubeconfig", &kubeconfig))
            .args(["--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true"])
            .arg(format!("--secure-port={}", self.ports.controller_manager))
            .arg(flag("service-account-private-key-file", &self.pki.path("sa.key")))
            .arg(flag("root-ca-file", &self.pki.path("ca.crt")))
            .arg(flag("cluster-signing-cert-file", &self.pki.path("ca.crt")))
            .arg(flag("cluster-signing-key-file", &self.pki.path("ca.key")));
        if self.programs.lacks_endpoint_slices() {
            command.arg("--port=0");
        }
        self.controller_manager = Some(Process::spawn_server("kube-controller-manager", command, &log)?);
        self.await_default_account("default").with_context(|| end_of(&log))
    }

    /// Starts kube-scheduler: without it only pods that name their node run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_scheduler(&mut self) -> Result<()> {
        let kubeconfig = self.pki.client("scheduler", "/CN=system:kube-scheduler")?;
        let mut command = Command::new(self.programs.path("kube-scheduler")?);
        command
            .arg(flag("kubeconfig", &kubeconfig))
            .arg(flag("authentication-kubeconfig", &kubeconfig))
            .arg(flag("authorization-kubeconfig", &kubeconfig))
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
            .arg(format!("--secure-port={}", self.ports.scheduler));
        if self.programs.lacks_endpoint_slices() {
            command.arg("--port=0");
        }
        let log = self.directory.join("kube-scheduler.log");
        self.scheduler = Some(Process::spawn_server("kube-scheduler", command, &log)?);
        Ok(())
    }

    fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for mut process in self.scheduler.take().into_iter().chain(self.controller_manager.take()) {
            let _ = process.kill();
        }
        let _ = self.kill_apiserver();
    }
}

impl Ports {
    /// Below the range that the kernel gives to connections, so that nobody takes one while its server restarts.
    fn free() -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        const RANGE: std::ops::Range<u32> = 27_000..32_000;
        let first = process::id().wrapping_mul(37);
        let free = || -> Result<u16> {
            for _ in RANGE {
                let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into()) % RANGE.len() as u32;
                let port = u16::try_from(RANGE.start + offset)?;
                if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Ok(port);
                }
            }
            bail!("no port between {} and {} is free", RANGE.start, RANGE.end)
        };
        Ok(Self {
            etcd: free()?,
            etcd_peers: free()?,
            apiserver: free()?,
            controller_manager: free()?,
            scheduler: free()?,
        })
    }
}

fn start_etcd(programs: &Programs, directory: &Path, ports: Ports) -> Result<Process> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let mut command = Command::new(programs.path("etcd")?);
    command
        // Nobody needs the data after a power failure.
        .args(["--name=test", "--unsafe-no-fsync", "--log-level=warn", "--logger=zap"])
        .arg(flag("data-dir", &directory.join("etcd")))
        .arg(format!("--listen-client-urls={}", url(ports.etcd)))
        .arg(format!("--advertise-client-urls={}", url(ports.etcd)))
        .arg(format!("--listen-peer-urls={}", url(ports.etcd_peers)))
        .arg(format!("--initial-advertise-peer-urls={}", url(ports.etcd_peers)))
        .arg(format!("--initial-cluster=test={}", url(ports.etcd_peers)));
    Process::spawn_server("etcd", command, &directory.join("etcd.log"))
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// The last lines of a log.
fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

const ENDPOINT_SLICES: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: endpointslices.discovery.k8s.io
  annotations:
    api-approved.kubernetes.io: https://github.com/kubernetes/kubernetes/pull/99662
spec:
  group: discovery.k8s.io
  scope: Namespaced
  names: {plural: endpointslices, singular: endpointslice, kind: EndpointSlice, listKind: EndpointSliceList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
