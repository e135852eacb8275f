//! A CA service on the loopback, behind which an API server is imitated that knows some tokens and pods.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use culvert_core::authentication::base64url;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::super::issuer::Issuer;
use super::super::keys::{GENERATED, Keys, PLUGGED_IN, secret};
use super::super::listener::{self, OwnCertificate};
use super::super::metrics::Metrics;
use super::super::options::Options;
use super::super::placement::Placement;
use crate::ca::testing::TempDir;
use crate::ca::{Asker, ServiceCa, ServiceOptions};
use crate::identity::SystemClock;

pub(super) const NODE_AGENT: &str = "system:serviceaccount:culvert-system:culvert-node";

/// A token of this name, as it looks before anyone has verified it.
pub(super) fn jwt(name: &str) -> String {
    let claims = json!({"jti": name, "aud": ["istio-ca"], "sub": "system:serviceaccount:some:body"}).to_string();
    format!("e30.{}.c2ln", base64url::encode(claims.as_bytes()))
}

/// An API server that answers token reviews, and gives and lists pods.
#[derive(Clone, Default)]
pub(super) struct Cluster(Arc<Known>);

#[derive(Default)]
struct Known {
    /// What is said of each token.
    tokens: Mutex<HashMap<String, Value>>,
    pods: Mutex<Vec<Value>>,
    looks: AtomicUsize,
    reviews: AtomicUsize,
    away: Mutex<bool>,
    pause: Mutex<Duration>,
}

impl Cluster {
    pub(super) fn client(&self) -> kube::Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Accepts the token named `token` for `audiences` as `username`, bound to a pod if one is given.
    pub(super) fn accept(&self, token: &str, username: &str, audiences: &[&str], pod: Option<(&str, &str)>) {
        let mut extra = json!({});
        if let Some((name, uid)) = pod {
            extra["authentication.kubernetes.io/pod-name"] = json!([name]);
            extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
        }
        let user = json!({"username": username, "extra": extra});
        let status = json!({"authenticated": true, "audiences": audiences, "user": user});
        self.0.tokens.lock().unwrap().insert(jwt(token), status);
    }

    /// How many tokens were reviewed.
    pub(super) fn reviews(&self) -> usize {
        self.0.reviews.load(Ordering::SeqCst)
    }

    /// Takes this long for each answer from now on.
    pub(super) fn be_slow(&self, pause: Duration) {
        *self.0.pause.lock().unwrap() = pause;
    }

    pub(super) fn pod(&self, namespace: &str, name: &str, uid: &str, node: &str, account: &str, phase: &str) {
        self.0.pods.lock().unwrap().push(json!({
            "metadata": {"namespace": namespace, "name": name, "uid": uid},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
            "status": {"phase": phase},
        }));
    }

    /// How often pods were looked at directly.
    pub(super) fn looks(&self) -> usize {
        self.0.looks.load(Ordering::SeqCst)
    }

    pub(super) fn go_away(&self) {
        *self.0.away.lock().unwrap() = true;
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if *self.0.away.lock().unwrap() {
            return failure(StatusCode::SERVICE_UNAVAILABLE);
        }
        let pause = *self.0.pause.lock().unwrap();
        tokio::time::sleep(pause).await;
        let path: Vec<&str> = head.uri.path().trim_start_matches('/').split('/').collect();
        match (head.method, path.as_slice()) {
            (Method::POST, ["apis", "authentication.k8s.io", "v1", "tokenreviews"]) => {
                let mut review: Value = serde_json::from_slice(&body).unwrap();
                self.0.reviews.fetch_add(1, Ordering::SeqCst);
                assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
                let token = review["spec"]["token"].as_str().unwrap().to_owned();
                let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
                review["status"] = self.0.tokens.lock().unwrap().get(&token).cloned().unwrap_or(unknown);
                answer(&review)
            }
            (Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
                self.0.looks.fetch_add(1, Ordering::SeqCst);
                let query = head.uri.query().unwrap_or_default();
                let pods = self.0.pods.lock().unwrap();
                let there = pods.iter().filter(|pod| {
                    let node = pod["spec"]["nodeName"].as_str().unwrap();
                    pod["metadata"]["namespace"] == **namespace
                        && query.contains(&format!("fieldSelector=spec.nodeName%3D{node}&"))
                });
                answer(&json!({"metadata": {}, "items": there.collect::<Vec<_>>()}))
            }
            (Method::GET, ["api", "v1", "namespaces", namespace, "pods", name]) => {
                let pods = self.0.pods.lock().unwrap();
                let is_it =
                    |pod: &&Value| pod["metadata"]["namespace"] == **namespace && pod["metadata"]["name"] == **name;
                pods.iter().find(is_it).map_or_else(|| failure(StatusCode::NOT_FOUND), answer)
            }
            (method, path) => panic!("nobody should ask for {method} {path:?}"),
        }
    }
}

fn answer(body: &Value) -> Response<Body> {
    Response::new(serde_json::to_vec(body).unwrap().into())
}

fn failure(code: StatusCode) -> Response<Body> {
    let text = json!({"status": "Failure", "code": code.as_u16(), "message": "", "reason": code.canonical_reason().unwrap().replace(' ', "")}).to_string();
    Response::builder().status(code).body(text.into_bytes().into()).unwrap()
}

/// A running CA service.
pub(super) struct CaService {
    pub(super) cluster: Cluster,
    pub(super) issuer: Issuer,
    pub(super) metrics: Metrics,
    pub(super) keys: Keys,
    pub(super) port: u16,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for CaService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl CaService {
    /// A service with a root of its own, on node n1 of whose cluster `shop/cart` and the node agent run.
    pub(super) async fn start() -> Self {
        Self::start_with(secret::generate(SystemTime::now()).unwrap()).await
    }

    pub(super) async fn start_with(root: Secret) -> Self {
        let cluster = Cluster::default();
        cluster.accept("agent", NODE_AGENT, &["istio-ca"], Some(("agent-1", "u1")));
        cluster.pod("culvert-system", "agent-1", "u1", "n1", "culvert-node", "Running");
        cluster.pod("shop", "cart-1", "c1", "n1", "cart", "Pending");
        cluster.pod("shop", "web-1", "w1", "n2", "web", "Running");
        cluster.pod("shop", "job-1", "j1", "n1", "job", "Succeeded");
        let client = cluster.client();
        let clock = Arc::new(SystemClock);
        let keys = Keys::new(client.clone(), "culvert-system", clock.clone());
        keys.see(PLUGGED_IN, None);
        keys.see(GENERATED, Some(Arc::new(root)));
        let options = Options::new(client.clone());
        options.use_defaults();
        let metrics = Metrics::default();
        let trusted = ["culvert-system/culvert-node".to_owned()].into();
        let placement = Placement::new(client.clone());
        let issuer = Issuer::new(client, keys.clone(), options, placement, trusted, metrics.clone(), clock.clone());
        let own = OwnCertificate::new(vec!["localhost".to_owned()]);
        tokio::spawn(own.clone().renew(keys.clone(), clock.clone()));
        while !own.is_ready() {
            tokio::task::yield_now().await;
        }
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let serving = {
            let issuer = issuer.clone();
            tokio::spawn(async move {
                listener::serve(socket, issuer, own, clock, std::future::pending()).await.unwrap();
            })
        };
        Self { cluster, issuer, metrics, keys, port, serving }
    }

    /// Puts `secret` in the place of the one it signs with.
    pub(super) fn replace(&self, secret: Secret) {
        self.keys.see(GENERATED, Some(Arc::new(secret)));
    }

    /// A node agent's client of it, with its files in `directory`.
    pub(super) fn client(&self, directory: &TempDir) -> Arc<ServiceCa> {
        self.give(directory);
        directory.write("token", &format!("{}\n", jwt("agent")));
        ServiceCa::open(options(directory, &format!("localhost:{}", self.port))).unwrap()
    }

    /// Writes the roots that it hands out to where an agent reads them.
    pub(super) fn give(&self, directory: &TempDir) {
        directory.write("root-cert.pem", &self.keys.current().unwrap().roots);
    }
}

pub(super) fn options(directory: &TempDir, address: &str) -> ServiceOptions {
    ServiceOptions {
        address: address.to_owned(),
        root_file: directory.path().join("root-cert.pem"),
        crl_file: directory.path().join("ca-crl.pem"),
        token_file: directory.path().join("token"),
        asker: Asker::Node,
        clock: Arc::new(SystemClock),
    }
}
