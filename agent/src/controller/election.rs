//! Which replica writes: a Lease of `coordination.k8s.io/v1`, held as client-go holds it.
//!
//! Clocks are never compared. A replica measures, by its own monotonic clock, for how long it has seen the Lease
//! unchanged; only a Lease that nobody has renewed for that long is taken. A leader stops before its Lease can have
//! run out for anyone: it counts from before the request that renewed it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// The Lease's name.
pub(super) const LEASE: &str = "culvert-controller";
/// For how long others leave an unrenewed Lease alone (client-go's defaults for leases).
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader goes on without having renewed it. The rest is for requests on their way.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// A Lease says itself how long it is to be left alone; more than this is not believed.
const MAX_DURATION: Duration = Duration::from_secs(5 * 60);

/// A candidate for the Lease.
pub(super) struct Election {
    leases: Api<Lease>,
    namespace: String,
    judge: Judge,
    leads: watch::Sender<bool>,
}

impl Election {
    /// A candidate called `identity`, of which there must be no other, for the Lease in `namespace`.
    pub(super) fn new(client: kube::Client, namespace: &str, identity: &str) -> Self {
        let leases = Api::namespaced(client, namespace);
        let judge = Judge { identity: identity.to_owned(), seen: None };
        Self { leases, namespace: namespace.to_owned(), judge, leads: watch::Sender::new(false) }
    }

    /// Whether this replica leads.
    pub(super) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Runs `work` whenever this replica leads, and drops it the moment it does not, until `stop` resolves; then gives
    /// the Lease up, so that the next one need not wait for it to run out.
    pub(super) async fn run<W: Future<Output = ()>>(mut self, work: impl Fn() -> W, stop: impl Future<Output = ()>) {
        let leads = self.leads.clone();
        let mut stop = pin!(stop);
        let terms = async {
            loop {
                let held = self.acquire().await;
                tracing::info!(identity = self.judge.identity, "leading: this replica writes");
                leads.send_replace(true);
                let ended = {
                    let work = pin!(work());
                    tokio::select! {
                        // The Lease is looked at first: where both are due, nothing more is written.
                        biased;
                        why = self.hold(held) => why,
                        () = work => "there is nothing more to do",
                    }
                };
                leads.send_replace(false);
                tracing::warn!(identity = self.judge.identity, "no longer leading: {ended}");
            }
        };
        tokio::select! {
            () = terms => {}
            () = &mut stop => {}
        }
        if self.leads.send_replace(false) {
            self.release().await;
        }
    }

    /// Waits until the Lease is this replica's; when the request was sent that made it so.
    async fn acquire(&mut self) -> Instant {
        loop {
            let begun = Instant::now();
            match timeout_at(begun + RENEW_DEADLINE, self.attempt()).await {
                Ok(Ok(true)) => return begun,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(namespace = self.namespace, "cannot become leader: {error}");
                }
                Err(_) => tracing::warn!(namespace = self.namespace, "cannot become leader: no answer in time"),
            }
            sleep(jittered(RETRY_PERIOD)).await;
        }
    }

    /// Renews the Lease until that is no longer possible; why it is not.
    async fn hold(&mut self, mut renewed: Instant) -> &'static str {
        loop {
            let deadline = renewed + RENEW_DEADLINE;
            if timeout_at(deadline, sleep(RETRY_PERIOD)).await.is_err() {
                return "the Lease could not be renewed in time";
            }
            let begun = Instant::now();
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return "another replica holds the Lease",
                Ok(Err(error)) => tracing::warn!(namespace = self.namespace, "cannot renew the Lease: {error}"),
                Err(_) => return "the Lease could not be renewed in time",
            }
        }
    }

    /// Takes or renews the Lease if that may be done; whether it is this replica's now.
    async fn attempt(&mut self) -> Result<bool, String> {
        let lease = self.leases.get_opt(LEASE).await.map_err(|e| super::explain(&e, "get", "leases"))?;
        let Some(spec) = self.judge.decide(lease.as_ref(), Instant::now(), Timestamp::now()) else { return Ok(false) };
        let metadata = match &lease {
            Some(lease) => lease.metadata.clone(),
            None => ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
        };
        let wanted = Lease { metadata, spec: Some(spec) };
        // Both fail if anyone was faster: creation by the name, replacement by the resourceVersion.
        let (written, verb) = match &lease {
            Some(_) => (self.leases.replace(LEASE, &PostParams::default(), &wanted).await, "update"),
            None => (self.leases.create(&PostParams::default(), &wanted).await, "create"),
        };
        match written {
            Ok(lease) => {
                self.judge.see(lease.spec.as_ref(), Instant::now());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(super::explain(&error, verb, "leases")),
        }
    }

    /// Leaves the Lease to whoever comes next.
    async fn release(&mut self) {
        let release = async {
            let Some(mut lease) = self.leases.get_opt(LEASE).await? else { return Ok(()) };
            if let Some(spec) = lease.spec.as_mut().filter(|spec| holder(Some(spec)) == self.judge.identity) {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.leases.replace(LEASE, &PostParams::default(), &lease).await?;
                tracing::info!("gave up the Lease");
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(RETRY_PERIOD, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!("the Lease has to run out: {}", super::explain(&error, "update", "leases"))
            }
            Err(_) => tracing::warn!("the Lease has to run out: no answer in time"),
        }
    }
}

/// Two replicas that start together do not look in step.
fn jittered(period: Duration) -> Duration {
    use rand::Rng;
    period.mul_f64(rand::rng().random_range(1.0..1.2))
}

/// What a candidate has seen of the Lease, and what follows from it. No I/O, no clock.
#[derive(Debug)]
struct Judge {
    identity: String,
    /// The Lease as it was last seen to change, and when.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Judge {
    /// The Lease as this candidate may write it now, having seen `lease`; none when it is another's. `wall` is only for
    /// people to read.
    fn decide(&mut self, lease: Option<&Lease>, now: Instant, wall: Timestamp) -> Option<LeaseSpec> {
        let found = lease.and_then(|lease| lease.spec.as_ref());
        self.see(found, now);
        let holder = holder(found);
        let is_ours = holder == self.identity;
        if !is_ours && !holder.is_empty() && !self.has_run_out(now) {
            return None;
        }
        let old = found.cloned().unwrap_or_default();
        let (since, changes) = (old.acquire_time, old.lease_transitions.unwrap_or(0));
        Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: if is_ours { since } else { Some(MicroTime(wall)) },
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(if is_ours || lease.is_none() { changes } else { changes.saturating_add(1) }),
            ..old
        })
    }

    /// Notes when the Lease last changed.
    fn see(&mut self, found: Option<&LeaseSpec>, now: Instant) {
        let known = self.seen.as_ref().map(|(spec, _)| spec);
        if known != found || known.is_none() {
            self.seen = found.map(|spec| (spec.clone(), now));
        }
    }

    /// Whether the Lease has been seen unchanged for as long as it is to be left alone.
    fn has_run_out(&self, now: Instant) -> bool {
        let Some((spec, since)) = &self.seen else { return true };
        let said = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let left_alone = said.map_or(LEASE_DURATION, Duration::from_secs).min(MAX_DURATION);
        now.saturating_duration_since(*since) > left_alone
    }
}

fn holder(spec: Option<&LeaseSpec>) -> &str {
    spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
