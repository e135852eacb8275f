//! Names, labels, and what is counted when.

use std::sync::Arc;

use culvert_core::identity::Identity;

use super::{info, workload};
use crate::telemetry::series::SeriesTable;
use crate::telemetry::{
    AccessLog, ConnectionInfo, Direction, Kind, Outcome, ResponseFlags, Sample, SecurityPolicy, Telemetry,
};

fn telemetry() -> Telemetry {
    Telemetry::new(AccessLog::off())
}

/// The lines of `/metrics` that begin with `prefix`, sorted.
fn lines(telemetry: &Telemetry, prefix: &str) -> Vec<String> {
    let text = telemetry.encode().unwrap();
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn value(telemetry: &Telemetry, metric: &str) -> u64 {
    lines(telemetry, metric).iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn names_and_labels_are_istios() {
    let telemetry = telemetry();
    let record = telemetry.connection(info(Direction::Outbound));
    record.add_request_bytes(7);
    record.add_response_bytes(11);
    record.close(Outcome::failed(ResponseFlags::Denied, "no"));
    let labels = |flags: &str| {
        [
            r#"reporter="source""#,
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
            r#"request_protocol="tcp""#,
            &format!(r#"response_flags="{flags}""#),
            r#"connection_security_policy="mutual_tls""#,
        ]
        .join(",")
    };
    assert_eq!(
        lines(&telemetry, "istio_tcp_"),
        [
            format!("istio_tcp_connections_closed_total{{{}}} 1", labels("DENY")),
            format!("istio_tcp_connections_failed_total{{{}}} 1", labels("DENY")),
            format!("istio_tcp_connections_opened_total{{{}}} 1", labels("-")),
            format!("istio_tcp_received_bytes_total{{{}}} 7", labels("-")),
            format!("istio_tcp_sent_bytes_total{{{}}} 11", labels("-")),
            r#"istio_tcp_sockets_open{reporter="destination"} 0"#.to_owned(),
            r#"istio_tcp_sockets_open{reporter="source"} 0"#.to_owned(),
        ]
    );
    assert_eq!(lines(&telemetry, "istio_build"), [r#"istio_build{component="culvert",tag="0.1.0"} 1"#]);
    let text = telemetry.encode().unwrap();
    let types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let expected = [
        "istio_tcp_sockets_open gauge",
        "istio_build gauge",
        "workload_manager_active_proxy_count gauge",
        "workload_manager_pending_proxy_count gauge",
        "workload_manager_proxies_started counter",
        "workload_manager_proxies_stopped counter",
        "istio_dns_upstream_request_duration_seconds histogram",
        "istio_on_demand_dns counter",
        "istio_tcp_connections_opened counter",
        "istio_tcp_connections_closed counter",
        "istio_tcp_connections_failed counter",
        "istio_tcp_received_bytes counter",
        "istio_tcp_sent_bytes counter",
        "culvert_metrics_series_folded counter",
        "culvert_access_log_dropped_lines counter",
        "culvert_peer_events counter",
    ];
    assert_eq!(types, expected);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_unknown_says_so() {
    let telemetry = telemetry();
    let nobody = ConnectionInfo {
        source: None,
        source_identity: None,
        destination: None,
        destination_identity: None,
        service: None,
        security: SecurityPolicy::Unknown,
        ..info(Direction::Inbound)
    };
    telemetry.connection(nobody).close(Outcome::complete());
    let line = lines(&telemetry, "istio_tcp_connections_opened_total").remove(0);
    assert_eq!(line.matches(r#"="unknown""#).count(), 20, "{line}");
    assert!(line.contains(r#"reporter="destination""#), "{line}");
}

#[test]
fn bytes_show_while_the_connection_lives() {
    let telemetry = telemetry();
    let record = telemetry.connection(info(Direction::Inbound));
    record.add_request_bytes(100);
    assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 100);
    assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 0);
    record.add_request_bytes(1);
    record.close(Outcome::complete());
    assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 101);
    assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 1);
    assert_eq!(value(&telemetry, "istio_tcp_connections_failed_total"), 0);
}

#[test]
fn a_record_that_is_dropped_is_closed_once() {
    let telemetry = telemetry();
    drop(telemetry.connection(info(Direction::Inbound)));
    telemetry.connection(info(Direction::Inbound)).close(Outcome::complete());
    assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 2);
}

#[test]
fn label_sets_that_print_alike_are_one_series() {
    let table = SeriesTable::bounded(100);
    let first = table.series(&info(Direction::Inbound));
    // The pod was updated: another object with the same labels, and the peer proved the same identity again.
    let again = table.series(&info(Direction::Inbound));
    assert!(Arc::ptr_eq(&first, &again));
    let sibling = ConnectionInfo { source: Some(workload("web-2", "web", "v1")), ..info(Direction::Inbound) };
    assert!(Arc::ptr_eq(&first, &table.series(&sibling)), "pods of one deployment share their labels");

    let mut others = vec![
        info(Direction::Outbound),
        ConnectionInfo { security: SecurityPolicy::Unknown, ..info(Direction::Inbound) },
        ConnectionInfo { service: None, ..info(Direction::Inbound) },
        ConnectionInfo { source: Some(workload("web-1", "web", "v9")), ..info(Direction::Inbound) },
        ConnectionInfo { source: None, ..info(Direction::Inbound) },
    ];
    let impostor = Arc::new(Identity::new("cluster.local", "shop", "other"));
    others.push(ConnectionInfo { source_identity: Some(impostor), ..info(Direction::Inbound) });
    for (n, other) in others.iter().enumerate() {
        assert!(!Arc::ptr_eq(&first, &table.series(other)), "case {n}");
    }
}

#[test]
fn label_sets_are_bounded_and_the_rest_is_counted_together() {
    let table = SeriesTable::bounded(3);
    let of =
        |n: usize| ConnectionInfo { source: Some(workload("p", &format!("w{n}"), "v1")), ..info(Direction::Inbound) };
    let held: Vec<_> = (0..3).map(|n| table.series(&of(n))).collect();
    let (fourth, fifth) = (table.series(&of(4)), table.series(&of(5)));
    assert!(Arc::ptr_eq(&fourth, &fifth));
    drop(held);
    assert!(!Arc::ptr_eq(&table.series(&of(6)), &fourth), "label sets without connections make room");
}

#[test]
fn sockets_are_counted_while_open() {
    let telemetry = telemetry();
    let socket = telemetry.socket(Direction::Outbound);
    assert_eq!(value(&telemetry, r#"istio_tcp_sockets_open{reporter="source"}"#), 1);
    drop(socket);
    assert_eq!(value(&telemetry, r#"istio_tcp_sockets_open{reporter="source"}"#), 0);
}

#[test]
fn a_connection_costs_less_than_300_bytes() {
    let record = std::mem::size_of::<crate::telemetry::connection::Open>();
    assert!(record <= 300, "{record} bytes");
}

#[test]
fn other_modules_add_what_they_count() {
    let telemetry = telemetry();
    let sample = |reason: &str, value| Sample { labels: vec![("reason", reason.to_owned())], value };
    telemetry.register_samples("culvert_redirect_refused", "help", Kind::Counter, move || {
        vec![sample("no-listener", 3), sample("a \"quoted\" one", 4)]
    });
    telemetry.register_samples("culvert_pool_connections", "help", Kind::Gauge, || {
        vec![Sample { labels: vec![], value: 5 }]
    });
    assert_eq!(
        lines(&telemetry, "culvert_redirect"),
        [
            r#"culvert_redirect_refused_total{reason="a \"quoted\" one"} 4"#,
            r#"culvert_redirect_refused_total{reason="no-listener"} 3"#,
        ]
    );
    let pool = lines(&telemetry, "culvert_pool");
    assert!(pool.len() == 1 && pool[0].ends_with(" 5"), "{pool:?}");
}
