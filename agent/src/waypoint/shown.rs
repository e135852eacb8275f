//! What the admin endpoints show of a waypoint.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::mpsc;

use super::shared::Shared;
use super::{Coming, Waypoint};
use crate::admin::{self, AdminState, ReadinessCheck, Report};
use crate::source::View;
use crate::telemetry::{Kind, Sample};

/// What the endpoints show and do; `quit` is told when someone asks the waypoint to end.
pub(super) fn admin_state(waypoint: &Waypoint, coming: &Coming, quit: mpsc::Sender<()>) -> AdminState {
    let view = waypoint.source.view();
    let mesh = coming.mesh.clone();
    let mut config = admin::mesh_members(Arc::new(move || mesh.load_full()), waypoint.certificates.clone());
    config.push(view.report());
    let own = coming.clone();
    config.push(("waypoint", Report::new(move || describe(&own))));
    let connections = coming.shared.clone();
    AdminState {
        config,
        connections: Report::new(move || {
            connections.get().map(|shared| shared.connections.report()).unwrap_or_default()
        }),
        redirection: Report::new(Vec::<()>::new),
        readiness: vec![view.loading(coming.loaded.subscribe()), not_ready(coming)],
        notes: notes(coming, view),
        telemetry: waypoint.telemetry.clone(),
        log: waypoint.log.clone(),
        shutdown: Arc::new(move || {
            // Full means that it has been asked already.
            let _ = quit.try_send(());
        }),
    }
}

/// Registers what is read when metrics are asked for.
pub(super) fn register_metrics(waypoint: &Waypoint, coming: &Coming) {
    waypoint.certificates.register_metrics(&waypoint.telemetry);
    waypoint.source.view().register_metrics(&waypoint.telemetry);
    let gauge = |name, help, read: fn(&Shared) -> usize| {
        let shared = coming.shared.clone();
        let read = move || {
            let value = shared.get().map_or(0, |shared| read(shared));
            vec![Sample { labels: Vec::new(), value: value as u64 }]
        };
        waypoint.telemetry.register_samples(name, help, Kind::Gauge, read);
    };
    gauge("culvert_waypoint_tunnels", "Tunnels of clients", |shared| shared.tunnels.len());
    gauge("culvert_waypoint_sessions", "Connections of clients, through tunnels", Shared::sessions);
}

/// `/config_dump/waypoint`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    gateway: String,
    workload: Option<String>,
    identity: Option<String>,
    tunnels: usize,
    sessions: usize,
}

fn describe(coming: &Coming) -> Described {
    let shared = coming.shared.get();
    Described {
        gateway: coming.placement.gateway().to_string(),
        workload: shared.map(|shared| shared.own.workload.namespaced_name().to_string()),
        identity: shared.map(|shared| shared.own.identity.to_string()),
        tunnels: shared.map_or(0, |shared| shared.tunnels.len()),
        sessions: shared.map_or(0, |shared| shared.sessions()),
    }
}

/// Why the waypoint is not ready, beside the objects.
fn not_ready(coming: &Coming) -> ReadinessCheck {
    let coming = coming.clone();
    Arc::new(move || {
        if *coming.stopping.borrow() {
            return vec!["the waypoint is stopping".to_owned()];
        }
        if coming.shared.get().is_none() {
            let missing = coming.placement.missing().map(|why| why.to_string());
            return vec![missing.unwrap_or_else(|| "the waypoint has no certificate yet".to_owned())];
        }
        let gateway = coming.placement.gateway();
        match coming.mesh.load().waypoint(gateway) {
            Some(_) => Vec::new(),
            None => vec![culvert_core::waypoint::NotServed::NoGateway(gateway.clone()).to_string()],
        }
    })
}

/// What has to be said of a waypoint that is ready.
fn notes(coming: &Coming, view: View) -> ReadinessCheck {
    let coming = coming.clone();
    Arc::new(move || view.notes().into_iter().chain(renamed(&coming)).collect())
}

/// Whether the mesh has it that the waypoint is someone else by now: whoever expects that does not speak to it.
fn renamed(coming: &Coming) -> Option<String> {
    let own = &coming.shared.get()?.own;
    let now = coming.placement.look(&coming.mesh.load()).ok()?;
    (now.identity != own.identity).then(|| {
        format!("the waypoint serves as {}, which by now should be {}: restart it", own.identity, now.identity)
    })
}
