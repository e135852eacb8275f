//! Keeps the programs' map of destinations up to date, for as long as something is decided by it: a destination that is
//! not captured, or `REGISTRY_ONLY`.

use std::sync::Arc;
use std::time::Duration;

use culvert_core::mesh::{Snapshot, Touched};
use culvert_core::options::OutboundTrafficPolicy;
use tokio::time::Instant;

use crate::redirect::{Redirect, WriteError};

/// How long to wait after a failure before everything is written again.
const RETRY: Duration = Duration::from_secs(30);

/// Follows the mesh for the programs.
#[derive(Debug)]
pub struct Destinations {
    redirect: Arc<Redirect>,
    node: Arc<str>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// What an earlier agent left is there, perhaps.
    Unknown,
    /// Nobody needs the map: it is empty.
    Empty,
    /// The map holds what the last snapshot knows.
    Complete,
    /// It could not be written.
    Failed(Instant),
}

impl Destinations {
    /// Follows for the pods of `node`.
    pub fn new(redirect: Arc<Redirect>, node: &str) -> Self {
        Self { redirect, node: node.into(), state: State::Unknown }
    }

    /// Tells the programs what `snapshot` knows, of which `touched` may differ from the snapshot before. Blocks for a
    /// system call for each address; for thousands where the options have changed.
    pub fn follow(&mut self, snapshot: &Snapshot, touched: Touched) {
        if !self.redirect.is_in_charge() {
            // Another agent writes the map; should this one be in charge again, it starts afresh.
            self.state = State::Unknown;
            return;
        }
        let needed = self.is_needed(snapshot);
        let done = match (&self.state, touched) {
            (State::Failed(at), _) if at.elapsed() < RETRY => return,
            (State::Empty, _) if !needed => return,
            (_, _) if !needed => self.clear(),
            (State::Complete, Touched::Some(networks)) => self
                .redirect
                .update_destinations(networks.into_iter().map(|network| (network, snapshot.destination(network)))),
            (_, _) => self.write_all(snapshot),
        };
        self.state = match done {
            Ok(()) if needed => State::Complete,
            Ok(()) => State::Empty,
            // It has taken charge meanwhile, and writes all of it.
            Err(WriteError::NotInCharge(_)) => State::Unknown,
            Err(error) => {
                tracing::error!(
                    %error,
                    "the programs cannot be told every destination of the mesh: nothing is bypassed or refused by its \
                     address or port"
                );
                // Were that to fail as well, what is bypassed stays as it is known.
                let _ = self.redirect.set_outbound(false, false);
                State::Failed(Instant::now())
            }
        };
    }

    fn is_needed(&self, snapshot: &Snapshot) -> bool {
        let options = snapshot.options();
        !options.outbound_bypass.is_empty()
            || options.outbound_traffic_policy == OutboundTrafficPolicy::RegistryOnly
            || snapshot.enrolled_pods_on(&self.node).any(|pod| pod.workload.outbound_rules.is_some())
    }

    fn clear(&self) -> Result<(), WriteError> {
        self.redirect.set_outbound(false, false)?;
        self.redirect.set_mesh_rules(&Default::default())?;
        self.redirect.replace_destinations([])
    }

    fn write_all(&self, snapshot: &Snapshot) -> Result<(), WriteError> {
        let options = snapshot.options();
        // What is in the mesh before what may bypass around it.
        self.redirect.replace_destinations(snapshot.destinations())?;
        self.redirect.set_mesh_rules(&options.outbound_bypass.rules)?;
        self.redirect.set_outbound(true, options.outbound_traffic_policy == OutboundTrafficPolicy::RegistryOnly)
    }
}
