//! Clients at one end, servers on loopback at the other, and between them the whole of a waypoint but for its tunnels.

mod backend;
mod grpc;
mod malformed;
mod messages;
mod resilience;
mod routes;
mod telemetry;
mod upgrades;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use culvert_core::identity::Identity;
use culvert_core::mesh::{Change, Mesh, Snapshot};
use culvert_core::waypoint::SessionTarget;
use culvert_core::workload::NamespacedName;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;
use tracing::Level;

use super::*;
use crate::ca::testing::{Root, ScriptedCa};
use crate::identity::{CertificateStore, StoreOptions, SystemClock};
use crate::telemetry::logging::LogFormat;
use crate::telemetry::tests::Written;
use crate::telemetry::{AccessLog, Telemetry};
use crate::waypoint::place::Own;
use crate::waypoint::session::Arrival;
use crate::waypoint::shared::Shared;
use crate::workers::Workers;

use self::backend::Backend;

/// Bounds every test: a hang is a failure.
const LIMIT: Duration = Duration::from_secs(20);
const HOST: &str = "cart.example";

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") })
}

/// A waypoint, and the mesh that it knows.
struct Scene {
    mesh: Mutex<Mesh>,
    view: Arc<ArcSwap<Snapshot>>,
    shared: Arc<Shared>,
    draining: watch::Sender<bool>,
    /// The access log.
    log: Written,
}

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: way, namespace: shop}
spec: {nodeName: n, serviceAccountName: way, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.9.9.9}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n, serviceAccountName: web, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.1.1.1}], conditions: [{type: Ready, status: 'True'}]}
";

impl Scene {
    async fn new(yaml: &str) -> Self {
        let ca = ScriptedCa::new(&Root::new("root"), Arc::new(SystemClock));
        let certificates = CertificateStore::new(ca, StoreOptions::default());
        let identity = Arc::new(Identity::new("cluster.local", "shop", "way"));
        certificates.fetch(&identity).await.unwrap();
        let mut mesh = Mesh::new();
        mesh.apply(objects(WAYPOINT));
        mesh.apply(objects(yaml));
        let snapshot = mesh.snapshot();
        let workload = snapshot.pod("shop", "way").unwrap().clone();
        let own = Own { gateway: NamespacedName::new("shop", "way"), workload, identity };
        let view = Arc::new(ArcSwap::new(snapshot));
        let draining = watch::Sender::new(false);
        let log = Written::default();
        let telemetry = Telemetry::new(AccessLog::to(LogFormat::Text, |level| level < Level::DEBUG, log.clone()));
        let shared = Shared::new(own, view.clone(), certificates, telemetry, Workers::here(), draining.subscribe());
        Self { mesh: Mutex::new(mesh), view, shared, draining, log }
    }

    /// One with this service and this VirtualService of its.
    async fn with(backends: &[&Backend], http: &str) -> Self {
        Self::new(&format!("{}---\n{}", service(backends, "HTTP"), rules(http))).await
    }

    /// Puts objects into the mesh.
    fn apply(&self, yaml: &str) {
        let mut mesh = self.mesh.lock().unwrap();
        mesh.apply(objects(yaml));
        self.view.store(mesh.snapshot());
    }

    /// A client's stream to the service, served.
    fn stream(&self, version: HttpVersion) -> DuplexStream {
        let snapshot = self.view.load_full();
        let service = snapshot.services_by_hostname(HOST).next().expect("the service").clone();
        let arrival = Arrival {
            principal: Arc::new(Identity::new("cluster.local", "shop", "web")),
            client_address: "10.1.1.1:4000".parse().unwrap(),
            destination: "240.0.0.1:80".parse().unwrap(),
            target: SessionTarget::Service(service, 80),
        };
        let session = Session::new(self.shared.clone(), &snapshot, arrival, self.shared.enter().unwrap());
        let (client, server) = tokio::io::duplex(256 << 10);
        tokio::spawn(serve(session, server, version));
        client
    }

    /// What comes back for these bytes, until the end.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.stream(HttpVersion::Http1);
        stream.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn client(&self) -> http1::SendRequest<Full<Bytes>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.stream(HttpVersion::Http1))).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn client_2(&self) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.stream(HttpVersion::Http2));
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// The answer to a request over a connection of its own.
    async fn ask(&self, request: Request<Full<Bytes>>) -> Answered {
        Answered::of(self.client().await.send_request(request).await.unwrap()).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask(get(path)).await
    }

    /// The lines of the metric, with only these labels.
    fn metric(&self, name: &str, labels: &[&str]) -> Vec<String> {
        let text = self.shared.telemetry.encode().unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        lines
            .map(|line| {
                let (all, value) = line.split_once("} ").unwrap();
                let value_of = |label: &&str| {
                    let start = all.find(&format!("{label}=\"")).unwrap() + label.len() + 2;
                    all[start..].split('"').next().unwrap().to_owned()
                };
                let picked: Vec<_> = labels.iter().map(value_of).chain([value.to_owned()]).collect();
                picked.join(" ")
            })
            .collect()
    }
}

/// An answer, all of it.
#[derive(Debug)]
struct Answered {
    head: http::response::Parts,
    body: String,
    trailers: Option<http::HeaderMap>,
}

impl Answered {
    async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let whole = body.collect().await.unwrap();
        let trailers = whole.trailers().cloned();
        Self { head, body: String::from_utf8(whole.to_bytes().to_vec()).unwrap(), trailers }
    }

    fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The status and the body.
    fn told(&self) -> (u16, &str) {
        (self.status(), &self.body)
    }
}

fn objects(yaml: &str) -> Vec<Change> {
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    assert_eq!(parsed.mistakes, [], "{yaml}");
    parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)).collect()
}

/// A ServiceEntry whose endpoints are these, each with its port as a label.
fn service(backends: &[&Backend], protocol: &str) -> String {
    service_named("cart", HOST, "240.0.0.1", backends, protocol)
}

fn service_named(name: &str, host: &str, address: &str, backends: &[&Backend], protocol: &str) -> String {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|backend| {
            let port = backend.at.port();
            format!("{{address: 127.0.0.1, ports: {{web: {port}}}, labels: {{port: p{port}}}}}")
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: way}}}}\n\
         spec:\n  hosts: [{host}]\n  addresses: [{address}]\n  resolution: STATIC\n\
         \x20 ports: [{{number: 80, name: web, protocol: {protocol}}}]\n  endpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// A VirtualService of the service with these rules.
fn rules(http: &str) -> String {
    let http: String = http.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\n\
         spec:\n  hosts: [{HOST}]\n  http:\n{http}"
    )
}

/// A DestinationRule of the service.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{host: {HOST}, {spec}}}\n"
    )
}

/// Everything to the service.
const PLAIN: &str = "- route: [{destination: {host: cart.example}}]";

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", HOST).body(Full::default()).unwrap()
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", HOST).body(Full::new(body.into())).unwrap()
}

fn with(mut request: Request<Full<Bytes>>, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}
