//! Whether the node's pods are this agent's. While an agent is replaced two of them run: the new one takes charge once it
//! knows the mesh, and the old one then lets what it carries finish. Where the new one dies, the old one takes it back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::redirect::Redirect;

/// How often it is looked who is in charge: a look at a map of a few rows.
const LOOK: Duration = Duration::from_millis(500);
/// When it is tried again to take charge.
const AGAIN: Duration = Duration::from_secs(1);

/// What an agent knows of its own charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Whether it has it.
    pub is_ours: bool,
    /// How often it has taken it: everything that another agent may have changed since has to be done anew.
    pub taken: u64,
}

/// Waits until the agent is in charge by a later turn than `taken`, and says by which. Never resolves when the agent
/// stops before.
pub async fn taken_after(turns: &mut watch::Receiver<Turn>, taken: u64) -> u64 {
    if let Ok(turn) = turns.wait_for(|turn| turn.is_ours && turn.taken > taken).await {
        return turn.taken;
    }
    std::future::pending().await
}

/// The agent's charge of its node. Clones are one.
#[derive(Clone, Debug)]
pub struct Charge {
    redirect: Arc<Redirect>,
    turn: watch::Sender<Turn>,
}

impl Charge {
    /// Not taken yet.
    pub fn new(redirect: Arc<Redirect>) -> Self {
        Self { redirect, turn: watch::Sender::new(Turn::default()) }
    }

    /// Told of every change.
    pub fn subscribe(&self) -> watch::Receiver<Turn> {
        self.turn.subscribe()
    }

    /// Takes it, the first time, however often it has to be tried: a quiet cluster gives no other occasion. To be called
    /// when the mesh is known.
    pub async fn take(&self) {
        persist(|| self.try_take()).await;
    }

    async fn try_take(&self) -> io::Result<()> {
        let redirect = self.redirect.clone();
        tokio::task::spawn_blocking(move || redirect.take_charge()).await.map_err(io::Error::other)??;
        self.turn.send_modify(|turn| *turn = Turn { is_ours: true, taken: turn.taken + 1 });
        Ok(())
    }

    /// Follows who is in charge, once this agent has been; for as long as the task lives.
    pub async fn follow(self) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let known = *self.turn.borrow();
            let redirect = self.redirect.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || redirect.is_in_charge()).await else { return };
            match (known, now) {
                (Turn { taken: 0, .. }, _) => {}
                (Turn { is_ours, .. }, is_so) if is_ours == is_so => {}
                (_, false) => {
                    tracing::info!("another agent serves this node's pods now: this one lets what it carries finish");
                    self.turn.send_modify(|turn| turn.is_ours = false);
                }
                // Its own row is the newest of those that live again.
                (_, true) => {
                    tracing::warn!("the agent that took over from this one is gone: serving this node's pods again");
                    if let Err(error) = self.try_take().await {
                        tracing::error!(%error, "cannot take charge of this node's pods again; trying once more");
                    }
                }
            }
        }
    }
}

/// Tries until it succeeds.
async fn persist<F: Future<Output = io::Result<()>>>(mut attempt: impl FnMut() -> F) {
    while let Err(error) = attempt().await {
        tracing::error!(%error, "cannot take charge of this node's pods; trying again in a moment");
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn charge_that_cannot_be_taken_is_tried_for_again_with_nothing_to_remind_of_it() {
        let (begun, mut failures) = (Instant::now(), 3);
        persist(|| {
            failures -= 1;
            std::future::ready(if failures == 0 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) })
        })
        .await;
        assert_eq!((failures, begun.elapsed()), (0, 2 * AGAIN));
    }
}
