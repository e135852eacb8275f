//! What an ADD comes to while the watch lags behind the API server.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use culvert_api::{Kind, Object};
use culvert_core::mesh::{Change, Mesh};
use http::{Request as HttpRequest, Response};
use kube::client::Body;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::super::Context;
use super::*;
use crate::charge::Turn;
use crate::cluster::Cluster;
use crate::cni::sandboxes::Records;
use crate::enrolment::{Pods, States};
use crate::files::testing::TempDir;
use crate::source::kube::Ahead;

const NETNS: &str = "/proc/self/ns/net";

fn namespace(mode: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "shop", "labels": { "istio.io/dataplane-mode": mode.unwrap_or("none") } },
    })
}

fn pod_object() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "cart", "namespace": "shop", "uid": "u1" },
        "spec": { "nodeName": "n1", "containers": [] }, "status": { "phase": "Pending" },
    })
}

fn upsert(value: Value) -> Change {
    Change::Upsert(Object::from_value(value).unwrap().0)
}

/// An agent whose watch knows the namespace without its label and does not know the pod.
struct World {
    shared: Shared,
    states: States,
    /// What the watch brings.
    watch: mpsc::Sender<Vec<Change>>,
    _directory: TempDir,
    _turn: watch::Sender<Turn>,
}

impl World {
    /// The API server says `mode` of the namespace.
    fn new(mode: Option<&'static str>) -> Self {
        Self::answered_by(move |path| {
            let object = if path.ends_with("/pods/cart") { pod_object() } else { namespace(mode) };
            Response::new(Body::from(object.to_string().into_bytes()))
        })
    }

    fn answered_by(answer: impl Fn(&str) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let answer = answer(request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let cluster = Cluster::of_client(kube::Client::new(service, "default"));
        let mut mesh = Mesh::new().for_node("n1");
        mesh.apply([upsert(namespace(None))]);
        let (to_snapshots, snapshots) = watch::channel(mesh.snapshot());
        let (tell, mut told) = mpsc::channel(8);
        let (ahead, mut found) = Ahead::new();
        let (watch, mut watched) = mpsc::channel::<Vec<Change>>(8);
        tokio::spawn(async move {
            loop {
                let (mut changes, mut waiting) = (Vec::new(), None);
                tokio::select! {
                    Some(Told { pod, sandbox, seen }) = told.recv() => {
                        mesh.set_sandbox(pod, sandbox);
                        waiting = seen;
                    }
                    // As the watch knows the namespace already, only the pod is news.
                    Some(found) = found.recv() => {
                        changes.extend((found.kind() == Kind::Pod).then(|| upsert(pod_object())));
                    }
                    Some(brought) = watched.recv() => changes = brought,
                    else => return,
                }
                mesh.apply(changes);
                to_snapshots.send_replace(mesh.snapshot());
                if let Some(seen) = waiting {
                    let _ = seen.send(());
                }
            }
        });
        let directory = TempDir::new();
        let (turn, turns) = watch::channel(Turn { is_ours: true, taken: 1 });
        let states = States::default();
        let context = Context {
            rules: Arc::default(),
            state_dir: directory.path().to_owned(),
            snapshots,
            states: states.clone(),
            mesh: tell,
            pods: Some((Pods::new(cluster), ahead)),
            turns,
        };
        let shared = Shared {
            records: Records::new(&context.state_dir),
            context,
            current: Mutex::new(HashMap::new()),
            requests: Family::default(),
        };
        Self { shared, states, watch, _directory: directory, _turn: turn }
    }

    async fn add(&self) -> Answer {
        let attachment = Attachment {
            container_id: "c1".to_owned(),
            netns: Some(NETNS.to_owned()),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: Some("u1".to_owned()),
            addresses: vec!["10.0.0.9".parse().unwrap()],
        };
        self.shared.answer(Request { version: VERSION, command: Command::Add(attachment) }).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_label_that_the_watch_has_not_brought_lets_no_pod_start_in_clear() {
    let world = World::new(Some("ambient"));
    let started = Instant::now();
    let Answer::Refused { reason } = world.add().await else { panic!("it may start") };
    assert!(started.elapsed() >= ADD && reason.contains("labels"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn the_pod_is_taken_in_once_the_watch_brings_the_label() {
    let world = World::new(Some("ambient"));
    world.states.set("u1", &NamespacedName::new("shop", "cart"), PodState::Enrolled, Some(NETNS.into()));
    let watch = world.watch.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        watch.send(vec![upsert(namespace(Some("ambient")))]).await.unwrap();
    });
    assert_eq!(world.add().await, Answer::Enrolled);
}

/// The pods' watch is ahead of the namespaces'.
#[tokio::test(start_paused = true)]
async fn a_pod_that_came_before_the_label_of_its_namespace_does_not_start_in_clear() {
    let world = World::new(Some("ambient"));
    world.watch.send(vec![upsert(pod_object())]).await.unwrap();
    // The clock stands until it has been taken in.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let Answer::Refused { reason } = world.add().await else { panic!("it may start") };
    assert!(reason.contains("labels"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_outside_starts_while_the_api_server_is_away() {
    let world = World::answered_by(|_| {
        let mut answer = Response::new(Body::from(b"{}".to_vec()));
        *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        answer
    });
    world.watch.send(vec![upsert(pod_object())]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(matches!(world.add().await, Answer::NotInMesh { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_api_server_has_outside_starts() {
    let world = World::new(None);
    assert!(matches!(world.add().await, Answer::NotInMesh { .. }));
}
