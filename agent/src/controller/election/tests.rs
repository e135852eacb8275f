use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;

use super::*;

const DAY: i64 = 86400;

fn wall(offset: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + offset).unwrap()
}

fn lease(spec: LeaseSpec) -> Lease {
    Lease { metadata: ObjectMeta::default(), spec: Some(spec) }
}

fn candidate(name: &str) -> Judge {
    Judge { identity: name.to_owned(), seen: None }
}

#[test]
fn an_absent_lease_and_one_that_was_given_up_are_taken() {
    let now = Instant::now();
    let taken = candidate("a").decide(None, now, wall(0)).unwrap();
    assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("a"), Some(0)));
    let given_up = lease(LeaseSpec { holder_identity: None, ..taken });
    let taken = candidate("b").decide(Some(&given_up), now, wall(0)).unwrap();
    assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(1)));
}

#[test]
fn a_lease_is_judged_by_its_changes_and_never_by_its_times() {
    for offset in [-DAY, 0, DAY] {
        let start = Instant::now();
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        // The clock of a is a day off from that of b, either way.
        let mut held = lease(a.decide(None, start, wall(offset)).unwrap());
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            if second % 2 == 0 {
                held = lease(a.decide(Some(&held), now, wall(offset + second as i64)).unwrap());
            }
            assert!(b.decide(Some(&held), now, wall(second as i64)).is_none(), "second {second}, offset {offset}");
        }
        // a is gone: its last change was seen in second 58.
        for second in 60..=73 {
            let now = start + Duration::from_secs(second);
            assert!(b.decide(Some(&held), now, wall(0)).is_none(), "second {second}, offset {offset}");
        }
        let taken = b.decide(Some(&held), start + Duration::from_secs(74), wall(0)).unwrap();
        assert_eq!(taken.holder_identity.as_deref(), Some("b"), "offset {offset}");
    }
}

#[test]
fn a_candidate_that_has_just_come_waits_for_the_whole_time() {
    let now = Instant::now();
    let ancient = LeaseSpec {
        holder_identity: Some("a".to_owned()),
        renew_time: Some(MicroTime(wall(-365 * DAY))),
        lease_duration_seconds: Some(15),
        ..LeaseSpec::default()
    };
    let mut b = candidate("b");
    assert!(b.decide(Some(&lease(ancient.clone())), now, wall(0)).is_none());
    assert!(b.decide(Some(&lease(ancient)), now + Duration::from_secs(16), wall(0)).is_some());
}

#[test]
fn a_lease_that_wants_to_be_left_alone_for_ever_is_not_believed() {
    let now = Instant::now();
    let forever = LeaseSpec {
        holder_identity: Some("a".to_owned()),
        lease_duration_seconds: Some(i32::MAX),
        ..LeaseSpec::default()
    };
    let mut b = candidate("b");
    assert!(b.decide(Some(&lease(forever.clone())), now, wall(0)).is_none());
    assert!(b.decide(Some(&lease(forever)), now + MAX_DURATION + Duration::from_secs(1), wall(0)).is_some());
}

/// An API server that knows one Lease, and can go away.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Lease>,
    version: u64,
    away: bool,
}

impl Server {
    fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    fn set_away(&self, away: bool) {
        self.0.lock().unwrap().away = away;
    }

    fn holder(&self) -> Option<String> {
        self.0.lock().unwrap().lease.as_ref()?.spec.as_ref()?.holder_identity.clone()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        if self.0.lock().unwrap().away {
            // The request is lost on the way.
            return std::future::pending().await;
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut state = self.0.lock().unwrap();
        let answer = |code: StatusCode, text: String| Response::builder().status(code).body(text.into_bytes().into());
        let failure = |code: StatusCode| {
            let text = serde_json::json!({"status": "Failure", "code": code.as_u16(), "message": "", "reason": code.canonical_reason().unwrap().replace(' ', "")});
            answer(code, text.to_string())
        };
        Ok(match head.method {
            Method::GET => match &state.lease {
                Some(lease) => answer(StatusCode::OK, serde_json::to_string(lease).unwrap()),
                None => failure(StatusCode::NOT_FOUND),
            },
            Method::POST | Method::PUT => {
                let mut lease: Lease = serde_json::from_slice(&body).unwrap();
                let known = state.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                if known != lease.metadata.resource_version {
                    return Ok(failure(StatusCode::CONFLICT).unwrap());
                }
                state.version += 1;
                lease.metadata.resource_version = Some(state.version.to_string());
                state.lease = Some(lease);
                answer(StatusCode::OK, serde_json::to_string(state.lease.as_ref().unwrap()).unwrap())
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED),
        }
        .unwrap())
    }
}

/// A replica that counts itself among `leaders` while it leads.
struct Replica {
    leads: watch::Receiver<bool>,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn replica(server: &Server, name: &str, leaders: &Arc<AtomicUsize>) -> Replica {
    let election = Election::new(server.client(), "culvert-system", name);
    let leads = election.leads();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let leaders = leaders.clone();
    let work = move || {
        let leaders = leaders.clone();
        async move {
            assert_eq!(leaders.fetch_add(1, Ordering::SeqCst), 0, "two replicas lead at once");
            let _counted = Counted(leaders);
            std::future::pending::<()>().await;
        }
    };
    let task = tokio::spawn(election.run(work, async {
        let _ = stopped.await;
    }));
    Replica { leads, stop, task }
}

#[tokio::test(start_paused = true)]
async fn of_two_replicas_one_leads_and_the_other_follows_when_it_is_killed() {
    let (server, leaders) = (Server::default(), Arc::new(AtomicUsize::new(0)));
    let mut a = replica(&server, "a", &leaders);
    a.leads.wait_for(|leads| *leads).await.unwrap();
    let mut b = replica(&server, "b", &leaders);
    sleep(Duration::from_secs(60)).await;
    assert!(!*b.leads.borrow());

    a.task.abort();
    let killed = Instant::now();
    b.leads.wait_for(|leads| *leads).await.unwrap();
    assert!((13..20).contains(&killed.elapsed().as_secs()), "took over after {:?}", killed.elapsed());
    assert_eq!(server.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_ends_leaves_the_lease_to_the_next_at_once() {
    let (server, leaders) = (Server::default(), Arc::new(AtomicUsize::new(0)));
    let mut a = replica(&server, "a", &leaders);
    a.leads.wait_for(|leads| *leads).await.unwrap();
    let mut b = replica(&server, "b", &leaders);
    sleep(Duration::from_secs(10)).await;
    a.stop.send(()).unwrap();
    let stopped = Instant::now();
    b.leads.wait_for(|leads| *leads).await.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(4), "took over after {:?}", stopped.elapsed());
    a.task.await.unwrap();
    let _ = b.stop.send(());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_anyone_else_may_begin() {
    let (server, leaders) = (Server::default(), Arc::new(AtomicUsize::new(0)));
    let mut a = replica(&server, "a", &leaders);
    a.leads.wait_for(|leads| *leads).await.unwrap();
    server.set_away(true);
    let lost = Instant::now();
    a.leads.wait_for(|leads| !leads).await.unwrap();
    assert!(lost.elapsed() <= RENEW_DEADLINE, "stopped after {:?}", lost.elapsed());
    assert_eq!(leaders.load(Ordering::SeqCst), 0, "its work is dropped with its Lease");
    server.set_away(false);
    a.leads.wait_for(|leads| *leads).await.unwrap();
    let _ = a.stop.send(());
}
