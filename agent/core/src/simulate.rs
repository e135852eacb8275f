//! One call, decided from end to end: what the client's node does with it, what the server's node says to it, and why.
//!
//! Routing is [`outbound`] and authorization [`policy::authorize`], the same functions that the
//! data path calls; nothing is decided here. Where a service has several endpoints, the one reported is the first, by
//! name, that denies the call, or else the first. Where a waypoint may send a request to several destinations, each is
//! followed.

mod asked;
mod direct;
pub mod l7;
mod names;
pub mod requests;
mod waypoint;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

pub use l7::{HttpRequest, Route};
pub use names::InputError;

use self::waypoint::Through;
use crate::address::OriginalDst;
use crate::bypass;
use crate::hbone::Authority;
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::policy::{self, Call, Decision, DryRun};
use crate::route::outbound::{Hop, Outbound, Upstream, outbound};
use crate::workload::{Protocol, Workload};

/// How often the choice among endpoints is repeated, so that each of a service's few is seen.
const DRAWS: u64 = 64;

/// A call to simulate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who calls: `NAMESPACE/POD`, or an address outside the mesh.
    pub from: String,
    /// Who is called: `HOST:PORT`. The host is a service by its name (as short as its clients may write it), a pod
    /// (`NAMESPACE/POD`, or its name within the caller's namespace), or an address.
    pub to: String,
    /// Whether the caller evades its own node, and dials in plaintext.
    pub plaintext: bool,
    /// The request that is made once connected, where waypoints are to look at it.
    pub http: Option<HttpRequest>,
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The end of it.
    pub outcome: Outcome,
    /// How it arrives; `None` if it has nowhere to go.
    pub transport: Option<Transport>,
    /// The proxies that handle it, the client's first: `node/n1`, `waypoint/ns/name`.
    pub path: Vec<String>,
    /// What was asked on the way, in order.
    pub checks: Vec<Check>,
    /// What the waypoint does with the request; `None` where there is no waypoint, or no request.
    pub route: Option<Route>,
}

/// The end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It reaches the application.
    Allowed,
    /// A policy refuses it.
    Denied,
    /// It has nowhere to go.
    Unroutable,
}

/// How a call arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Through a tunnel, with an identity.
    Hbone,
    /// As the application sent it.
    Plaintext,
}

/// One question asked on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Who asked: `node/n1`.
    pub at: String,
    /// On what it was decided.
    pub layer: Layer,
    /// The answer.
    pub decision: Verdict,
    /// The object that decided, `namespace/name`.
    pub policy: Option<String>,
    /// The position of its rule.
    pub rule: Option<usize>,
    /// Why, in one line.
    pub reason: String,
    /// What a policy on trial (`istio.io/dry-run`) would change: the answer if it were enforced. It decides nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Identities, addresses and ports.
    L4,
    /// Requests.
    L7,
}

/// The answer of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Stop.
    Deny,
}

/// Decides `request` in the mesh as `snapshot` has it.
///
/// # Errors
/// When the request names what is not there, with the next thing to check.
pub fn simulate(snapshot: &Snapshot, request: &Request) -> Result<Report, InputError> {
    let caller = names::caller(snapshot, &request.from)?;
    let dialled = match names::target(snapshot, &caller, &request.to)? {
        Ok(dialled) => dialled,
        Err(reason) => return Ok(unroutable(&caller, reason)),
    };
    if caller.addresses().contains(&dialled.ip()) {
        // A pod's own address never leaves its network namespace: nothing is captured, nobody is asked.
        return Ok(Report {
            outcome: Outcome::Allowed,
            transport: Some(Transport::Plaintext),
            path: Vec::new(),
            checks: Vec::new(),
            route: None,
        });
    }
    let captured = caller.enrolled().filter(|_| !request.plaintext);
    if let Some((workload, bypassed)) = captured.and_then(|w| Some((w, bypass::decide(snapshot, w, dialled)?))) {
        let check = Check {
            at: node(workload),
            layer: Layer::L4,
            decision: Verdict::Allow,
            policy: None,
            rule: None,
            reason: bypassed.to_string(),
            dry_run: false,
        };
        return Ok(match direct::arrivals(snapshot, &caller, dialled) {
            Ok(arrivals) => {
                let mut report = worst(snapshot, arrivals);
                report.checks.insert(0, check);
                report
            }
            Err(reason) => unroutable(&caller, reason),
        });
    }
    let arrivals = match captured {
        Some(workload) => through_the_mesh(snapshot, workload, dialled, request.http.as_ref())?,
        None => direct::arrivals(snapshot, &caller, dialled),
    };
    Ok(match arrivals {
        Ok(arrivals) => worst(snapshot, arrivals),
        Err(reason) => unroutable(&caller, reason),
    })
}

/// Who calls.
#[derive(Clone, Debug)]
enum Caller {
    Workload(Arc<Workload>),
    Outside(IpAddr),
}

impl Caller {
    /// The workload, if its connections are captured.
    fn enrolled(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Workload(workload) if workload.protocol == Protocol::Hbone => Some(workload),
            Self::Workload(_) | Self::Outside(_) => None,
        }
    }

    /// The namespace in which its short names are read.
    fn namespace(&self) -> &str {
        match self {
            Self::Workload(workload) => &workload.namespace,
            Self::Outside(_) => "default",
        }
    }

    fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Workload(workload) => &workload.addresses,
            Self::Outside(address) => std::slice::from_ref(address),
        }
    }

    fn address_towards(&self, destination: IpAddr) -> IpAddr {
        address_towards(self.addresses(), destination)
    }
}

/// The address of the family of `destination`, if there is one.
fn address_towards(addresses: &[IpAddr], destination: IpAddr) -> IpAddr {
    let same_family = addresses.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
    same_family.or(addresses.first()).copied().unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

/// A call, as it arrives at its end.
struct Arrival {
    path: Vec<String>,
    transport: Transport,
    principal: Option<Arc<Identity>>,
    /// On whose behalf a waypoint calls.
    client: Option<Arc<Identity>>,
    source_ip: IpAddr,
    destination: SocketAddr,
    /// Who is there; `None` for what the mesh does not know.
    workload: Option<Arc<Workload>>,
    /// What a waypoint on the way does with the request.
    l7: Option<AtWaypoint>,
}

/// What a waypoint does with a request.
#[derive(Clone)]
struct AtWaypoint {
    /// `None` where it is denied, or for no service.
    route: Option<Box<Route>>,
    checks: Vec<Check>,
    /// Why it has nowhere to go.
    unroutable: Option<String>,
}

/// Where a call may arrive, or why it does not.
type Arrivals = Result<Vec<Arrival>, String>;

fn through_the_mesh(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    dialled: SocketAddr,
    http: Option<&HttpRequest>,
) -> Result<Arrivals, InputError> {
    let mut arrivals = Vec::new();
    for seed in 0..DRAWS {
        let mut rng = StdRng::seed_from_u64(seed);
        let decided = match outbound(snapshot, source, OriginalDst::new(dialled), &mut rng) {
            Ok(decided) => decided,
            Err(refusal) => return Ok(Err(refusal.to_string())),
        };
        match follow(snapshot, source, decided, http)? {
            Ok(found) => arrivals.extend(found),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(arrivals))
}

/// Where an outbound decision ends.
fn follow(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    decided: Outbound,
    http: Option<&HttpRequest>,
) -> Result<Arrivals, InputError> {
    let path = vec![node(source)];
    Ok(match decided.upstream {
        Upstream::Hbone { peer, authority, through: Hop::Workload, .. } => {
            let destination = match authority {
                Authority::Ip(address) => address,
                Authority::Host(_, port) => SocketAddr::new(peer.ip(), port),
            };
            Ok(vec![Arrival {
                path,
                transport: Transport::Hbone,
                principal: Some(source.identity.clone()),
                client: None,
                source_ip: address_towards(&source.addresses, destination.ip()),
                destination,
                workload: decided.workload,
                l7: None,
            }])
        }
        Upstream::Hbone { peer, authority, expected, through: Hop::Waypoint } => {
            let dialled = match authority {
                Authority::Ip(address) => address,
                Authority::Host(_, port) => SocketAddr::new(peer.ip(), port),
            };
            let Some(pod) = &decided.workload else { return Ok(Err("the waypoint has no pod".to_owned())) };
            let through = Through {
                snapshot,
                source,
                path,
                waypoint: pod,
                peer,
                identity: expected.first().cloned(),
                dialled,
                service: decided.service.filter(|service| service.waypoint.is_some()),
            };
            return through.follow(http);
        }
        Upstream::Tcp { peer } => Ok(vec![Arrival {
            path,
            transport: Transport::Plaintext,
            principal: None,
            client: None,
            source_ip: address_towards(&source.addresses, peer.ip()),
            destination: peer,
            workload: decided.workload,
            l7: None,
        }]),
        Upstream::Resolve { port, .. } => Ok(vec![Arrival {
            path,
            transport: Transport::Plaintext,
            principal: None,
            client: None,
            source_ip: address_towards(&source.addresses, IpAddr::from([0, 0, 0, 0])),
            destination: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port),
            workload: None,
            l7: None,
        }]),
    })
}

/// The report of the first arrival, by name, that is denied, or else of the first.
fn worst(snapshot: &Snapshot, mut arrivals: Vec<Arrival>) -> Report {
    let name = |arrival: &Arrival| arrival.workload.as_ref().map(|workload| workload.uid.clone());
    // Two waypoints may share the connections to a service.
    let end = |arrival: &Arrival| (name(arrival), arrival.destination, arrival.path.clone());
    arrivals.sort_by_cached_key(end);
    arrivals.dedup_by(|a, b| end(a) == end(b));
    let reports: Vec<_> = arrivals.into_iter().map(|arrival| at_the_end(snapshot, arrival)).collect();
    let denied = reports.iter().position(|report| report.outcome != Outcome::Allowed);
    let empty =
        || Report { outcome: Outcome::Unroutable, transport: None, path: Vec::new(), checks: Vec::new(), route: None };
    reports.into_iter().nth(denied.unwrap_or(0)).unwrap_or_else(empty)
}

/// What the server's node says.
fn at_the_end(snapshot: &Snapshot, arrival: Arrival) -> Report {
    let Arrival { mut path, transport, principal, client, source_ip, destination, workload, l7 } = arrival;
    let mut report = Report {
        outcome: Outcome::Allowed,
        transport: Some(transport),
        path: Vec::new(),
        checks: Vec::new(),
        route: None,
    };
    if let Some(AtWaypoint { route, checks, unroutable }) = l7 {
        report.route = route.map(|route| *route);
        if checks.iter().any(|check| check.decision == Verdict::Deny && !check.dry_run) {
            report.outcome = Outcome::Denied;
        }
        report.checks.extend(checks);
        if let Some(reason) = unroutable {
            report.outcome = Outcome::Unroutable;
            report.checks.push(waypoint::refused(&path, reason));
        }
    }
    if let Some(workload) = workload.filter(|workload| is_guarded(snapshot, workload)) {
        path.push(node(&workload));
        let call = Call { principal: principal.as_deref(), source_ip, destination };
        let decision = policy::authorize(snapshot, &workload, &call, client.as_deref());
        if !decision.allowed {
            report.outcome = Outcome::Denied;
        }
        report.checks.push(asked(&workload, &decision, None));
        for trial in &decision.dry_run {
            let enforced = policy::authorize_with(snapshot, &workload, &call, client.as_deref(), trial);
            report.checks.push(asked(&workload, &enforced, Some(trial)));
        }
    }
    report.path = path;
    report
}

/// What the node of `workload` answers; with `trial`, what it would if that policy were enforced.
fn asked(workload: &Workload, decision: &Decision, trial: Option<&DryRun>) -> Check {
    let (policy, rule) = match trial {
        Some(trial) => (Some(&trial.policy.name), trial.rule),
        None => (decision.reason.policy(), decision.reason.rule()),
    };
    let enforced = trial.map(|trial| format!("with {} enforced: ", trial.policy.name));
    Check {
        at: node(workload),
        layer: Layer::L4,
        decision: if decision.allowed { Verdict::Allow } else { Verdict::Deny },
        policy: policy.map(ToString::to_string),
        rule,
        reason: format!("{}{}", enforced.unwrap_or_default(), decision.reason),
        dry_run: trial.is_some(),
    }
}

/// Whether the node of `workload` asks before it lets a call in.
fn is_guarded(snapshot: &Snapshot, workload: &Workload) -> bool {
    let bypassed = || {
        let mut pods = snapshot.enrolled_pods_on(&workload.node);
        pods.any(|pod| pod.workload.uid == workload.uid && pod.bypass_inbound)
    };
    workload.protocol == Protocol::Hbone && !bypassed()
}

fn node(workload: &Workload) -> String {
    // A WorkloadEntry runs on no node; it is its own.
    if workload.node.is_empty() {
        format!("workload/{}", workload.namespaced_name())
    } else {
        format!("node/{}", workload.node)
    }
}

fn unroutable(caller: &Caller, reason: String) -> Report {
    let at = match caller {
        Caller::Workload(workload) => node(workload),
        Caller::Outside(address) => address.to_string(),
    };
    let check = Check {
        at: at.clone(),
        layer: Layer::L4,
        decision: Verdict::Deny,
        policy: None,
        rule: None,
        reason,
        dry_run: false,
    };
    Report { outcome: Outcome::Unroutable, transport: None, path: vec![at], checks: vec![check], route: None }
}

#[cfg(test)]
mod tests;
