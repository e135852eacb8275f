//! Delivers what is to be said, in its own time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use culvert_api::k8s_openapi::api::core::v1::Pod;
use culvert_api::k8s_openapi::api::events::v1::Event;
use culvert_api::names::annotation;
use culvert_core::workload::NamespacedName;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::events::{self, Filter};
use super::{Said, Saying};
use crate::cluster::{Cluster, explain};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// The pause after a first failure, doubled with each further one, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LAST: Duration = Duration::from_secs(60);
/// How many Events wait for the API server to come back.
const MAX_EVENTS: usize = 256;
/// How many failures of the API server end a round: it does not seem to be a matter of single objects.
const MAX_FAILED: usize = 8;
/// How often a refusal that does not change is logged.
const REMIND: Duration = Duration::from_secs(600);

/// One pod of the node.
#[derive(Debug, Default)]
struct Known {
    pod: Option<NamespacedName>,
    /// What the annotation should be; unknown for a pod of which only an earlier agent has spoken.
    wanted: Option<Option<&'static str>>,
    /// What it is, as far as it is known.
    written: Option<String>,
    /// Whether the API server failed at it the last time: then others come first.
    failed: bool,
}

impl Known {
    fn is_due(&self) -> bool {
        self.pod.is_some() && self.wanted.is_some_and(|wanted| wanted != self.written.as_deref())
    }
}

/// Why something could not be delivered.
enum Undelivered {
    /// The API server is away, or busy: try again.
    Later(String),
    /// It answered that it failed, at this object perhaps, as by a webhook that does not work: try again, but go on with
    /// the others.
    Failed(String),
    /// The pod is gone: nobody is to be told.
    Gone,
    /// It says no: trying again is of no use until something changes.
    Never(String),
}

struct Worker {
    cluster: Cluster,
    node: String,
    pods: HashMap<String, Known>,
    /// Who belongs to the mesh, as enrolment saw it first.
    wanted: Option<HashSet<String>>,
    /// Who waits for everything to be unsaid.
    farewell: Option<oneshot::Sender<()>>,
    events: VecDeque<Event>,
    filter: Filter,
    reminded: HashMap<String, Instant>,
}

/// Takes in `sayings` and delivers them until their senders are gone.
pub(super) async fn run(cluster: Cluster, node: String, mut sayings: mpsc::Receiver<Saying>) {
    let filter = Filter::new(Instant::now());
    let mut worker = Worker {
        cluster,
        node,
        pods: HashMap::new(),
        wanted: None,
        farewell: None,
        events: VecDeque::new(),
        filter,
        reminded: HashMap::new(),
    };
    let mut is_seeded = false;
    let mut pause = PAUSE_FIRST;
    loop {
        // First what is there, so that only changes are written.
        let result = if is_seeded { worker.deliver().await } else { worker.seed().await.map(|()| is_seeded = true) };
        let wait = match result {
            Ok(()) => {
                pause = PAUSE_FIRST;
                None
            }
            Err(why) => {
                worker.remind(&why);
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                pause = (pause * 2).min(PAUSE_LAST);
                Some(Instant::now() + jittered)
            }
        };
        let idle = wait.is_none() && !worker.has_work();
        match wait {
            _ if idle => match sayings.recv().await {
                Some(saying) => worker.take(saying),
                None => return,
            },
            Some(until) => loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    saying = sayings.recv() => match saying {
                        Some(saying) => worker.take(saying),
                        None => return,
                    },
                }
            },
            None => {}
        }
        while let Ok(saying) = sayings.try_recv() {
            worker.take(saying);
        }
    }
}

impl Worker {
    fn take(&mut self, saying: Saying) {
        let (uid, pod, said) = match saying {
            Saying::Of { uid, pod, said } => (uid, pod, said),
            Saying::Wanted(uids) => {
                self.wanted = Some(uids);
                return self.settle();
            }
            Saying::Farewell(done) => {
                for known in self.pods.values_mut() {
                    known.wanted = Some(None);
                }
                self.events.clear();
                self.farewell = Some(done);
                return;
            }
        };
        let known = self.pods.entry(uid.clone()).or_default();
        if pod.is_some() {
            known.pod = pod;
        }
        known.wanted = Some(said.annotation());
        let Some(pod) = known.pod.clone() else {
            self.pods.remove(&uid);
            return;
        };
        // Nobody was told that it is in: nobody needs to be told that it is out.
        let is_news = said != Said::Left || known.written.is_some();
        let now = Instant::now();
        if is_news && self.filter.admits(&uid, &said, now) && self.events.len() < MAX_EVENTS {
            self.events.push_back(events::event(&uid, &pod, &said, &self.node));
        }
        self.filter.forget_old(now);
    }

    /// Has the annotation removed from pods that left the mesh while no agent ran.
    fn settle(&mut self) {
        let Some(wanted) = &self.wanted else { return };
        for (uid, known) in &mut self.pods {
            if known.wanted.is_none() && !wanted.contains(uid) {
                known.wanted = Some(None);
            }
        }
    }

    fn has_work(&self) -> bool {
        self.farewell.is_some() || !self.events.is_empty() || self.pods.values().any(Known::is_due)
    }

    /// Learns which annotations the pods of the node have.
    async fn seed(&mut self) -> Result<(), String> {
        let pods: Api<Pod> = Api::all(self.cluster.client());
        let mut params = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(500);
        loop {
            let list = match in_time(pods.list_metadata(&params)).await {
                Ok(list) => list,
                Err(error) => {
                    return match classify(error, "list", "pods") {
                        Undelivered::Later(why) | Undelivered::Failed(why) => Err(why),
                        // Then each pod's is written, whether it changes or not.
                        Undelivered::Gone => Ok(()),
                        Undelivered::Never(why) => {
                            self.remind(&why);
                            Ok(())
                        }
                    };
                }
            };
            for pod in list.items {
                let (Some(uid), Some(name)) = (pod.metadata.uid, pod.metadata.name) else { continue };
                let value = pod.metadata.annotations.and_then(|mut all| all.remove(annotation::REDIRECTION));
                let known = self.pods.entry(uid).or_default();
                known.written = value;
                let namespace = pod.metadata.namespace.unwrap_or_default();
                known.pod.get_or_insert_with(|| NamespacedName::new(namespace, name));
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        self.pods.retain(|_, known| known.wanted.is_some() || known.written.is_some());
        self.settle();
        Ok(())
    }

    /// Writes what is due, one after another, until the API server is away.
    async fn deliver(&mut self) -> Result<(), String> {
        let mut due: Vec<(bool, String)> = self
            .pods
            .iter()
            .filter(|(_, known)| known.is_due())
            .map(|(uid, known)| (known.failed, uid.clone()))
            .collect();
        due.sort_unstable();
        let mut failures = Vec::new();
        for (_, uid) in due {
            if failures.len() == MAX_FAILED {
                break;
            }
            let Some(known) = self.pods.get(&uid) else { continue };
            let (Some(pod), Some(wanted)) = (known.pod.clone(), known.wanted) else { continue };
            match self.annotate(&uid, &pod, wanted).await {
                Ok(()) => self.written(&uid, wanted),
                Err(Undelivered::Later(why)) => return Err(why),
                Err(Undelivered::Failed(why)) => {
                    if let Some(known) = self.pods.get_mut(&uid) {
                        known.failed = true;
                    }
                    failures.push(why);
                }
                Err(Undelivered::Gone) => {
                    self.pods.remove(&uid);
                }
                Err(Undelivered::Never(why)) => {
                    self.remind(&why);
                    // As if it were written: asked again when it changes.
                    self.written(&uid, wanted);
                }
            }
        }
        for _ in 0..self.events.len() {
            if failures.len() == MAX_FAILED {
                break;
            }
            let Some(event) = self.events.front() else { break };
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(self.cluster.client(), &namespace);
            let result = in_time(api.create(&PostParams::default(), event)).await;
            match result.map_err(|error| classify(error, "create", "events.events.k8s.io")) {
                Ok(_) | Err(Undelivered::Gone) => {}
                Err(Undelivered::Later(why)) => return Err(why),
                Err(Undelivered::Failed(why)) => {
                    failures.push(why);
                    self.events.rotate_left(1);
                    continue;
                }
                Err(Undelivered::Never(why)) => self.remind(&why),
            }
            self.events.pop_front();
        }
        if let Some(why) = failures.pop() {
            return Err(why);
        }
        if let Some(done) = self.farewell.take() {
            // Who has stopped waiting does not mind.
            let _ = done.send(());
        }
        Ok(())
    }

    fn written(&mut self, uid: &str, value: Option<&'static str>) {
        match (self.pods.get_mut(uid), value) {
            (Some(known), Some(value)) => {
                known.written = Some(value.to_owned());
                known.failed = false;
            }
            (Some(_), None) => {
                self.pods.remove(uid);
            }
            (None, _) => {}
        }
    }

    async fn annotate(&self, uid: &str, pod: &NamespacedName, value: Option<&str>) -> Result<(), Undelivered> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client(), &pod.namespace);
        // With the UID: a new pod of the same name is another's business.
        let patch = serde_json::json!({
            "metadata": { "uid": uid, "annotations": { annotation::REDIRECTION: value } },
        });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        in_time(pods.patch_status(&pod.name, &params, &patch))
            .await
            .map(|_| ())
            .map_err(|error| classify(error, "patch", "pods/status"))
    }

    /// Logs a refusal, but not the same one all the time.
    fn remind(&mut self, why: &str) {
        let now = Instant::now();
        self.reminded.retain(|_, at| now.duration_since(*at) < REMIND);
        if self.reminded.insert(why.to_owned(), now).is_none() {
            tracing::warn!("pods' annotations and Events are behind: {why}");
        }
    }
}

/// What a request came to.
enum Failure {
    Api(kube::Error),
    TimedOut,
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(result) => result.map_err(Failure::Api),
        Err(_) => Err(Failure::TimedOut),
    }
}

fn classify(failure: Failure, verb: &str, resource: &str) -> Undelivered {
    let error = match failure {
        Failure::Api(error) => error,
        Failure::TimedOut => {
            let seconds = REQUEST.as_secs();
            return Undelivered::Later(format!("cannot {verb} {resource}: no answer within {seconds} s"));
        }
    };
    let line = explain(&error, verb, resource);
    match &error {
        // Gone, or another of the same name: 409 is what the UID in the patch is for.
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => Undelivered::Gone,
        kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429) => {
            Undelivered::Never(line)
        }
        // 503 and 504 are of the API server as a whole, or of what is in front of it.
        kube::Error::Api(status) if (500..600).contains(&status.code) && !matches!(status.code, 503 | 504) => {
            Undelivered::Failed(line)
        }
        // It was done; what was said of it is of no interest.
        kube::Error::SerdeError(_) => Undelivered::Never(line),
        _ => Undelivered::Later(line),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// What a fake API server was asked: method, path and query, body.
    type Asked = Arc<Mutex<Vec<(String, String, serde_json::Value)>>>;

    /// An API server that answers what `answer` says.
    fn cluster(answer: impl Fn(&str, &str) -> (u16, serde_json::Value) + Send + Sync + 'static) -> (Cluster, Asked) {
        let asked = Asked::default();
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (seen, answer) = (seen.clone(), answer.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (method, path) = (parts.method.to_string(), parts.uri.to_string());
                let (status, mut value) = answer(&method, &path);
                if path.contains("/events") && status == 200 {
                    value = serde_json::json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {},
                        "eventTime": null});
                }
                let body = serde_json::from_slice(&body).unwrap_or_default();
                seen.lock().unwrap().push((method, path, body));
                let response = Response::builder().status(status).header("content-type", "application/json");
                Ok::<_, std::convert::Infallible>(response.body(Body::from(value.to_string().into_bytes())).unwrap())
            }
        });
        (Cluster::of_client(kube::Client::new(service, "default")), asked)
    }

    fn status(code: u16) -> (u16, serde_json::Value) {
        let reason = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "no", "reason": "Test", "code": code});
        (code, reason)
    }

    fn list(pods: serde_json::Value) -> (u16, serde_json::Value) {
        let list = serde_json::json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": {}, "items": pods});
        (200, list)
    }

    fn fine() -> (u16, serde_json::Value) {
        (200, serde_json::json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}))
    }

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "a")
    }

    fn patches(asked: &Asked) -> Vec<serde_json::Value> {
        let asked = asked.lock().unwrap();
        asked.iter().filter(|(method, ..)| method == "PATCH").map(|(.., body)| body.clone()).collect()
    }

    async fn said(cluster: Cluster, sayings: Vec<(&str, Said)>, wait: Duration) {
        let (sender, receiver) = mpsc::channel(16);
        let worker = tokio::spawn(run(cluster, "n1".to_owned(), receiver));
        for (uid, said) in sayings {
            sender.send(Saying::Of { uid: uid.to_owned(), pod: Some(name()), said }).await.unwrap();
            tokio::time::sleep(wait).await;
        }
        drop(sender);
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_annotation_is_written_when_it_changes_and_removed_in_the_end() {
        let (cluster, asked) = cluster(|method, _| if method == "GET" { list(serde_json::json!([])) } else { fine() });
        let sayings = [Said::Enrolled, Said::Enrolled, Said::Failed("x".to_owned()), Said::Enrolled, Said::Left];
        said(cluster, sayings.map(|said| ("u", said)).to_vec(), Duration::from_secs(1)).await;
        let values: Vec<_> = patches(&asked)
            .into_iter()
            .map(|body| body["metadata"]["annotations"][annotation::REDIRECTION].clone())
            .collect();
        assert_eq!(values, ["enabled".into(), "pending".into(), "enabled".into(), serde_json::Value::Null]);
        assert_eq!(patches(&asked)[0]["metadata"]["uid"], "u");
        let asked = asked.lock().unwrap();
        let patched = asked.iter().find(|(method, ..)| method == "PATCH").unwrap();
        assert!(patched.1.contains("/api/v1/namespaces/shop/pods/a/status"), "{}", patched.1);
        let reasons: Vec<_> =
            asked.iter().filter(|(method, ..)| method == "POST").map(|e| e.2["reason"].clone()).collect();
        assert_eq!(reasons, ["Enrolled", "EnrolmentFailed", "Enrolled", "LeftMesh"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_agent_wrote_is_neither_written_again_nor_forgotten() {
        let there = serde_json::json!([{"metadata": {"name": "a", "namespace": "shop", "uid": "u",
            "annotations": {annotation::REDIRECTION: "enabled"}}}]);
        let answer = move |method: &str, _: &str| if method == "GET" { list(there.clone()) } else { fine() };
        let (still, asked) = cluster(answer.clone());
        said(still, vec![("u", Said::Enrolled)], Duration::from_secs(1)).await;
        assert_eq!(patches(&asked).len(), 0);
        // Which pods are wanted tells who left while no agent ran, and nothing before that does.
        for (wanted, removed) in [(None, 0), (Some("u"), 0), (Some("v"), 1)] {
            let (cluster, asked) = cluster(answer.clone());
            let (sender, receiver) = mpsc::channel(16);
            let worker = tokio::spawn(run(cluster, "n1".to_owned(), receiver));
            if let Some(wanted) = wanted {
                sender.send(Saying::Wanted([wanted.to_owned()].into())).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(sender);
            worker.await.unwrap();
            assert_eq!(patches(&asked).len(), removed, "{wanted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_goes_for_good_takes_the_annotations_along() {
        let there = serde_json::json!([{"metadata": {"name": "a", "namespace": "shop", "uid": "v",
            "annotations": {annotation::REDIRECTION: "enabled"}}}]);
        let (cluster, asked) = cluster(move |method, _| if method == "GET" { list(there.clone()) } else { fine() });
        let announcer = crate::enrolment::Announcer::start(cluster, "n1".to_owned());
        announcer.say("u", Some(&name()), Said::Enrolled);
        tokio::time::sleep(Duration::from_secs(1)).await;
        announcer.farewell().await;
        let mut patches: Vec<_> = patches(&asked).iter().map(|patch| patch["metadata"].to_string()).collect();
        patches.sort();
        assert_eq!(patches.len(), 3, "{patches:?}");
        assert_eq!(patches.iter().filter(|patch| patch.contains("null")).count(), 2, "{patches:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_annotation_cannot_be_written_holds_up_no_other() {
        let (cluster, asked) = cluster(|method, path| match method {
            "GET" => list(serde_json::json!([])),
            _ if path.contains("/namespaces/broken/") => status(500),
            _ => fine(),
        });
        let (sender, receiver) = mpsc::channel(16);
        let worker = tokio::spawn(run(cluster, "n1".to_owned(), receiver));
        for n in 0..10 {
            let namespace = if n < 5 { "broken" } else { "shop" };
            let pod = Some(NamespacedName::new(namespace, format!("p{n}")));
            sender.send(Saying::Of { uid: n.to_string(), pod, said: Said::Enrolled }).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        drop(sender);
        worker.await.unwrap();
        let asked = asked.lock().unwrap();
        let sent = |method: &str, namespace: &str| {
            asked.iter().filter(|(m, path, _)| m == method && path.contains(namespace)).count()
        };
        assert_eq!((sent("PATCH", "/shop/"), sent("POST", "/shop/")), (5, 5), "each once");
        assert!(sent("PATCH", "/broken/") > 5 && sent("POST", "/broken/") > 5, "and the others are tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_asked_again_and_told_only_the_last() {
        let tries = Arc::new(Mutex::new(0));
        let counted = tries.clone();
        let (cluster, asked) = cluster(move |method, _| {
            let mut tries = counted.lock().unwrap();
            *tries += 1;
            match (method, *tries) {
                (_, ..=5) => status(503),
                ("GET", _) => list(serde_json::json!([])),
                _ => fine(),
            }
        });
        let sayings = vec![("u", Said::Failed("x".to_owned())), ("u", Said::Enrolled)];
        let (sender, receiver) = mpsc::channel(16);
        let worker = tokio::spawn(run(cluster, "n1".to_owned(), receiver));
        for (uid, said) in sayings {
            sender.send(Saying::Of { uid: uid.to_owned(), pod: Some(name()), said }).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        drop(sender);
        worker.await.unwrap();
        assert_eq!(patches(&asked).len(), 1);
        assert_eq!(patches(&asked)[0]["metadata"]["annotations"][annotation::REDIRECTION], "enabled");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_gone_or_a_missing_permission_is_not_tried_again() {
        for code in [404, 409, 403, 422] {
            let (cluster, asked) =
                cluster(move |method, _| if method == "GET" { list(serde_json::json!([])) } else { status(code) });
            said(cluster, vec![("u", Said::Enrolled)], Duration::from_secs(300)).await;
            assert_eq!(patches(&asked).len(), 1, "{code}");
        }
    }
}
