//! Who this waypoint is.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::waypoint::{Unplaced, own_workload};
use culvert_core::workload::{NamespacedName, Workload};
use tokio::sync::watch;

use crate::config::WaypointConfig;

/// When it is asked again for a certificate.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Who a waypoint is.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its Gateway.
    pub gateway: NamespacedName,
    /// Its own pod.
    pub workload: Arc<Workload>,
    /// As whom it speaks: to those who come to it, and to those it goes to.
    pub identity: Arc<Identity>,
}

/// What a waypoint is told of itself, and what is known of it by now.
pub(super) struct Placement {
    gateway: NamespacedName,
    pod: Option<String>,
    service_account: Option<Arc<str>>,
    addresses: Vec<IpAddr>,
    /// Why it does not find itself in the mesh, if so.
    missing: Mutex<Option<Unplaced>>,
}

impl Placement {
    /// As the flags say.
    pub(super) fn new(config: &WaypointConfig) -> Self {
        Self {
            gateway: config.gateway.clone(),
            pod: config.pod_name.clone(),
            service_account: config.service_account.as_deref().map(Into::into),
            addresses: config.hbone_addr.iter().map(|address| address.ip().to_canonical()).collect(),
            missing: Mutex::new(None),
        }
    }

    /// The Gateway.
    pub(super) fn gateway(&self) -> &NamespacedName {
        &self.gateway
    }

    /// Waits until the mesh says who the waypoint is.
    pub(super) async fn find(&self, followed: &mut watch::Receiver<Arc<Snapshot>>) -> Own {
        loop {
            let snapshot = followed.borrow_and_update().clone();
            match self.look(&snapshot) {
                Ok(own) => {
                    self.set_missing(None);
                    return own;
                }
                // Before anything is known, that is no news.
                Err(why) if snapshot.version() > 0 => self.set_missing(Some(why)),
                Err(_) => {}
            }
            if followed.changed().await.is_err() {
                // Whoever told of the mesh is gone, which ends the process.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Who the waypoint is, as `snapshot` has it.
    pub(super) fn look(&self, snapshot: &Snapshot) -> Result<Own, Unplaced> {
        let workload = own_workload(snapshot, &self.gateway, self.pod.as_deref(), &self.addresses)?;
        Ok(Own {
            gateway: self.gateway.clone(),
            workload: workload.clone(),
            identity: self.identity(snapshot, workload),
        })
    }

    /// Why it is not known yet who the waypoint is.
    pub(super) fn missing(&self) -> Option<Unplaced> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn identity(&self, snapshot: &Snapshot, workload: &Workload) -> Arc<Identity> {
        let Some(account) = &self.service_account else { return workload.identity.clone() };
        let trust_domain = snapshot.options().trust_domain.clone();
        Arc::new(Identity::new(trust_domain, self.gateway.namespace.clone(), account.clone()))
    }

    fn set_missing(&self, missing: Option<Unplaced>) {
        let mut known = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &missing
            && *known != missing
        {
            tracing::warn!("not serving yet: {why}");
        }
        *known = missing;
    }
}
