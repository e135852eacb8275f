//! What a cluster is made of, and making it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::mesh::{Endpoint as Member, Snapshot};
use culvert_core::service::{LoadBalancing, Resolution, Service, TargetPort};
use culvert_core::traffic::balance::Balancer;
use culvert_core::traffic::policy::{Algorithm, DestinationRule, Subset, TrafficPolicy};
use culvert_core::workload::Workload;
use tokio::time::Instant;

use super::{Cluster, Endpoint, Settings, Shared, Speaks, State, WorkloadUid};
use crate::waypoint::upstream::endpoint::Health;
use crate::waypoint::upstream::external;
use crate::waypoint::upstream::outliers::Watch;
use crate::waypoint::upstream::tls::Tls;
use crate::waypoint::upstream::transport::{Transport, found};

/// What a cluster is for.
#[derive(Clone, Debug)]
pub(in crate::waypoint::upstream) enum Subject {
    /// A port of a service, or of a part of it.
    Service(Arc<Service>, u16, Option<Arc<str>>),
    /// A port of a workload.
    Workload(Arc<Workload>, u16),
}

/// Everything of the mesh that a cluster is made of. As long as it is the same, so is the cluster.
pub(in crate::waypoint::upstream) struct MadeOf {
    subject: Subject,
    own: Arc<Workload>,
    rule: Option<Arc<DestinationRule>>,
    connect_timeout: Duration,
    members: Vec<(Member, Option<Arc<Workload>>)>,
}

/// What goes over from the cluster that was there before.
pub(in crate::waypoint::upstream) struct Parts<'a> {
    pub(in crate::waypoint::upstream) state: Arc<State>,
    pub(in crate::waypoint::upstream) before: Option<&'a Cluster>,
}

impl Subject {
    /// As metrics name it.
    pub(in crate::waypoint::upstream) fn name(&self) -> String {
        match self {
            Self::Service(service, port, subset) => {
                format!("outbound|{port}|{}|{}", subset.as_deref().unwrap_or_default(), service.key.hostname)
            }
            Self::Workload(workload, port) => format!("outbound|{port}||{}.{}", workload.name, workload.namespace),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Service(a, ..), Self::Service(b, ..)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Workload(a, _), Self::Workload(b, _)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl MadeOf {
    /// What a cluster for `subject` is made of in `snapshot`.
    pub(in crate::waypoint::upstream) fn new(snapshot: &Snapshot, own: &Arc<Workload>, subject: Subject) -> Self {
        // Where it runs may be known better by now than when it started.
        let own = snapshot.workload(&own.uid).unwrap_or(own).clone();
        let (rule, members) = match &subject {
            Subject::Workload(..) => (None, Vec::new()),
            Subject::Service(service, _, subset) => {
                let (rule, _) = snapshot.traffic_rule(&own.namespace, service, subset.as_deref());
                let behind = |member: &Member| {
                    let there = found(snapshot, &member.workload);
                    let is_another = there.uid != member.workload.uid;
                    is_another.then(|| snapshot.workload(&there.uid).cloned()).flatten()
                };
                let members = snapshot.endpoints(&service.key).map(|member| (member.clone(), behind(member)));
                (rule.cloned(), members.collect())
            }
        };
        Self { subject, own, rule, connect_timeout: snapshot.options().connect_timeout, members }
    }

    /// Whether a cluster made of either would be the same.
    pub(in crate::waypoint::upstream) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<Workload>>, b: &Option<Arc<Workload>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        let same_rule = match (&self.rule, &other.rule) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        same_rule
            && self.connect_timeout == other.connect_timeout
            && self.subject.is_same(&other.subject)
            && (Arc::ptr_eq(&self.own, &other.own) || self.own == other.own)
            && self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(|(a, b)| a.0.is_same(&b.0) && same(&a.1, &b.1))
    }

    fn subset(&self) -> Option<&Subset> {
        match &self.subject {
            Subject::Service(_, _, Some(name)) => self.rule.as_ref()?.subset(name),
            _ => None,
        }
    }

    fn policy(&self) -> TrafficPolicy {
        match (&self.subject, &self.rule) {
            (Subject::Service(_, port, _), Some(rule)) => rule.policy_for(self.subset(), *port),
            _ => TrafficPolicy::default(),
        }
    }
}

impl Cluster {
    /// The cluster of `made_of` in `snapshot`, with what goes over to it from the one before.
    pub(in crate::waypoint::upstream) fn build(
        snapshot: &Snapshot,
        shared: &Arc<Shared>,
        made_of: MadeOf,
        parts: Parts<'_>,
    ) -> Arc<Self> {
        let Parts { state, before } = parts;
        let policy = made_of.policy();
        let service = match &made_of.subject {
            Subject::Service(service, ..) => Some(service.clone()),
            Subject::Workload(..) => None,
        };
        let settings = Arc::new(settings(&made_of, service.as_deref(), &policy));
        let balancer = balancer(snapshot, &made_of, &policy);
        let watch = watch(&state, &policy, before);
        let endpoints = endpoints(snapshot, shared, &made_of, &balancer, &settings, &state, before);
        if let Some(watch) = &watch {
            watch.set_members(endpoints.iter().map(|endpoint| &endpoint.health));
        }
        let passes = policy.load_balancer.as_ref().is_some_and(|lb| lb.algorithm == Algorithm::Passthrough);
        let is_none = service.as_ref().is_some_and(|service| service.resolution == Resolution::Passthrough);
        let cluster = Self {
            none: why_none(snapshot, &made_of),
            speaks: speaks(&made_of.subject, &settings),
            passes_through: passes || is_none,
            service,
            policy,
            settings,
            balancer,
            endpoints,
            state,
            shared: shared.clone(),
            made_of,
        };
        Arc::new(cluster)
    }

    pub(in crate::waypoint::upstream) fn is_made_of(&self, made_of: &MadeOf) -> bool {
        self.made_of.is_same(made_of)
    }

    /// The one who sends.
    pub(in crate::waypoint::upstream) fn own(&self) -> &Arc<Workload> {
        &self.made_of.own
    }
}

fn settings(made_of: &MadeOf, service: Option<&Service>, policy: &TrafficPolicy) -> Settings {
    let pool = policy.pool.clone().unwrap_or_default();
    let host = service.map(|service| service.key.hostname.clone());
    let tls = policy.tls.clone().zip(host.clone()).map(|(tls, host)| Arc::new(Tls::new(tls, host)));
    Settings {
        connect_timeout: pool.connect_timeout.unwrap_or(made_of.connect_timeout),
        pool,
        tls,
        proxy_protocol: policy.proxy_protocol,
        host,
    }
}

/// Whose turn it may be. A name without endpoints is its own endpoint.
fn balancer(snapshot: &Snapshot, made_of: &MadeOf, policy: &TrafficPolicy) -> Balancer {
    let own = &*made_of.own;
    match &made_of.subject {
        Subject::Workload(workload, port) => {
            Balancer::of([(workload.clone(), *port)], &LoadBalancing::default(), policy, own)
        }
        Subject::Service(service, port, _) => match service.port(*port) {
            Some(target) if made_of.members.is_empty() && service.resolution == Resolution::Dns => {
                let number = match target.target {
                    TargetPort::Number(number) => number,
                    TargetPort::Named(_) => *port,
                };
                let named = external::named(own, &service.key.hostname);
                Balancer::of([(named, number)], &LoadBalancing::default(), policy, own)
            }
            _ => Balancer::new(snapshot, service, *port, made_of.subset(), policy, own),
        },
    }
}

/// The outlier detection: that of before as long as its settings are the same.
fn watch(state: &State, policy: &TrafficPolicy, before: Option<&Cluster>) -> Option<Arc<Watch>> {
    let known = state.watch.load_full();
    let kept = known.filter(|watch| Some(watch.settings()) == policy.outliers.as_ref());
    if kept.is_none() {
        // What counted by other settings counts no longer.
        for endpoint in before.iter().flat_map(|cluster| &cluster.endpoints) {
            endpoint.health.forgive();
        }
    }
    let watch = kept.or_else(|| policy.outliers.clone().map(Watch::new));
    state.watch.store(watch.clone());
    watch
}

/// The endpoints by their places, those of before where they are the same; the others of before are retired.
fn endpoints(
    snapshot: &Snapshot,
    shared: &Arc<Shared>,
    made_of: &MadeOf,
    balancer: &Balancer,
    settings: &Arc<Settings>,
    state: &Arc<State>,
    before: Option<&Cluster>,
) -> Vec<Arc<Endpoint>> {
    let now = Instant::now();
    let mut known: HashMap<(&WorkloadUid, u16), &Arc<Endpoint>> = HashMap::new();
    for endpoint in before.iter().flat_map(|cluster| &cluster.endpoints) {
        known.insert((&endpoint.candidate.workload.uid, endpoint.candidate.port), endpoint);
    }
    let service = match &made_of.subject {
        Subject::Service(service, ..) => Some(&**service),
        Subject::Workload(..) => None,
    };
    let mut endpoints = Vec::new();
    for candidate in balancer.candidates() {
        let transport = Transport::to(snapshot, &made_of.own, service, &candidate.workload, candidate.port);
        let same = known.remove(&(&candidate.workload.uid, candidate.port));
        if let Some(old) = same.filter(|old| old.is_spoken_to_by(candidate, &transport, settings)) {
            endpoints.push(old.clone());
            continue;
        }
        if let Some(old) = same {
            old.retire();
        }
        // Those that were there when the waypoint came need not warm up.
        let health = || Health::new(before.is_some().then_some(now));
        let health = same.map_or_else(health, |old| old.health.clone());
        let (candidate, state, dialler) = (candidate.clone(), state.clone(), shared.dialler.clone());
        endpoints.push(Endpoint::new(candidate, transport, settings.clone(), health, state, dialler));
    }
    known.values().for_each(|gone| gone.retire());
    endpoints
}

/// What requests to `subject` are spoken in.
fn speaks(subject: &Subject, settings: &Settings) -> Speaks {
    let Subject::Service(service, port, _) = subject else { return Speaks::AsClient };
    let protocol = service.port(*port).and_then(|port| port.app_protocol.as_deref());
    match protocol {
        _ if settings.pool.use_client_protocol => Speaks::AsClient,
        _ if settings.pool.upgrade => Speaks::Http2,
        Some("http2" | "grpc" | "grpc-web" | "h2c" | "kubernetes.io/h2c") => Speaks::Http2,
        Some(_) => Speaks::Http1,
        // Nobody says: the client knows best.
        None => Speaks::AsClient,
    }
}

/// Why there is no endpoint, if there is none.
fn why_none(snapshot: &Snapshot, made_of: &MadeOf) -> &'static str {
    let Subject::Service(service, port, subset) = &made_of.subject else {
        return "the workload cannot be reached";
    };
    let Some(port) = service.port(*port) else { return "it has no such port" };
    let members = || made_of.members.iter().map(|(member, _)| member);
    let ready = || members().filter(|member| member.ready || service.load_balancing.allow_unhealthy);
    let of_subset = |member: &&Member| made_of.subset().is_some_and(|subset| subset.selects(&member.workload));
    match () {
        () if snapshot.service(&service.key).is_none() => "there is no such service any more",
        () if members().next().is_none() => "it has none: check its selector against the labels of the pods",
        () if ready().next().is_none() => "none is ready: check the readiness of its pods",
        () if ready().all(|member| member.port(port).is_none()) => {
            "none that is ready has the port: check targetPort against the ports of the pods"
        }
        () if subset.is_some() && !ready().any(|member| of_subset(&member)) => {
            "none that is ready has the labels of the subset: check spec.subsets of the DestinationRule"
        }
        () => "none that is ready is in the waypoint's network and locality: check localityLbSetting",
    }
}
