//! What the admin endpoints show of the agent.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Node, Serving};
use crate::admin::{self, AdminState, ReadinessCheck, Report};
use crate::cni;
use crate::enrolment::States;
use crate::redirect::{self, Redirect};
use crate::source::View;
use crate::telemetry::{Kind, Sample};

impl Node {
    /// What the endpoints show and do; `quit` is told when someone asks the agent to end.
    pub(super) fn admin_state(&self, serving: &Serving, quit: mpsc::Sender<()>) -> AdminState {
        let view = self.source.view();
        let mesh = serving.mesh.clone();
        let mut config = admin::mesh_members(Arc::new(move || mesh.load_full()), self.certificates.clone());
        config.push(view.report());
        let proxies = serving.proxies.clone();
        AdminState {
            config,
            connections: Report::new(move || proxies.connections()),
            redirection: redirection(&self.redirect, &serving.states, &self.config.node_name),
            readiness: self.readiness(serving, &view),
            notes: notes(&serving.states, view),
            telemetry: self.telemetry.clone(),
            log: self.log.clone(),
            shutdown: Arc::new(move || {
                // Full means that it has been asked already.
                let _ = quit.try_send(());
            }),
        }
    }

    fn readiness(&self, serving: &Serving, view: &View) -> Vec<ReadinessCheck> {
        let plugin = self.cni.as_ref().map(cni::AgentSide::problems);
        let states = serving.states.clone();
        vec![
            Arc::new(move || plugin.as_ref().map(|problems| problems()).unwrap_or_default()),
            view.loading(serving.loaded.subscribe()),
            Arc::new(move || states.not_ready()),
        ]
    }

    /// Registers what is read when metrics are asked for.
    pub(super) fn register_metrics(&self) {
        let programs = self.redirect.clone();
        self.telemetry.register_samples(
            "culvert_redirection",
            "What the eBPF programs captured, passed, refused or gave up on",
            Kind::Counter,
            move || programs.counters().into_iter().map(sample).collect(),
        );
        self.certificates.register_metrics(&self.telemetry);
        self.source.view().register_metrics(&self.telemetry);
    }
}

/// `/redirection`: the pods as enrolment sees them and as the programs do.
fn redirection(redirect: &Arc<Redirect>, states: &States, node: &str) -> Report {
    let (redirect, states, node) = (redirect.clone(), states.clone(), node.to_owned());
    Report::new(move || {
        serde_json::json!({
            "node": node,
            "pods": states.list(),
            "programs": redirect.report(),
            "outbound": redirect.outbound(),
            "counters": redirect.counters(),
        })
    })
}

fn notes(states: &States, view: View) -> ReadinessCheck {
    let states = states.clone();
    Arc::new(move || view.notes().into_iter().chain(states.notes()).collect())
}

fn sample(counter: redirect::Counter) -> Sample {
    let labels = vec![("event", counter.name.to_owned()), ("reason", counter.reason.to_owned())];
    Sample { labels, value: counter.value }
}
