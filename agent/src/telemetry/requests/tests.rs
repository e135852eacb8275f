use super::*;
use crate::telemetry::{AccessLog, ConnectionInfo, Direction, Telemetry};

fn labels() -> RequestLabels {
    let ConnectionInfo { source, source_identity, destination, service, security, .. } =
        crate::telemetry::tests::info(Direction::Inbound);
    let (code, flags) = (200, Flags::NONE);
    RequestLabels {
        source,
        source_identity,
        destination,
        service,
        security,
        grpc: false,
        code,
        grpc_status: None,
        flags,
    }
}

fn sizes(millis: u64) -> RequestSizes {
    RequestSizes {
        duration: Duration::from_millis(millis),
        request_bytes: 7,
        response_bytes: 2_000,
        ..Default::default()
    }
}

fn lines(telemetry: &Telemetry, prefix: &str) -> Vec<String> {
    let text = telemetry.encode().unwrap();
    text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn names_and_labels_are_istios() {
    let telemetry = Telemetry::new(AccessLog::off());
    telemetry.requests().series(&labels()).add(&sizes(3));
    let expected = [
        r#"istio_requests_total{reporter="waypoint""#,
        r#"source_workload="web""#,
        r#"source_canonical_service="web""#,
        r#"source_canonical_revision="v1""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://cluster.local/ns/shop/sa/web""#,
        r#"source_app="web""#,
        r#"source_version="v1""#,
        r#"source_cluster="Kubernetes""#,
        r#"destination_service="cart.shop.svc.cluster.local""#,
        r#"destination_service_namespace="shop""#,
        r#"destination_service_name="cart""#,
        r#"destination_workload="cart""#,
        r#"destination_canonical_service="cart""#,
        r#"destination_canonical_revision="v2""#,
        r#"destination_workload_namespace="shop""#,
        r#"destination_principal="spiffe://cluster.local/ns/shop/sa/cart""#,
        r#"destination_app="cart""#,
        r#"destination_version="v2""#,
        r#"destination_cluster="Kubernetes""#,
        r#"request_protocol="http""#,
        r#"response_code="200""#,
        r#"grpc_response_status="""#,
        r#"response_flags="-""#,
        r#"connection_security_policy="mutual_tls"} 1"#,
    ]
    .join(",");
    assert_eq!(lines(&telemetry, "istio_requests_total"), [expected]);
}

#[test]
fn what_requests_took_is_counted_by_size() {
    let telemetry = Telemetry::new(AccessLog::off());
    let series = telemetry.requests().series(&labels());
    series.add(&sizes(3));
    series.add(&sizes(70));
    let of = |metric: &str| -> Vec<String> {
        let lines = lines(&telemetry, metric);
        lines.iter().map(|line| line.rsplit(['{', '}']).next().unwrap().trim().to_owned()).collect()
    };
    let durations = of("istio_request_duration_milliseconds");
    assert_eq!(durations[..2], ["73.0", "2"], "sum and count");
    let expected = ["0", "0", "1", "1", "1", "1", "2"].iter().chain(&["2"; 13]);
    assert!(durations[2..].iter().eq(expected.copied()), "{durations:?}");
    assert_eq!(of("istio_response_bytes")[..2], ["4000.0", "2"]);
    assert_eq!(of("istio_request_bytes")[..2], ["14.0", "2"]);
}

#[test]
fn messages_are_counted_of_grpc_only() {
    let telemetry = Telemetry::new(AccessLog::off());
    telemetry.requests().series(&labels()).add(&sizes(1));
    assert!(lines(&telemetry, "istio_request_messages_total").is_empty());
    let grpc = RequestLabels { grpc: true, grpc_status: Some(14), ..labels() };
    let sizes = RequestSizes { request_messages: 2, response_messages: 3, ..sizes(1) };
    telemetry.requests().series(&grpc).add(&sizes);
    let line = lines(&telemetry, "istio_request_messages_total").pop().unwrap();
    assert!(line.contains(r#"request_protocol="grpc""#) && line.contains(r#"grpc_response_status="14""#), "{line}");
    assert!(line.ends_with(" 2") && lines(&telemetry, "istio_response_messages_total")[0].ends_with(" 3"));
}

#[test]
fn the_same_labels_are_the_same_series_and_any_other_another() {
    let table = RequestTable::new();
    let series = table.series(&labels());
    assert!(Arc::ptr_eq(&series, &table.series(&labels())));
    for other in [
        RequestLabels { code: 503, ..labels() },
        RequestLabels { flags: Flags::NO_ROUTE, ..labels() },
        RequestLabels { grpc_status: Some(0), ..labels() },
        RequestLabels { destination: None, ..labels() },
        RequestLabels { source: None, ..labels() },
        RequestLabels { service: None, ..labels() },
        RequestLabels { security: SecurityPolicy::Unknown, ..labels() },
    ] {
        assert!(!series.is_of(&other) && !Arc::ptr_eq(&series, &table.series(&other)), "{other:?}");
    }
}

#[test]
fn beyond_the_limit_requests_are_counted_without_names() {
    let table = RequestTable::bounded(1);
    table.series(&labels()).add(&sizes(1));
    table.series(&RequestLabels { code: 404, ..labels() }).add(&sizes(1));
    table.series(&RequestLabels { code: 500, ..labels() }).add(&sizes(1));
    assert_eq!(table.rest.total.load(Ordering::Relaxed), 2);
    assert_eq!(table.series(&labels()).total.load(Ordering::Relaxed), 1);
}

#[test]
fn an_agent_that_sees_no_requests_has_no_such_metrics() {
    let telemetry = Telemetry::new(AccessLog::off());
    assert!(lines(&telemetry, "# TYPE istio_request").is_empty());
}
