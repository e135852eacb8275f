//! DestinationRules in a mesh, as facts.

use std::sync::Arc;
use std::time::Duration;

use super::hash;
use super::outliers::OutlierSettings;
use super::policy::{Algorithm, ClientTls, ConnectionPool, HashKey, HashTable, Locality, TrafficPolicy};
use crate::mesh::tests::{mesh, objects};
use crate::mesh::{Change, Mesh, Snapshot};
use crate::route::request::{Origin, RequestHead};
use crate::route::tests::{header_map, origin_of, service};
use crate::workload::Labels;

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}]}
";

fn rule(namespace: &str, name: &str, year: u16, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: \
         {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec: {{{spec}}}\n"
    )
}

fn findings(snapshot: &Snapshot) -> Vec<String> {
    snapshot.findings().map(|(_, finding)| finding.field.clone()).collect()
}

fn policy(snapshot: &Snapshot, client: &str, subset: Option<&str>, port: u16) -> TrafficPolicy {
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    let (rule, subset) = snapshot.traffic_rule(client, service, subset);
    rule.map(|rule| rule.policy_for(subset, port)).unwrap_or_default()
}

/// What one rule of the cart with this traffic policy says, and where the mistakes are.
fn read(traffic_policy: &str) -> (TrafficPolicy, Vec<String>) {
    let yaml =
        format!("{SHOP}{}", rule("shop", "cart", 2020, &format!("host: cart, trafficPolicy: {{{traffic_policy}}}")));
    let snapshot = mesh(&yaml).snapshot();
    let fields = findings(&snapshot);
    let strip = |field: &String| field.trim_start_matches("spec.trafficPolicy.").to_owned();
    (policy(&snapshot, "shop", None, 80), fields.iter().map(strip).collect())
}

fn good(traffic_policy: &str) -> TrafficPolicy {
    let (policy, findings) = read(traffic_policy);
    assert_eq!(findings, [""; 0], "{traffic_policy}");
    policy
}

fn algorithm(load_balancer: &str) -> Algorithm {
    good(&format!("loadBalancer: {{{load_balancer}}}")).load_balancer.unwrap().algorithm.clone()
}

#[test]
fn every_load_balancer_is_read() {
    for (written, expected) in [
        ("simple: ROUND_ROBIN", Algorithm::RoundRobin),
        ("simple: LEAST_REQUEST", Algorithm::LeastRequest),
        ("simple: LEAST_CONN", Algorithm::LeastRequest),
        ("simple: UNSPECIFIED", Algorithm::LeastRequest),
        ("simple: RANDOM", Algorithm::Random),
        ("simple: PASSTHROUGH", Algorithm::Passthrough),
        ("consistentHash: {useSourceIp: true}", Algorithm::Hash(HashKey::SourceIp, HashTable::Ring(1024))),
        (
            "consistentHash: {httpHeaderName: X-User, maglev: {}}",
            Algorithm::Hash(HashKey::Header("x-user".parse().unwrap()), HashTable::Maglev(65_537)),
        ),
        (
            "consistentHash: {httpQueryParameterName: q, ringHash: {minimumRingSize: 64}}",
            Algorithm::Hash(HashKey::Parameter("q".into()), HashTable::Ring(64)),
        ),
        (
            "consistentHash: {useSourceIp: true, minimumRingSize: 7}",
            Algorithm::Hash(HashKey::SourceIp, HashTable::Ring(7)),
        ),
        (
            "consistentHash: {useSourceIp: true, maglev: {tableSize: 251}}",
            Algorithm::Hash(HashKey::SourceIp, HashTable::Maglev(251)),
        ),
    ] {
        assert_eq!(algorithm(written), expected, "{written}");
    }
    let Algorithm::Hash(HashKey::Cookie(cookie), _) =
        algorithm("consistentHash: {httpCookie: {name: session, path: /p, ttl: 60s, attributes: [{name: Secure}]}}")
    else {
        panic!()
    };
    assert_eq!((&*cookie.name, &*cookie.path, cookie.ttl), ("session", "/p", Some(Duration::from_secs(60))));
}

#[test]
fn every_key_of_a_request_is_hashed() {
    let service = service();
    let origin = Origin { ..origin_of(&service) };
    let of = |key: &HashKey, path: &str, headers: &[(&str, &str)]| {
        let headers = header_map(headers);
        let request = RequestHead {
            method: &http::Method::GET,
            scheme: "http",
            authority: "a",
            path,
            protocol: "",
            headers: &headers,
        };
        hash::of_request(key, &origin, &request)
    };
    let header = HashKey::Header("x-user".parse().unwrap());
    assert_eq!(of(&header, "/", &[("x-user", "eve")]), Some(hash::hash(b"eve")));
    assert_eq!(of(&header, "/", &[]), None);
    assert_eq!(of(&HashKey::Parameter("q".into()), "/?q=eve", &[]), Some(hash::hash(b"eve")));
    assert_eq!(of(&HashKey::SourceIp, "/", &[]), Some(hash::hash(b"10.0.0.9")));
}

#[test]
fn localities_and_warmup_are_read() {
    let balancer =
        |text: &str| good(&format!("outlierDetection: {{}}, loadBalancer: {{{text}}}")).load_balancer.unwrap();
    for (written, expected) in [
        ("enabled: false", Locality::Disabled),
        (
            "distribute: [{from: 'eu/*', to: {'eu/*': 80, 'us/*': 20}}]",
            Locality::Distribute(vec![("eu/*".into(), vec![("eu/*".into(), 80), ("us/*".into(), 20)])]),
        ),
        ("failover: [{from: eu, to: us}]", Locality::Failover(vec![("eu".into(), "us".into())])),
        ("enabled: true", Locality::Failover(vec![])),
        ("failoverPriority: [a, 'b=c']", Locality::Priority(vec![("a".into(), None), ("b".into(), Some("c".into()))])),
    ] {
        let found = balancer(&format!("localityLbSetting: {{{written}}}"));
        assert_eq!(found.locality, Some(expected), "{written}");
    }
    let warmup = balancer("warmup: {duration: 30s, minimumPercent: 20, aggression: 2}").warmup.unwrap();
    assert_eq!((warmup.duration, warmup.minimum, warmup.aggression), (Duration::from_secs(30), 0.2, 2.0));
    let warmup = balancer("warmupDurationSecs: 30s").warmup.unwrap();
    assert_eq!((warmup.duration, warmup.minimum, warmup.aggression), (Duration::from_secs(30), 0.1, 1.0));
}

#[test]
fn every_limit_of_a_pool_is_read() {
    let pool = good(
        "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s, tcpKeepalive: {probes: 3, time: 4s, interval: 5s}, \
         maxConnectionDuration: 6s, idleTimeout: 7s}, http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, \
         maxRequestsPerConnection: 10, maxRetries: 11, idleTimeout: 12s, h2UpgradePolicy: UPGRADE, \
         maxConcurrentStreams: 13, http2KeepAlive: {interval: 14s, timeout: 15s}}}",
    );
    let seconds = Duration::from_secs;
    let expected = ConnectionPool {
        max_connections: 1,
        connect_timeout: Some(seconds(2)),
        keepalive: Some(super::policy::Keepalive {
            probes: Some(3),
            time: Some(seconds(4)),
            interval: Some(seconds(5)),
        }),
        max_connection_duration: Some(seconds(6)),
        tcp_idle: Some(seconds(7)),
        max_pending: 8,
        max_requests: 9,
        max_requests_per_connection: 10,
        max_retries: 11,
        http_idle: Some(seconds(12)),
        upgrade: true,
        use_client_protocol: false,
        max_concurrent_streams: Some(13),
        h2_keepalive: Some((seconds(14), seconds(15))),
    };
    assert_eq!(*pool.pool.unwrap(), expected);
    assert_eq!(*good("connectionPool: {tcp: {}, http: {}}").pool.unwrap(), ConnectionPool::default());
    assert_eq!(good("connectionPool: {tcp: {idleTimeout: 0s}}").pool.unwrap().tcp_idle, None);
    assert!(good("connectionPool: {http: {useClientProtocol: true}}").pool.unwrap().use_client_protocol);
}

#[test]
fn every_field_of_outlier_detection_is_read() {
    let outliers = |text: &str| good(&format!("outlierDetection: {{{text}}}")).outliers.unwrap();
    assert_eq!(outliers(""), OutlierSettings::default());
    assert_eq!(
        outliers(
            "consecutive5xxErrors: 1, consecutiveGatewayErrors: 2, consecutiveLocalOriginFailures: 3, \
             splitExternalLocalOriginErrors: true, interval: 4s, baseEjectionTime: 5s, maxEjectionPercent: 6, \
             minHealthPercent: 7, outlierDetectionHttpErrorCodes: [429, 500]"
        ),
        OutlierSettings {
            consecutive_errors: 1,
            consecutive_gateway_errors: 2,
            consecutive_local_failures: 3,
            split_local: true,
            interval: Duration::from_secs(4),
            base_ejection: Duration::from_secs(5),
            max_ejection_percent: 6,
            min_health_percent: 7,
            error_statuses: Some(vec![429, 500]),
        }
    );
    assert_eq!(outliers("consecutive5xxErrors: 0").consecutive_errors, 0);
    assert_eq!(outliers("consecutiveErrors: 9").consecutive_gateway_errors, 9);
}

#[test]
fn tls_is_read_and_what_the_tunnel_does_is_left_to_it() {
    let tls = |text: &str| good(&format!("tls: {{{text}}}")).tls;
    assert_eq!((tls("mode: DISABLE"), tls("mode: ISTIO_MUTUAL")), (None, None));
    let simple = tls("mode: SIMPLE, sni: s, subjectAltNames: [a, b], caCertificates: /ca, caCrl: /crl").unwrap();
    let expected = ClientTls {
        certificate: None,
        credential_name: None,
        roots: Some("/ca".into()),
        revoked: Some("/crl".into()),
        names: vec!["a".into(), "b".into()],
        sni: Some("s".into()),
        insecure: false,
    };
    assert_eq!(*simple, expected);
    assert_eq!(simple.server_name("host"), "s");
    let mutual = tls("mode: MUTUAL, clientCertificate: /c, privateKey: /k").unwrap();
    assert_eq!(&*mutual.certificate.as_ref().unwrap().key, "/k");
    assert_eq!(mutual.server_name("host"), "host");
    assert_eq!(tls("mode: MUTUAL, credentialName: secret").unwrap().credential_name.as_deref(), Some("secret"));
    assert!(tls("mode: SIMPLE, insecureSkipVerify: true").unwrap().insecure);
}

#[test]
fn budgets_and_the_proxy_protocol_are_read() {
    let budget = good("retryBudget: {percent: 30, minRetryConcurrency: 5}").retry_budget.unwrap();
    assert_eq!((budget.percent, budget.minimum), (30.0, 5));
    let budget = good("retryBudget: {}").retry_budget.unwrap();
    assert_eq!((budget.percent, budget.minimum), (20.0, 3));
    assert_eq!(good("proxyProtocol: {version: V2}").proxy_protocol, Some(2));
}

#[test]
fn what_is_wrong_is_told() {
    for (written, field) in [
        ("", ""),
        ("loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}", "loadBalancer"),
        ("loadBalancer: {consistentHash: {}}", "loadBalancer.consistentHash"),
        ("loadBalancer: {consistentHash: {httpHeaderName: 'a b'}}", "loadBalancer.consistentHash"),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}",
            "loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 99999999}}}",
            "loadBalancer.consistentHash.ringHash.minimumRingSize",
        ),
        (
            "loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: soon}}}",
            "loadBalancer.consistentHash.httpCookie.ttl",
        ),
        ("loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}", "loadBalancer.localityLbSetting"),
        (
            "loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}",
            "loadBalancer.localityLbSetting.distribute[0].to",
        ),
        ("loadBalancer: {zoneAwareLbSetting: {enabled: true}}", "loadBalancer.zoneAwareLbSetting"),
        ("loadBalancer: {warmup: {duration: x}}", "loadBalancer.warmup.duration"),
        ("loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}", "loadBalancer.warmup"),
        ("connectionPool: {tcp: {maxConnections: -1}}", "connectionPool.tcp.maxConnections"),
        ("connectionPool: {http: {idleTimeout: x}}", "connectionPool.http.idleTimeout"),
        (
            "connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}",
            "connectionPool.http.h2UpgradePolicy",
        ),
        ("outlierDetection: {maxEjectionPercent: 101}", "outlierDetection.maxEjectionPercent"),
        ("outlierDetection: {consecutiveLocalOriginFailures: 1}", "outlierDetection.consecutiveLocalOriginFailures"),
        (
            "outlierDetection: {outlierDetectionHttpErrorCodes: [99]}",
            "outlierDetection.outlierDetectionHttpErrorCodes[0]",
        ),
        ("tls: {mode: MUTUAL}", "tls.mode"),
        ("tls: {mode: ISTIO_MUTUAL, sni: a}", "tls.mode"),
        ("tls: {mode: SIMPLE, credentialName: a, caCertificates: /b}", "tls.credentialName"),
        ("tunnel: {targetHost: a, targetPort: 1}", "tunnel"),
        ("retryBudget: {percent: 101}", "retryBudget.percent"),
        ("portLevelSettings: [{}]", "portLevelSettings[0].port"),
        ("portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]", "portLevelSettings[1].port"),
    ] {
        let field = if written.is_empty() { "spec.trafficPolicy" } else { field };
        assert_eq!(read(written).1, [field], "{written}");
    }
}

fn balancer_of(policy: &TrafficPolicy) -> String {
    let algorithm = policy.load_balancer.as_ref().map(|balancer| balancer.algorithm.clone());
    let pool = policy.pool.as_ref().map(|pool| pool.max_requests);
    format!("{algorithm:?} {pool:?} {}", policy.outliers.is_some())
}

#[test]
fn what_is_said_of_a_subset_or_a_port_counts_before_what_is_said_of_the_whole() {
    let yaml = format!(
        "{SHOP}{}",
        rule(
            "shop",
            "cart",
            2020,
            "host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}, portLevelSettings: \
             [{port: {number: 81}, connectionPool: {http: {http2MaxRequests: 81}}}]}, subsets: [{name: v1, labels: {v: '1'}, \
             trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}, {name: v2, labels: {v: '2'}, trafficPolicy: \
             {portLevelSettings: [{port: {number: 80}, connectionPool: {http: {http2MaxRequests: 2}}}]}}, {name: v3, labels: {v: '3'}}]"
        )
    );
    let snapshot = mesh(&yaml).snapshot();
    for (subset, port, expected) in [
        (None, 80, "Some(Random) None true"),
        (None, 81, "None Some(81) false"),
        (Some("v1"), 80, "Some(RoundRobin) None true"),
        (Some("v1"), 81, "Some(RoundRobin) Some(81) false"),
        (Some("v2"), 80, "None Some(2) false"),
        (Some("v2"), 81, "None Some(81) false"),
        (Some("v3"), 80, "Some(Random) None true"),
    ] {
        assert_eq!(balancer_of(&policy(&snapshot, "shop", subset, port)), expected, "{subset:?} {port}");
    }
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    assert!(snapshot.traffic_rule("shop", service, Some("v9")).1.is_none());
}

fn limited(namespace: &str, name: &str, host: &str, requests: u32, more: &str) -> String {
    let spec =
        format!("host: '{host}', trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: {requests}}}}}}}{more}");
    rule(namespace, name, 2020, &spec)
}

fn limit(rules: &str, client: &str) -> Option<u32> {
    let snapshot = mesh(&format!("{SHOP}{rules}")).snapshot();
    policy(&snapshot, client, None, 80).pool.map(|pool| pool.max_requests)
}

#[test]
fn the_clients_namespace_counts_before_the_services_before_the_root() {
    let full = "cart.shop.svc.cluster.local";
    let client = limited("web", "a", full, 1, "");
    let service = limited("shop", "b", "cart", 2, "");
    let root = limited("istio-system", "c", full, 3, "");
    assert_eq!(limit(&format!("{client}{service}{root}"), "web"), Some(1));
    assert_eq!(limit(&format!("{client}{service}{root}"), "shop"), Some(2));
    assert_eq!(limit(&format!("{client}{service}{root}"), "else"), Some(2));
    assert_eq!(limit(&format!("{client}{root}"), "else"), Some(3));
    assert_eq!(limit(&client, "else"), None);
    // To a client of the root namespace what is there for everybody does not come first.
    assert_eq!(limit(&format!("{service}{root}"), "istio-system"), Some(2));
    let private = limited("istio-system", "c", full, 3, ", exportTo: [.]");
    assert_eq!(limit(&format!("{service}{private}"), "istio-system"), Some(3));
    assert_eq!(limit(&private, "else"), None);
}

#[test]
fn the_most_specific_host_counts_and_what_is_not_exported_does_not() {
    let rules = [
        limited("shop", "a", "*.local", 1, ""),
        limited("shop", "b", "*.shop.svc.cluster.local", 2, ""),
        limited("shop", "c", "cart", 3, ""),
    ];
    assert_eq!(limit(&rules.concat(), "shop"), Some(3));
    assert_eq!(limit(&rules[..2].concat(), "shop"), Some(2));
    assert_eq!(limit(&rules[0], "shop"), Some(1));
    let hidden = limited("shop", "c", "cart", 3, ", exportTo: [.]");
    assert_eq!(limit(&format!("{}{hidden}", rules[1]), "else"), Some(2));
    assert_eq!(limit(&format!("{}{hidden}", rules[1]), "shop"), Some(3));
}

#[test]
fn several_of_a_namespace_for_a_host_are_one() {
    let yaml = [
        SHOP.to_owned(),
        rule(
            "shop",
            "young",
            2022,
            "host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {v: young}}, {name: v2, labels: {v: young}}]",
        ),
        rule("shop", "old", 2020, "host: cart.shop.svc.cluster.local, subsets: [{name: v1, labels: {v: old}}]"),
        rule("shop", "middle", 2021, "host: cart, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}"),
    ];
    let mut mesh = mesh(&yaml.concat());
    let snapshot = mesh.snapshot();
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    let rule = snapshot.traffic_rule("shop", service, None).0.unwrap();
    let label = |name: &str| rule.subset(name).unwrap().labels["v"].to_string();
    assert_eq!((label("v1"), label("v2")), ("old".to_owned(), "young".to_owned()));
    assert_eq!(rule.policy.all.load_balancer.as_ref().unwrap().algorithm, Algorithm::RoundRobin);
    let names: Vec<_> = rule.resources.iter().map(|resource| resource.name.to_string()).collect();
    assert_eq!(names, ["old", "middle", "young"]);
    for (at, name) in ["old", "middle", "young"].into_iter().enumerate() {
        mesh.apply([Change::Remove(culvert_api::ObjectRef::new(culvert_api::Kind::DestinationRule, "shop", name))]);
        let snapshot = mesh.snapshot();
        let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
        assert_eq!(
            snapshot.traffic_rule("shop", service, None).0.map(|rule| rule.resources.len()),
            (at < 2).then(|| 2 - at)
        );
    }
}

#[test]
fn a_rule_for_some_clients_counts_for_them_and_before_others() {
    let rules = [
        limited("web", "all", "cart.shop.svc.cluster.local", 1, ""),
        limited("web", "some", "cart.shop.svc.cluster.local", 2, ", workloadSelector: {matchLabels: {app: front}}"),
    ];
    let snapshot = mesh(&format!("{SHOP}{}", rules.concat())).snapshot();
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    let limit = |namespace: &str, labels: &Labels| {
        let rule: &Arc<_> = snapshot.destination_rule(namespace, labels, service)?;
        Some(rule.policy_for(None, 80).pool?.max_requests)
    };
    let front: Labels = [("app".into(), "front".into()), ("x".into(), "y".into())].into();
    assert_eq!(limit("web", &front), Some(2));
    assert_eq!(limit("web", &Labels::new()), Some(1));
    assert_eq!(limit("shop", &front), None);
}

#[test]
fn options_change_what_hosts_are_meant() {
    let mut changed: Mesh = mesh(&format!("{SHOP}{}", limited("shop", "a", "cart", 1, "")));
    changed.apply(objects(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
         data: {mesh: 'culvert: {cluster-domain: my.domain}'}\n",
    ));
    let snapshot = changed.snapshot();
    let service = snapshot.services_by_hostname("cart.shop.svc.my.domain").next().unwrap();
    assert!(snapshot.traffic_rule("shop", service, None).0.is_some());
}
