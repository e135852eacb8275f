//! Whom an endpoint answers at the same time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use tokio::task::AbortHandle;

/// Connections served at once, each endpoint for itself.
pub(super) const MAX_CONNECTIONS: usize = 32;

/// The connections of one endpoint, the oldest first.
///
/// Ports for the kubelet and Prometheus are open to whoever reaches the node. However slowly some read and write, the
/// next to come is answered.
#[derive(Debug, Default)]
pub(super) struct Places(VecDeque<(IpAddr, AbortHandle)>);

impl Places {
    /// Notes that `task` serves `client`. Where all places are taken, the client that has the most of them loses its
    /// oldest.
    pub(super) fn give(&mut self, client: IpAddr, task: AbortHandle) {
        self.0.retain(|(_, task)| !task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS
            && let Some((_, oldest)) = self.greediest().and_then(|at| self.0.remove(at))
        {
            oldest.abort();
        }
        self.0.push_back((client, task));
    }

    /// The oldest connection of the client that has the most.
    fn greediest(&self) -> Option<usize> {
        let mut held = HashMap::<IpAddr, usize>::new();
        for (client, _) in &self.0 {
            *held.entry(*client).or_default() += 1;
        }
        let most = held.values().copied().max()?;
        self.0.iter().position(|(client, _)| held.get(client) == Some(&most))
    }
}
