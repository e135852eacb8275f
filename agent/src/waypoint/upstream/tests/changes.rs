//! Changes of the mesh while requests are under way: none of them is lost, and what need not change stays.

use super::*;

#[test]
fn a_cluster_is_the_same_until_something_changes_that_it_is_made_of() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), rule("{loadBalancer: {simple: RANDOM}}"))).await;
        let first = scene.cluster();
        scene.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: elsewhere}\n");
        assert!(Arc::ptr_eq(&first, &scene.cluster()), "it has nothing to do with it");
        for change in [
            rule("{loadBalancer: {simple: ROUND_ROBIN}}"),
            service("HTTP", &[server.at, "127.0.0.1:1".parse().unwrap()]),
            service("HTTP2", &[server.at]),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
             data: {mesh: 'connectTimeout: 3s'}\n"
                .to_owned(),
        ] {
            let before = scene.cluster();
            scene.apply(&change);
            assert!(!Arc::ptr_eq(&before, &scene.cluster()), "{change}");
        }
    });
}

#[test]
fn who_looks_at_an_earlier_mesh_does_not_bring_it_back() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        let (earlier, target) = (scene.view.load_full(), scene.target(None));
        scene.apply(&rule("{loadBalancer: {simple: RANDOM}}"));
        let newer = scene.cluster();
        assert!(Arc::ptr_eq(&newer, &scene.upstreams.cluster(&earlier, &target)));
        assert!(Arc::ptr_eq(&newer, &scene.cluster()));
    });
}

#[test]
fn connections_stay_where_an_endpoint_is_spoken_to_as_before() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        scene.get().await.unwrap();
        let id = scene.select().unwrap().id();
        let other = "127.0.0.2:1".parse().unwrap();
        for change in [rule("{loadBalancer: {simple: RANDOM}}"), service("HTTP", &[other, server.at])] {
            scene.apply(&change);
            let mut leases = std::iter::repeat_with(|| scene.select().unwrap()).take(1000);
            let lease = leases.find(|lease| lease.id() == id).unwrap();
            text(lease.send(get("/")).await.unwrap()).await;
        }
        scene.apply(&service("HTTP", &[server.at]));
        scene.get().await.unwrap();
        assert_eq!((server.connections(), scene.select().unwrap().id()), (1, id));
        // By other settings, over other connections: what it does is still known.
        scene.apply(&rule("{connectionPool: {http: {maxRequestsPerConnection: 9}}}"));
        scene.get().await.unwrap();
        assert_eq!((server.connections(), scene.select().unwrap().id()), (2, id));
        scene.until("envoy_cluster_upstream_cx_active", 1).await;
    });
}

#[test]
fn a_request_under_way_ends_well_though_its_endpoint_is_gone() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let (old, new) = (Server::start(http2).await, Server::start(http2).await);
            let scene = Scene::new(&service(protocol, &[old.at])).await;
            scene.get().await.unwrap();
            let under_way = tokio::spawn(scene.select().unwrap().send(get("/wait")));
            old.until_requests(2).await;
            scene.apply(&service(protocol, &[new.at]));
            assert_eq!(scene.get().await.unwrap(), new.at.port().to_string());
            old.gate.add_permits(1);
            assert_eq!(text(under_way.await.unwrap().unwrap()).await, old.at.port().to_string());
            // Nothing is kept of the one that is gone.
            scene.until("envoy_cluster_upstream_cx_active", 1).await;
        }
    });
}

#[test]
fn who_waits_for_a_connection_gets_one_though_the_endpoint_is_retired_meanwhile() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let limits = "connectionPool: {tcp: {maxConnections: 1}, http: {maxConcurrentStreams: 1, idleTimeout: ";
            let policy = |idle: &str| rule(&format!("{{{limits}{idle}}}}}}}"));
            let scene = Scene::new(&both(service(protocol, &[server.at]), policy("100s"))).await;
            let first = tokio::spawn(scene.select().unwrap().send(get("/wait")));
            server.until_requests(1).await;
            let waits = tokio::spawn(scene.select().unwrap().send(get("/")));
            let unsent = scene.select().unwrap();
            tokio::task::yield_now().await;
            scene.apply(&policy("200s"));
            drop(scene.cluster());
            let third = tokio::spawn(unsent.send(get("/")));
            server.gate.add_permits(1);
            for asked in [first, waits, third] {
                text(asked.await.unwrap().unwrap()).await;
            }
            scene.until("envoy_cluster_upstream_cx_active", 0).await;
        }
    });
}

#[test]
fn no_request_is_lost_while_endpoints_and_rules_come_and_go() {
    run(async {
        let [a, b, c] = [Server::start(false).await, Server::start(false).await, Server::start(false).await];
        let (scene, running) = (Arc::new(Scene::new(&service("HTTP", &[a.at])).await), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..16)
            .map(|nth: usize| {
                let (scene, running) = (scene.clone(), running.clone());
                tokio::spawn(async move {
                    for turn in 0..60 {
                        let lease = scene.select().unwrap();
                        if (nth + turn).is_multiple_of(11) {
                            // Some clients go away in the middle.
                            let sent = tokio::time::timeout(Duration::from_micros(300), lease.send(get("/"))).await;
                            drop(sent);
                        } else {
                            text(lease.send(get("/")).await.unwrap()).await;
                        }
                        running.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let sets: [&[SocketAddr]; 4] = [&[a.at, b.at], &[b.at], &[b.at, c.at], &[a.at, c.at]];
        let rules =
            ["{loadBalancer: {simple: ROUND_ROBIN}}", "{connectionPool: {http: {maxRequestsPerConnection: 3}}}"];
        for turn in 0.. {
            if running.load(Ordering::SeqCst) == 16 * 60 {
                break;
            }
            scene.apply(&both(service("HTTP", sets[turn % 4]), rule(rules[turn % 2])));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(clients.iter().all(|client| !client.is_finished()) || running.load(Ordering::SeqCst) > 0);
        }
        for client in clients {
            client.await.unwrap();
        }
        scene.until("envoy_cluster_upstream_rq_active", 0).await;
        assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_active"), 0);
    });
}

#[test]
fn what_the_mesh_has_no_more_is_forgotten_and_its_connections_closed() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        scene.get().await.unwrap();
        let cluster = scene.cluster();
        let object = objects(&service("HTTP", &[])).remove(0);
        let Change::Upsert(object) = object else { unreachable!() };
        let mut mesh = Mesh::new();
        mesh.apply(objects(WAYPOINT));
        drop(object);
        scene.view.store(mesh.snapshot());
        scene.upstreams.0.registry.forget();
        assert!(scene.upstreams.0.registry.clusters().is_empty());
        while cluster.state.counts.usage().connections > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}
