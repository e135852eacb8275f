//! The role `controller`: what a cluster needs once, rather than on each node.
//!
//! Two replicas run. Each of them signs certificates; the one that holds the Lease writes.
//!
//! | module | what it is for |
//! |---|---|
//! | `election` | which replica writes |
//! | `keys` | the signing key in its Secret, and the exchange of a generated root |
//! | `issuer`, `caller`, `placement`, `shares`, `refusal` | who may have which certificate, and how many at once |
//! | `listener`, `grpc` | the port of the CA |
//! | `distribute` | the roots in a ConfigMap of every namespace |
//! | `status` | what became of policies and routes, in their statuses |
//! | `waypoints` | the waypoints that Gateways ask for |
//! | `follow` | watches of kinds that may or may not be served |
//! | `options` | the mesh options |
//! | `metrics` | what Prometheus is told |

mod caller;
mod distribute;
mod election;
mod follow;
mod grpc;
mod issuer;
mod keys;
mod listener;
mod metrics;
mod options;
mod placement;
mod refusal;
mod shares;
mod status;
#[cfg(test)]
mod tests;
mod waypoints;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use self::election::Election;
use self::issuer::Issuer;
use self::keys::{Keys, Timing};
use self::listener::OwnCertificate;
use self::metrics::Metrics;
use self::options::Options;
use self::placement::Placement;
use crate::admin::{self, AdminState, Report};
use crate::cluster::{Cluster, explain};
use crate::config::ControllerConfig;
use crate::identity::{Clock, SystemClock};
use crate::telemetry::logging::LogHandle;
use crate::telemetry::{AccessLog, Telemetry};

/// Whose fields the controller's are, in server-side apply.
const FIELD_MANAGER: &str = "culvert-controller";
/// Less than a connection may be silent.
const WATCH_SECONDS: u32 = 150;
/// The label on what the controller writes.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "culvert");

/// A controller that is ready to run: configuration read, ports bound.
pub struct Controller {
    config: ControllerConfig,
    client: kube::Client,
    listener: TcpListener,
    endpoints: [admin::Bound; 3],
    log: LogHandle,
}

impl Controller {
    /// Finds the API server and binds the ports. Needs a tokio runtime.
    ///
    /// # Errors
    /// What is missing, with the cure; nothing is left bound.
    pub async fn build(config: ControllerConfig, log: LogHandle) -> anyhow::Result<Self> {
        let cluster = Cluster::connect().await?;
        let listener = TcpListener::bind(config.ca_addr).await.with_context(|| {
            format!("--ca-addr: cannot listen on {}; give a free port, or an address of this machine", config.ca_addr)
        })?;
        let endpoints = admin::bind_all(config.endpoints.addresses()).await?;
        Ok(Self { config, client: cluster.client(), listener, endpoints, log })
    }

    /// The addresses of the CA, and of the admin, metrics and readiness endpoints.
    ///
    /// # Errors
    /// When the system does not tell the CA's.
    pub fn addresses(&self) -> std::io::Result<[SocketAddr; 4]> {
        let [admin, metrics, readiness] = &self.endpoints;
        Ok([self.listener.local_addr()?, admin.address(), metrics.address(), readiness.address()])
    }

    /// Serves until `stop` resolves or someone asks `/quitquitquit`; then gives up the Lease and lets requests finish.
    ///
    /// # Errors
    /// When the CA cannot be served.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { config, client, listener, endpoints, log } = self;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let keys = Keys::new(client.clone(), &config.namespace, clock.clone());
        let options = Options::new(client.clone());
        let placement = Placement::new(client.clone());
        let metrics = Metrics::default();
        let own = OwnCertificate::new(config.server_names());
        let election = Election::new(client.clone(), &config.namespace, &config.identity());
        let issuer = Issuer::new(
            client.clone(),
            keys.clone(),
            options.clone(),
            placement.clone(),
            config.trusted_node_accounts.iter().cloned().collect(),
            metrics.clone(),
            clock.clone(),
        );

        let (quit, mut quitting) = mpsc::channel::<()>(1);
        let telemetry = Telemetry::new(AccessLog::off());
        metrics.register(&telemetry, &keys, &placement, election.leads());
        let state = AdminState {
            config: vec![("controller", report(&config, &keys, &options, election.leads()))],
            connections: Report::new(Vec::<()>::new),
            redirection: Report::new(Vec::<()>::new),
            readiness: readiness(&keys, &options, &own),
            notes: {
                let keys = keys.clone();
                // Why it goes on with keys that are not the newest, if it does.
                Arc::new(move || keys.problem().into_iter().collect())
            },
            telemetry,
            log,
            shutdown: Arc::new(move || {
                // Full means that it has been asked already.
                let _ = quit.try_send(());
            }),
        };
        for endpoint in endpoints {
            tokio::spawn(endpoint.serve(state.clone()));
        }
        for follower in [
            tokio::spawn(keys.clone().follow()),
            tokio::spawn(options.clone().follow()),
            tokio::spawn(placement.follow()),
            tokio::spawn(own.clone().renew(keys.clone(), clock.clone())),
        ] {
            // They end with the process.
            drop(follower);
        }

        let (stopping, stopped) = watch::channel(false);
        let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
            // An error means that nobody is left to say so.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let timing = Timing { spread: config.root_spread_seconds };
        let spread = watch::Sender::new(None);
        let lead = || async {
            tokio::join!(
                keys.tend(timing, spread.subscribe(), &metrics),
                async {
                    if config.distribute_roots {
                        distribute::run(&client, &keys, &spread, &metrics).await;
                    }
                },
                status::run(&client, options.watch(), &metrics),
                waypoints::run(&client, &config, options.watch(), &metrics),
            );
        };
        let asked = async {
            tokio::select! {
                () = stop => tracing::info!("stopping: requests may finish"),
                _ = quitting.recv() => tracing::info!("stopping on request: requests may finish"),
            }
            stopping.send_replace(true);
        };
        let (served, (), ()) = tokio::join!(
            listener::serve(listener, issuer, own, clock, until_stopped(stopped.clone())),
            election.run(lead, until_stopped(stopped)),
            asked,
        );
        served.context("the CA service")
    }
}

/// Whether this replica can sign.
fn readiness(keys: &Keys, options: &Options, own: &Arc<OwnCertificate>) -> Vec<admin::ReadinessCheck> {
    let (keys, options, own) = (keys.clone(), options.clone(), own.clone());
    vec![Arc::new(move || {
        let mut reasons = Vec::new();
        reasons.extend(keys.current().err());
        if options.trust_domain().is_none() {
            reasons.push("the mesh options have not been read yet".to_owned());
        }
        if reasons.is_empty() && !own.is_ready() {
            reasons.push("the CA service has no certificate of its own yet".to_owned());
        }
        reasons
    })]
}

/// `/config_dump/controller`.
fn report(config: &ControllerConfig, keys: &Keys, options: &Options, leads: watch::Receiver<bool>) -> Report {
    let (config, keys, options) = (config.clone(), keys.clone(), options.clone());
    Report::new(move || {
        let current = keys.current().ok();
        serde_json::json!({
            "identity": config.identity(),
            "leads": *leads.borrow(),
            "trustDomain": options.trust_domain().as_deref(),
            "signsWith": current.as_ref().map(|current| current.origin.place("ca-cert.pem")),
            "roots": current.as_ref().map(|current| current.authority.trust().roots().len()),
            "problem": keys.problem(),
            "trustedNodeAccounts": config.trusted_node_accounts,
        })
    })
}

/// How a watch is asked for: ended by the API server before the client takes its silence for a fault. An old API server
/// sends no bookmarks of a resource that never changed.
fn watching() -> kube::runtime::watcher::Config {
    kube::runtime::watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Says in one line why a watch was interrupted; it goes on by itself.
fn explain_watch(error: &kube::runtime::watcher::Error, resource: &str) -> String {
    use kube::runtime::watcher::Error;
    match error {
        Error::InitialListFailed(error) => explain(error, "list", resource),
        Error::WatchStartFailed(error) | Error::WatchFailed(error) => explain(error, "watch", resource),
        Error::WatchError(status) => explain(&kube::Error::Api(status.clone()), "watch", resource),
        other => format!("cannot watch {resource}: {}", crate::cluster::root_cause(other)),
    }
}
