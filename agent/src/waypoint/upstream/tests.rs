//! Clusters made of YAML, and real servers on loopback.

mod changes;
mod choosing;
mod limits;
mod outliers;
mod protocols;
mod reuse;
mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use culvert_core::mesh::{Change, Mesh};
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;
use crate::ca::testing::{Root, ScriptedCa};
use crate::identity::{StoreOptions, SystemClock};
use crate::telemetry::AccessLog;
use crate::waypoint::body::Body;

/// Bounds every test: a hang is a failure.
const LIMIT: Duration = Duration::from_secs(20);

/// The same by a clock that a test puts forward.
const DAY: Duration = Duration::from_secs(86_400);

fn run<T>(test: impl Future<Output = T>) -> T {
    run_within(LIMIT, test)
}

fn run_within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") })
}

/// Puts the clock forward.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// A mesh, the waypoint's view of it, and its metrics.
struct Scene {
    mesh: Mutex<Mesh>,
    view: Arc<ArcSwap<Snapshot>>,
    upstreams: Upstreams,
    telemetry: Telemetry,
    certificates: CertificateStore,
}

impl Scene {
    async fn new(yaml: &str) -> Self {
        let ca = ScriptedCa::new(&Root::new("root"), Arc::new(SystemClock));
        let certificates = CertificateStore::new(ca, StoreOptions::default());
        let identity = Identity::new("cluster.local", "shop", "waypoint");
        certificates.fetch(&identity).await.unwrap();
        let mut mesh = Mesh::new();
        mesh.apply(objects(WAYPOINT));
        mesh.apply(objects(yaml));
        let snapshot = mesh.snapshot();
        let own = snapshot.pod("shop", "waypoint").unwrap().clone();
        let view = Arc::new(ArcSwap::new(snapshot));
        let telemetry = Telemetry::new(AccessLog::off());
        let upstreams = Upstreams::new(Setup {
            mesh: view.clone(),
            own,
            identity: &identity,
            certificates: &certificates,
            workers: &Workers::here(),
            buffers: Buffers::new(usize::MAX),
            telemetry: &telemetry,
        });
        Self { mesh: Mutex::new(mesh), view, upstreams, telemetry, certificates }
    }

    /// Puts objects into the mesh.
    fn apply(&self, yaml: &str) {
        let mut mesh = self.mesh.lock().unwrap();
        mesh.apply(objects(yaml));
        self.view.store(mesh.snapshot());
    }

    fn target(&self, subset: Option<&str>) -> Target {
        let snapshot = self.view.load_full();
        let service = snapshot.services_by_hostname(HOST).next().expect("the service").clone();
        Target { service, port: 80, subset: subset.map(Into::into) }
    }

    fn cluster(&self) -> Arc<Cluster> {
        self.upstreams.cluster(&self.view.load(), &self.target(None))
    }

    fn select(&self) -> Result<Lease, Refused> {
        self.cluster().select(client(), Version::HTTP_11)
    }

    /// The text of a GET's answer, or why there is none.
    async fn get(&self) -> Result<String, SendError> {
        let response = self.select().unwrap().send(get("/")).await?;
        assert_eq!(response.status(), 200);
        Ok(text(response).await)
    }

    /// The value of a metric of the cluster.
    fn metric(&self, name: &str) -> u64 {
        let text = self.telemetry.encode().unwrap();
        let cluster = format!("{{cluster_name=\"outbound|80||{HOST}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(&*cluster));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until it has that value.
    async fn until(&self, name: &str, value: u64) {
        let reached = async {
            while self.metric(name) != value {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), reached).await;
        assert!(waited.is_ok(), "{name} is {} rather than {value}", self.metric(name));
    }
}

const HOST: &str = "cart.example";

const WAYPOINT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: waypoint, namespace: shop}\n\
    spec: {nodeName: n, serviceAccountName: waypoint, containers: [{name: c}]}\n\
    status: {phase: Running, podIPs: [{ip: 10.9.9.9}], conditions: [{type: Ready, status: 'True'}]}\n";

fn objects(yaml: &str) -> Vec<Change> {
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    assert_eq!(parsed.mistakes, [], "{yaml}");
    parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)).collect()
}

/// A ServiceEntry of these endpoints, whose port speaks `protocol`.
fn service(protocol: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|at| format!("{{address: {}, ports: {{web: {}}}, labels: {{port: p{}}}}}", at.ip(), at.port(), at.port()))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: cart, namespace: shop}}\n\
         spec:\n  hosts: [{HOST}]\n  addresses: [240.0.0.1]\n  resolution: STATIC\n\
         \x20 ports: [{{number: 80, name: web, protocol: {protocol}}}]\n  endpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// A DestinationRule of this policy, in YAML's flow style.
fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{host: {HOST}, trafficPolicy: {policy}}}\n"
    )
}

fn both(service: String, rule: String) -> String {
    service + "---\n" + &rule
}

fn client() -> Selection<'static> {
    Selection::first("10.1.1.1:4000".parse().unwrap(), "240.0.0.1:80".parse().unwrap(), None)
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", HOST).body(Body::empty()).unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A server of HTTP on loopback.
struct Server {
    at: SocketAddr,
    /// Connections so far.
    connections: Arc<AtomicUsize>,
    /// Requests so far.
    requests: Arc<AtomicUsize>,
    /// Answers wait for these, where the path is `/wait`.
    gate: Arc<Semaphore>,
    /// What has been asked for, as it came.
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    open: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl Server {
    /// One that answers GET with its port; `/status/N` with that status, `/close` with the last answer of the
    /// connection, `/grpc/N` with that status of gRPC in trailers.
    async fn start(http2: bool) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), http2).await
    }

    async fn start_at(at: SocketAddr, http2: bool) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        Self::serve(listener, http2, 100)
    }

    /// Takes so many requests of a connection at a time.
    fn serve(listener: TcpListener, http2: bool, streams: u32) -> Self {
        let at = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (gate, heads) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Vec<_>>>::default());
        let open = Arc::<Mutex<Vec<_>>>::default();
        let counts = (connections.clone(), requests.clone(), gate.clone(), heads.clone(), open.clone());
        tokio::spawn(async move {
            let (connections, requests, gate, heads, open) = counts;
            while let Ok((io, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, gate, heads) = (requests.clone(), gate.clone(), heads.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    let (gate, heads) = (gate.clone(), heads.clone());
                    requests.fetch_add(1, Ordering::SeqCst);
                    async move { Ok::<_, Infallible>(answer(request, at, &gate, &heads).await) }
                });
                let io = TokioIo::new(io);
                let task = match http2 {
                    false => tokio::spawn(async move {
                        let serving = hyper::server::conn::http1::Builder::new().serve_connection(io, answer);
                        let _ = serving.with_upgrades().await;
                    }),
                    true => tokio::spawn(async move {
                        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.max_concurrent_streams(streams).serve_connection(io, answer).await;
                    }),
                };
                open.lock().unwrap().push(task.abort_handle());
            }
        });
        Self { at, connections, requests, gate, heads, open }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Ends every connection there is.
    fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    async fn until_requests(&self, count: usize) {
        while self.requests() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, hyper::Error>>;

async fn answer(
    request: Request<Incoming>,
    at: SocketAddr,
    gate: &Semaphore,
    heads: &Mutex<Vec<http::request::Parts>>,
) -> Answer {
    let full = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
    let (head, body) = request.into_parts();
    heads.lock().unwrap().push(head.clone());
    let path = head.uri.path().to_owned();
    if path == "/wait" {
        gate.acquire().await.unwrap().forget();
    }
    if let Some(status) = path.strip_prefix("/status/") {
        return Response::builder().status(status).body(full("".into())).unwrap();
    }
    if let Some(status) = path.strip_prefix("/grpc/") {
        let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        let body = Full::new(Bytes::from_static(b"message")).with_trailers(async { Some(Ok(trailers)) });
        let body = body.map_err(|never: Infallible| match never {}).boxed();
        return Response::builder().header("content-type", "application/grpc").body(body).unwrap();
    }
    if path == "/echo" {
        return Response::new(body.boxed());
    }
    let response = Response::builder();
    let response = if path == "/close" { response.header("connection", "close") } else { response };
    response.body(full(at.port().to_string().into())).unwrap()
}

/// A loopback address that nobody else binds.
fn own_loopback() -> IpAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let next = NEXT.fetch_add(1, Ordering::SeqCst) as u32;
    let process = std::process::id();
    std::net::Ipv4Addr::new(127, 64 + (process >> 8) as u8 % 128, process as u8, next as u8).into()
}
