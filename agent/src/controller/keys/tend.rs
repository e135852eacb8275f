//! What the leader does about the keys: make them when there are none, and exchange a generated root in time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::metrics::Metrics;
use super::secret::{self, Step};
use super::{Found, GENERATED, Keys, LOOK};

/// Since when which roots have been in every namespace: their PEM, and the moment. None while some namespace lacks
/// them.
pub(in crate::controller) type Spread = Option<(String, Instant)>;

/// How slowly roots are exchanged.
#[derive(Clone, Copy, Debug)]
pub(in crate::controller) struct Timing {
    /// How long a new root has been in every namespace before it signs: mounted ConfigMaps take a minute or two, and
    /// an agent may have been down.
    pub(in crate::controller) spread: Duration,
}

impl Keys {
    /// Makes and exchanges keys while this replica leads. Dropped when it does not.
    pub(in crate::controller) async fn tend(&self, timing: Timing, spread: watch::Receiver<Spread>, metrics: &Metrics) {
        let mut found = self.0.found.subscribe();
        let mut roots = spread.clone();
        loop {
            let seen = found.borrow_and_update().clone();
            if let Err(error) = self.tend_once(&seen, timing, &spread, metrics).await {
                tracing::error!("{error}");
            }
            // The wall clock has to be looked at now and then, whatever happens.
            tokio::select! {
                Ok(()) = found.changed() => {}
                Ok(()) = roots.changed() => {}
                () = tokio::time::sleep(LOOK.min(timing.spread)) => {}
            }
        }
    }

    async fn tend_once(
        &self,
        found: &Found,
        timing: Timing,
        spread: &watch::Receiver<Spread>,
        metrics: &Metrics,
    ) -> Result<(), String> {
        let now = self.0.clock.now();
        match (&found.plugged_in, &found.generated) {
            (Some(None), Some(None)) if self.0.current.borrow().is_none() => {
                let secret = secret::generate(now)?;
                self.write(secret, None, metrics).await?;
            }
            (Some(None), Some(Some(current))) => {
                let since = spread.borrow().as_ref().filter(|(roots, _)| self.are_in_force(roots)).map(|(_, at)| *at);
                let step = secret::next_step(current, now, since.map(|at| at.elapsed()), timing.spread);
                let Some(step) = step else { return Ok(()) };
                let after = secret::take(step, current, now)?;
                self.write(after, Some(step), metrics).await?;
            }
            // What was plugged in is its owner's to exchange.
            _ => {}
        }
        Ok(())
    }

    /// Whether `roots` are those of the Secret as it is now.
    fn are_in_force(&self, roots: &str) -> bool {
        self.0.current.borrow().as_ref().is_some_and(|current| current.roots == roots)
    }

    /// Creates the Secret, or replaces it as `step` wants. Another replica may have been faster, in either case: then
    /// what it wrote stands, and is seen.
    async fn write(&self, secret: Secret, step: Option<Step>, metrics: &Metrics) -> Result<(), String> {
        let (written, verb) = match step {
            None => (self.0.secrets.create(&PostParams::default(), &secret).await, "create"),
            Some(_) => (self.0.secrets.replace(GENERATED, &PostParams::default(), &secret).await, "update"),
        };
        match written {
            Ok(_) => {
                metrics.wrote("secret", true);
                let what = match step {
                    None => "made a root",
                    Some(Step::Begin) => "made another root; it signs once every namespace has had it for a while",
                    Some(Step::Promote) => "the new root signs; the old one stays trusted until nothing of it is valid",
                    Some(Step::Retire) => "the old root is no longer trusted: nothing that it signed is valid",
                };
                tracing::info!(secret = GENERATED, namespace = self.0.namespace, "{what}");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                tracing::info!(secret = GENERATED, "another replica was faster");
                Ok(())
            }
            Err(error) => {
                metrics.wrote("secret", false);
                Err(super::super::explain(&error, verb, "secrets"))
            }
        }
    }
}
