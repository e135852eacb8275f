//! What the roles that carry traffic do alike.

use std::time::Duration;

use culvert_core::mesh::Snapshot;
use tokio::sync::watch;

use crate::config::{LogConfig, TrafficConfig};
use crate::identity::{CertificateStore, Trust, TrustDomains};
use crate::redirect;
use crate::telemetry::AccessLog;

/// When starting is over, after the objects are known; and when an API server has told of all of its objects.
const STARTED_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// The access log that the flags ask for.
pub(crate) fn access_log(traffic: &TrafficConfig, log: &LogConfig) -> AccessLog {
    if traffic.access_log { AccessLog::stdout(log.log_format) } else { AccessLog::off() }
}

/// Has certificates judged by the trust domains that the mesh options name.
pub(crate) fn set_trust_domains(certificates: &CertificateStore, snapshot: &Snapshot) {
    let options = snapshot.options();
    let trusted = TrustDomains::new(options.trust_domain.clone(), options.trust_domain_aliases.iter().cloned());
    if *certificates.trust_domains() != trusted {
        certificates.set_trust_domains(trusted);
    }
}

/// Has the tunnels ended whose peers the mesh trusts no longer; `vet` does so, on a thread that may be kept busy, and says
/// how many there were. Ends itself by a bug only.
pub(crate) async fn follow_trust<F>(certificates: CertificateStore, vet: F)
where
    F: Fn(&Trust) -> usize + Clone + Send + 'static,
{
    let mut watch = certificates.trust();
    while let Some(trust) = watch.changed().await {
        let vet = vet.clone();
        match tokio::task::spawn_blocking(move || vet(&trust)).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, "tunnels closed: their peers are not trusted any more"),
            // A panic was reported by the runtime. Without this task the process ends.
            Err(_) => return,
        }
    }
}

/// Gives back what starting took of memory, once that is over: when what is known has been taken in, and again when an
/// agent that started from what an earlier one wrote down has had the time to read it all anew.
pub(crate) async fn release_memory(mut is_loaded: watch::Receiver<bool>) {
    if is_loaded.wait_for(|loaded| *loaded).await.is_err() {
        return;
    }
    for after in STARTED_AFTER {
        tokio::time::sleep(after).await;
        // A panic was reported by the runtime.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(redirect::memory::release).await {
            tracing::debug!(%error, "the memory that starting took is not given back");
        }
    }
}
