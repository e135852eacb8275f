//! What becomes of requests in a small mesh, and what several tests of routes share.

mod connections;
mod delegates;
mod gateway_api;
mod merging;
mod mistakes;
mod requests;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::decide::{Action, RouteDecision, Target, route};
use super::fault::Abort;
use super::request::{Origin, RequestHead};
use super::template::Variables;
use crate::mesh::Snapshot;
use crate::mesh::tests::mesh;
use crate::service::{LoadBalancing, Resolution, Service, ServiceKey, ServicePort, TargetPort};
use crate::workload::Created;

/// A service without anything.
pub(crate) fn service() -> Service {
    Service {
        key: ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() },
        name: "cart".into(),
        vips: Vec::new(),
        ports: vec![ServicePort { port: 80, name: "http".into(), target: TargetPort::Number(80), app_protocol: None }],
        resolution: Resolution::Endpoints,
        load_balancing: LoadBalancing::default(),
        waypoint: None,
        subject_alt_names: Vec::new(),
        canonical: true,
        created: Created::default(),
    }
}

/// Somebody unknown who asks `service` on port 80.
pub(crate) fn origin_of(service: &Service) -> Origin<'_> {
    Origin {
        service,
        port: 80,
        client: None,
        client_address: ([10, 0, 0, 9], 40_000).into(),
        destination: [10, 96, 0, 1].into(),
        sni: None,
    }
}

/// A shop with a cart on two ports, stock on one, a client, and somebody else.
const MESH: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: infra}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {selector: {app: stock}, clusterIP: 10.96.0.2, ports: [{name: http, port: 8000}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: other}
spec: {selector: {app: stock}, clusterIP: 10.96.0.3, ports: [{name: http, port: 9000}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v2, labels: {version: v2}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop, labels: {app: front, tier: web}}
spec: {nodeName: n1, serviceAccountName: front, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}]}
"#;

/// The mesh with more objects.
pub(crate) fn with(objects: &str) -> Arc<Snapshot> {
    let mesh = mesh(&format!("{MESH}---\n{objects}"));
    mesh.snapshot()
}

/// A VirtualService of the cart with these rules.
fn rules(http: &str) -> String {
    let http: String = http.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\n\
         spec:\n  hosts: [cart]\n  http:\n{http}"
    )
}

/// What was found, a line each.
fn findings(snapshot: &Snapshot) -> Vec<String> {
    snapshot.findings().map(|(_, finding)| finding.to_string()).collect()
}

/// Who asks, and how: `GET http://cart:80/path` and headers; `!` before it for a client that nobody knows.
pub(crate) fn decide(snapshot: &Snapshot, line: &str, headers: &[(&str, &str)], seed: u64) -> RouteDecision {
    let (unknown, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
    let (method, uri) = line.split_once(' ').unwrap();
    let (scheme, rest) = uri.split_once("://").unwrap();
    let (authority, path) = rest.split_at(rest.find('/').unwrap());
    let host = authority.split(':').next().unwrap();
    let name = match host.contains('.') {
        true => host.to_owned(),
        false => format!("{host}.shop.svc.cluster.local"),
    };
    let service = snapshot.services_by_hostname(&name).next().unwrap();
    let client = (!unknown).then(|| &**snapshot.pod("shop", "front").unwrap());
    let port = authority.split_once(':').map_or(80, |(_, port)| port.parse().unwrap());
    let origin = Origin { client, port, ..origin_of(service) };
    let map = header_map(headers);
    let request = RequestHead {
        method: &Method::from_bytes(method.as_bytes()).unwrap(),
        scheme,
        authority,
        path,
        protocol: "HTTP/1.1",
        headers: &map,
    };
    route(snapshot, &origin, &request, &mut SmallRng::seed_from_u64(seed))
}

pub(crate) fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let pairs = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()));
    let mut map = HeaderMap::new();
    pairs.for_each(|(name, value)| {
        map.append(name, value);
    });
    map
}

pub(crate) fn target(target: &Target) -> String {
    let subset = target.subset.as_ref().map(|subset| format!("/{subset}")).unwrap_or_default();
    format!("{}.{}:{}{subset}", target.service.name, target.service.key.namespace, target.port)
}

/// What becomes of a request, in one line.
pub(crate) fn describe(decision: &RouteDecision) -> String {
    let mut text = match &decision.rule {
        Some(rule) => format!("{}: ", rule.rule),
        None => "-: ".to_owned(),
    };
    if let Some(delay) = decision.delay {
        text += &format!("after {delay:?} ");
    }
    match &decision.action {
        Action::Forward(forward) => {
            text += &target(&forward.target);
            if let Some(path) = &forward.path {
                text += &format!(" path {path}");
            }
            if let Some(authority) = &forward.authority {
                text += &format!(" host {}", authority.to_str().unwrap());
            }
            for mirror in &forward.mirrors {
                text += &format!(" copy {}", target(mirror));
            }
            if let Some(timeout) = decision.timeout() {
                text += &format!(" within {timeout:?}");
            }
        }
        Action::Redirect { status, location } => text += &format!("{status} {location}"),
        Action::Respond(response) => text += &format!("{} {:?}", response.status, response.body),
        Action::Preflight(headers) => text += &format!("preflight {}", headers.len()),
        Action::Abort(Abort::Http(status)) => text += &format!("abort {status}"),
        Action::Abort(Abort::Grpc(status)) => text += &format!("abort grpc {status}"),
        Action::Unroutable(why) => text += &format!("{} {}", why.status(), why.flag()),
    }
    text
}

/// What becomes of a request of the mesh with these rules for the cart.
fn ask(http: &str, line: &str, headers: &[(&str, &str)]) -> String {
    let snapshot = with(&rules(http));
    assert_eq!(findings(&snapshot), [""; 0], "{http}");
    describe(&decide(&snapshot, line, headers, 1))
}

/// The headers of a request, after what its route does to them.
fn request_headers(snapshot: &Snapshot, line: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let decision = decide(snapshot, line, headers, 1);
    let mut map = header_map(headers);
    decision.apply_to_request(&mut map, &Variables::default());
    lines(&map)
}

pub(crate) fn lines(map: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
    lines
}
