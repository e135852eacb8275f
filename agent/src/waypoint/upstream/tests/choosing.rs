//! Which endpoint is taken, and what is said when there is none.

use std::collections::BTreeMap;

use super::*;

/// How many of `count` requests each of the servers gets.
async fn shares(scene: &Scene, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(scene.get().await.unwrap()).or_default() += 1;
    }
    shares
}

async fn three() -> [Server; 3] {
    [Server::start(false).await, Server::start(false).await, Server::start(false).await]
}

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.at).collect()
}

#[test]
fn round_robin_takes_each_endpoint_in_turn() {
    run(async {
        let servers = three().await;
        let policy = rule("{loadBalancer: {simple: ROUND_ROBIN}}");
        let scene = Scene::new(&both(service("HTTP", &addresses(&servers)), policy)).await;
        let shares = shares(&scene, 9).await;
        assert!(shares.len() == 3 && shares.values().all(|count| *count == 3), "{shares:?}");
    });
}

#[test]
fn the_endpoint_with_fewer_requests_under_way_is_taken() {
    run(async {
        let servers = [Server::start(false).await, Server::start(false).await];
        let scene = Scene::new(&service("HTTP", &addresses(&servers))).await;
        let leases: Vec<_> = (0..40).map(|_| scene.select().unwrap()).collect();
        let first = leases.iter().filter(|lease| lease.id() == leases[0].id()).count();
        // By chance alone they would be as far apart every second time.
        assert!((18..=22).contains(&first), "{first}");
    });
}

#[test]
fn the_same_hash_comes_to_the_same_endpoint_and_others_to_others() {
    run(async {
        let servers = three().await;
        let policy = rule("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}");
        let scene = Scene::new(&both(service("HTTP", &addresses(&servers)), policy)).await;
        let chosen = |hash: u64| {
            let selection = Selection { hash: Some(hash), ..client() };
            scene.cluster().select(selection, Version::HTTP_11).unwrap().id()
        };
        let hashes: Vec<u64> = (0..50_u64).map(|key| culvert_core::traffic::hash::hash(&key.to_le_bytes())).collect();
        let first: Vec<_> = hashes.iter().map(|hash| chosen(*hash)).collect();
        let second: Vec<_> = hashes.iter().map(|hash| chosen(*hash)).collect();
        assert_eq!(first, second);
        assert!(first.iter().any(|id| *id != first[0]));
    });
}

#[test]
fn an_endpoint_that_has_been_tried_is_passed_over_as_long_as_there_is_another() {
    run(async {
        let servers = three().await;
        let scene = Scene::new(&service("HTTP", &addresses(&servers))).await;
        let mut tried = Vec::new();
        for _ in 0..3 {
            let selection = Selection { tried: &tried, is_retry: true, ..client() };
            let lease = scene.cluster().select(selection, Version::HTTP_11).unwrap();
            assert!(!tried.contains(&lease.id()));
            tried.push(lease.id());
        }
        let selection = Selection { tried: &tried, is_retry: true, ..client() };
        assert!(scene.cluster().select(selection, Version::HTTP_11).is_ok());
    });
}

#[test]
fn a_subset_has_its_own_endpoints_and_policy() {
    run(async {
        let servers = three().await;
        let (one, none) = (servers[1].at.port(), 1);
        let policy = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: cart, namespace: shop}}\n\
             spec: {{host: {HOST}, subsets: [{{name: one, labels: {{port: p{one}}}}}, {{name: none, labels: {{port: p{none}}}, \
             trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 7}}}}}}}}]}}\n"
        );
        let scene = Scene::new(&both(service("HTTP", &addresses(&servers)), policy)).await;
        let cluster = |subset| scene.upstreams.cluster(&scene.view.load(), &scene.target(Some(subset)));
        for _ in 0..5 {
            let lease = cluster("one").select(client(), Version::HTTP_11).unwrap();
            assert_eq!(lease.endpoint().port, one);
        }
        assert_eq!(cluster("none").pool().max_requests, 7);
        let refused = cluster("none").select(client(), Version::HTTP_11).err().unwrap();
        assert_eq!(refused.flag(), "UH");
        assert!(refused.to_string().contains("labels of the subset"), "{refused}");
    });
}

#[test]
fn without_an_endpoint_the_reason_says_what_to_check() {
    run(async {
        let scene = Scene::new(&service("HTTP", &[])).await;
        let refused = scene.select().err().unwrap();
        assert_eq!(refused.flag(), "UH");
        assert!(refused.to_string().contains("outbound|80||cart.example: it has none"), "{refused}");
    });
}

/// A ServiceEntry of these fields.
fn entry(fields: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{hosts: [{HOST}], {fields}}}\n"
    )
}

#[test]
fn what_is_passed_through_goes_where_the_client_meant_it_to() {
    run(async {
        let servers = [Server::start(false).await, Server::start(false).await];
        let scene = Scene::new(&entry(
            "addresses: [127.0.0.0/8], resolution: NONE, ports: [{number: 80, name: web, protocol: HTTP}]",
        ))
        .await;
        for server in servers.iter().chain(&servers) {
            let selection = Selection::first("10.1.1.1:4000".parse().unwrap(), server.at, None);
            let lease = scene.cluster().select(selection, Version::HTTP_11).unwrap();
            let answered = text(lease.send(get("/")).await.unwrap()).await;
            assert_eq!(answered, server.at.port().to_string());
        }
        assert_eq!((servers[0].connections(), servers[1].connections()), (1, 1), "they are kept");
    });
}

#[test]
fn a_client_that_meant_the_service_itself_is_not_sent_to_its_virtual_address() {
    run(async {
        let server = Server::start(false).await;
        let policy = rule("{loadBalancer: {simple: PASSTHROUGH}}");
        let scene = Scene::new(&both(service("HTTP", &[server.at]), policy)).await;
        assert_eq!(scene.get().await.unwrap(), server.at.port().to_string());
    });
}

#[test]
fn names_are_resolved_be_they_endpoints_or_the_service_itself() {
    run(async {
        let server = Server::start(false).await;
        let port = server.at.port();
        for (host, endpoints) in [("cart.example", "endpoints: [{address: localhost}], "), ("localhost", "")] {
            let fields = format!(
                "hosts: [{host}], addresses: [240.0.0.1], resolution: DNS, {endpoints}\
                 ports: [{{number: 80, name: web, protocol: HTTP, targetPort: {port}}}]"
            );
            let yaml = entry("").replace(&format!("hosts: [{HOST}], "), &fields);
            let scene = Scene::new(&yaml).await;
            let snapshot = scene.view.load_full();
            let service = snapshot.services_by_hostname(host).next().unwrap().clone();
            let cluster = scene.upstreams.cluster(&snapshot, &Target { service, port: 80, subset: None });
            let lease = cluster.select(client(), Version::HTTP_11).unwrap();
            assert_eq!(text(lease.send(get("/")).await.unwrap()).await, port.to_string());
            let stream = cluster.select_connection(client()).unwrap().connect().await.unwrap();
            assert_eq!(stream.peer(), Some(server.at), "where a name led is known to whoever connects");
        }
    });
}

#[test]
fn the_waypoint_never_sends_to_itself() {
    run(async {
        let scene = Scene::new(
            "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: shop}\n\
             spec: {selector: {}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n",
        )
        .await;
        let snapshot = scene.view.load_full();
        let own = snapshot.pod("shop", "waypoint").unwrap();
        let lease = scene.upstreams.workload(&snapshot, own, 80).select(client(), Version::HTTP_11).unwrap();
        let error = lease.send(get("/")).await.unwrap_err();
        assert!(error.to_string().contains("this waypoint itself"), "{error}");
    });
}

#[test]
fn a_new_endpoint_warms_up_while_those_that_were_there_do_not() {
    run(async {
        let servers = [Server::start(false).await, Server::start(false).await];
        let policy = rule("{loadBalancer: {simple: RANDOM, warmup: {duration: 1000s, minimumPercent: 1}}}");
        let scene = Scene::new(&both(service("HTTP", &[servers[0].at]), policy)).await;
        let old = scene.select().unwrap().id();
        scene.apply(&service("HTTP", &addresses(&servers)));
        let leases: Vec<_> = (0..400).map(|_| scene.select().unwrap()).collect();
        let new = leases.iter().filter(|lease| lease.id() != old).count();
        assert!(new < 40, "{new} of 400 to one that has just come");
    });
}
