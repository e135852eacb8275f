//! What finding a route costs: `cargo bench -p culvert-core --bench routes`.
//!
//! 1 000 services with one VirtualService each, and one service with 1 000 VirtualServices; of paths, of prefixes, and
//! of each kind of match. Prints times of the thread's processor, so that what else the machine does is not counted.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark stops where it meets the unexpected")]

use std::fmt::Write as _;
use std::time::Duration;

use culvert_core::mesh::{Change, Mesh, Snapshot};
use culvert_core::route::decide::{Action, route};
use culvert_core::route::request::{Origin, RequestHead};
use culvert_core::service::ServiceKey;
use http::{HeaderMap, Method};
use nix::time::{ClockId, clock_gettime};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

const COUNT: usize = 1_000;

fn main() {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n",
    );
    let mut service = |name: &str, at: usize| {
        let address = format!("10.96.{}.{}", at / 250, at % 250);
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}\n"
        )
        .expect("memory");
    };
    (0..COUNT).for_each(|at| service(&format!("app-{at}"), at));
    for (at, name) in ["exact", "prefix", "headers", "none"].into_iter().enumerate() {
        service(name, COUNT + at);
    }
    let mut virtual_service = |name: &str, host: &str, matched: &str| {
        write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [{host}], http: [{{match: [{{{matched}}}], route: [{{destination: {{host: none}}}}]}}]}}\n"
        )
        .expect("memory");
    };
    for at in 0..COUNT {
        virtual_service(&format!("own-{at}"), &format!("app-{at}"), "uri: {prefix: /}");
        virtual_service(&format!("exact-{at}"), "exact", &format!("uri: {{exact: /api/v1/items/{at}}}"));
        virtual_service(&format!("prefix-{at}"), "prefix", &format!("uri: {{prefix: /api/v1/items/{at}/}}"));
        virtual_service(&format!("headers-{at}"), "headers", &format!("headers: {{x-user: {{exact: user-{at}}}}}"));
    }
    let mut mesh = Mesh::new();
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    let started = now();
    mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
    println!("apply {} VirtualServices: {} ms", COUNT * 4, (now() - started).as_millis());
    let snapshot = mesh.snapshot();

    let none = time(&snapshot, |_| ("none".to_owned(), "/api".to_owned(), None));
    println!("no VirtualService: {} ns", none.as_nanos());
    let report = |what: &str, each: &dyn Fn(usize) -> (String, String, Option<String>)| {
        let taken = time(&snapshot, each);
        println!("{what}: {} ns, {} more", taken.as_nanos(), taken.saturating_sub(none).as_nanos());
    };
    report("one of 1 000 hosts", &|at| (format!("app-{at}"), "/api".to_owned(), None));
    report("one of 1 000 paths of a host", &|at| ("exact".to_owned(), format!("/api/v1/items/{at}?q"), None));
    report("one of 1 000 prefixes of a host", &|at| ("prefix".to_owned(), format!("/api/v1/items/{at}/x"), None));
    report("one of 1 000 headers of a host", &|at| ("headers".to_owned(), "/".to_owned(), Some(format!("user-{at}"))));
}

/// What a decision takes: for each service, path and value of `x-user` in turn.
fn time(snapshot: &Snapshot, each: impl Fn(usize) -> (String, String, Option<String>)) -> Duration {
    let cases: Vec<_> = (0..COUNT)
        .map(|at| {
            let (service, path, user) = each(at * 7 % COUNT);
            let hostname = format!("{service}.shop.svc.cluster.local");
            let key = ServiceKey { namespace: "shop".into(), hostname: hostname.as_str().into() };
            let mut headers = HeaderMap::new();
            if let Some(user) = user {
                headers.insert("x-user", user.parse().expect("a value"));
            }
            (snapshot.service(&key).expect("it was applied").clone(), hostname, path, headers)
        })
        .collect();
    let mut rng = SmallRng::seed_from_u64(1);
    const ROUNDS: usize = 20;
    let started = now();
    for (service, hostname, path, headers) in cases.iter().cycle().take(COUNT * ROUNDS) {
        let origin = Origin {
            service,
            port: 80,
            client: None,
            client_address: ([10, 0, 0, 1], 1).into(),
            destination: [10, 96, 0, 1].into(),
            sni: None,
        };
        let request = RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: hostname,
            path,
            protocol: "HTTP/1.1",
            headers,
        };
        let decision = route(snapshot, &origin, &request, &mut rng);
        assert!(matches!(decision.action, Action::Forward(_)), "{:?}", decision.action);
    }
    (now() - started) / (COUNT * ROUNDS) as u32
}

/// The processor time of this thread.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux").into()
}
