//! Endpoints that fail are left out, and come back.

use super::*;

const THREE: &str = "{outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 30s, interval: 10s, \
                     maxEjectionPercent: 100}}";

async fn status(scene: &Scene, status: u16) {
    let response = scene.select().unwrap().send(get(&format!("/status/{status}"))).await.unwrap();
    assert_eq!(response.status(), status);
}

#[test]
fn an_endpoint_is_left_out_after_so_many_errors_in_a_row_and_comes_back_in_time() {
    run_within(DAY, async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), rule(THREE))).await;
        for each in [500, 503, 200, 500, 500] {
            status(&scene, each).await;
            assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 0);
        }
        status(&scene, 500).await;
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 1);
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_enforced_total"), 1);
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx"), 1);
        assert_eq!(scene.metric("envoy_cluster_membership_healthy"), 0);
        let refused = scene.select().err().unwrap();
        assert!(refused.flag() == "UH" && refused.to_string().contains("outlierDetection"), "{refused}");
        // Nobody asks; a sweep finds that its time is up.
        later(25).await;
        assert!(scene.select().is_err());
        later(6).await;
        scene.until("envoy_cluster_outlier_detection_ejections_active", 0).await;
        scene.get().await.unwrap();
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 0);
    });
}

#[test]
fn an_endpoint_that_is_left_out_gets_nothing_while_there_is_another() {
    run(async {
        let (good, bad) = (Server::start(false).await, Server::start(false).await);
        let policy = rule(
            "{outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 50}, loadBalancer: {simple: ROUND_ROBIN}}",
        );
        let scene = Scene::new(&both(service("HTTP", &[good.at, bad.at]), policy)).await;
        loop {
            let lease = scene.select().unwrap();
            if lease.endpoint().port == bad.at.port() {
                lease.send(get("/status/500")).await.unwrap();
                break;
            }
        }
        for _ in 0..10 {
            assert_eq!(scene.get().await.unwrap(), good.at.port().to_string());
        }
    });
}

#[test]
fn every_way_to_fail_counts() {
    run(async {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let unreachable = Scene::new(&both(service("HTTP", &[free]), rule(THREE))).await;
        for _ in 0..3 {
            unreachable.get().await.unwrap_err();
        }
        assert!(unreachable.select().is_err(), "connections that fail");

        let server = Server::start(false).await;
        let broken = Scene::new(&both(service("HTTP", &[server.at]), rule(THREE))).await;
        for nth in 1..=3 {
            let asked = tokio::spawn(broken.select().unwrap().send(get("/wait")));
            server.until_requests(nth).await;
            server.cut();
            asked.await.unwrap().unwrap_err();
        }
        assert!(broken.select().is_err(), "connections that break off");

        let slow = Scene::new(&both(service("HTTP", &[server.at]), rule(THREE))).await;
        for _ in 0..3 {
            slow.select().unwrap().reporter().timed_out();
        }
        assert!(slow.select().is_err(), "answers that take too long");

        let server = Server::start(true).await;
        let grpc = Scene::new(&both(service("GRPC", &[server.at]), rule(THREE))).await;
        for answered in ["/grpc/14", "/grpc/0", "/grpc/14", "/grpc/2"] {
            text(grpc.select().unwrap().send(get(answered)).await.unwrap()).await;
        }
        assert!(grpc.select().is_ok(), "an answer in between that is well");
        text(grpc.select().unwrap().send(get("/grpc/14")).await.unwrap()).await;
        assert!(grpc.select().is_err(), "statuses of gRPC in trailers");

        let connections = Scene::new(&both(service("TCP", &[free]), rule(THREE))).await;
        for _ in 0..3 {
            let lease = connections.cluster().select_connection(client()).unwrap();
            assert!(lease.connect().await.is_err());
        }
        assert!(connections.cluster().select_connection(client()).is_err(), "connections of no protocol");
    });
}

#[test]
fn a_client_that_goes_away_is_no_failure_of_the_endpoint() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), rule(THREE))).await;
        for nth in 1..=5 {
            let asked = tokio::spawn(scene.select().unwrap().send(get("/wait")));
            server.until_requests(nth).await;
            asked.abort();
            assert!(asked.await.unwrap_err().is_cancelled());
        }
        assert!(scene.select().is_ok());
    });
}

#[test]
fn other_settings_begin_anew_and_the_same_go_on() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), rule(THREE))).await;
        for _ in 0..3 {
            status(&scene, 500).await;
        }
        scene.apply(&service("HTTP", &[server.at, server.at]));
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 1);
        drop(scene.cluster());
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 1);
        scene.apply(&both(service("HTTP", &[server.at]), rule("{outlierDetection: {consecutive5xxErrors: 9}}")));
        scene.get().await.unwrap();
        assert_eq!(scene.metric("envoy_cluster_outlier_detection_ejections_active"), 0);
    });
}
