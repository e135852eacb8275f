//! The lines of the log and of the access log.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use tracing::Level;

use super::{Written, info};
use crate::telemetry::line::Line;
use crate::telemetry::logging::testing::logged;
use crate::telemetry::logging::{LevelError, LogFormat};
use crate::telemetry::{AccessLog, ConnectionInfo, Direction, Outcome, ResponseFlags, SecurityPolicy, Telemetry};

fn all(_: Level) -> bool {
    true
}

fn not_debug(level: Level) -> bool {
    level < Level::DEBUG
}

/// What is written for `act`, without the times.
fn written(format: LogFormat, enabled: fn(Level) -> bool, act: impl FnOnce(&Telemetry)) -> Vec<String> {
    let to = Written::default();
    let telemetry = Telemetry::new(AccessLog::to(format, enabled, to.clone()));
    act(&telemetry);
    telemetry.access_log().flush(Duration::from_secs(10));
    to.text().lines().map(|line| line.split_once('\t').map_or(line, |(_, rest)| rest).to_owned()).collect()
}

const WHO: &str = "src.addr=10.0.1.2:51234 src.workload=\"web-1\" src.namespace=\"shop\" \
                   src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" src.cluster=\"Kubernetes\" \
                   dst.addr=10.0.2.3:15008 dst.hbone_addr=10.0.2.3:8080 dst.service=\"cart.shop.svc.cluster.local\" \
                   dst.workload=\"cart-1\" dst.namespace=\"shop\" \
                   dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\" dst.cluster=\"Kubernetes\"";

#[test]
fn lines_are_ztunnels() {
    let lines = written(LogFormat::Text, all, |telemetry| {
        let record = telemetry.connection(info(Direction::Outbound));
        record.add_request_bytes(7);
        record.add_response_bytes(11);
        record.close(Outcome::complete());
        let record = telemetry.connection(info(Direction::Inbound));
        record.add_request_bytes(7);
        record.add_response_bytes(11);
        record.close(Outcome::failed(ResponseFlags::Denied, "policy shop/deny: \"no\"\n"));
        telemetry.early_failure(
            Direction::Inbound,
            "[fd00::1]:5".parse().unwrap(),
            "[fd00::2]:6".parse().unwrap(),
            "TLS 1.2",
        );
    });
    assert_eq!(
        lines,
        [
            format!("debug\taccess\tconnection opened\t{WHO} direction=\"outbound\""),
            format!(
                "info\taccess\tconnection complete\t{WHO} direction=\"outbound\" bytes_sent=7 bytes_recv=11 \
                 duration=\"0ms\""
            ),
            format!("debug\taccess\tconnection opened\t{WHO} direction=\"inbound\""),
            format!(
                "error\taccess\tconnection complete\t{WHO} direction=\"inbound\" bytes_sent=11 bytes_recv=7 \
                 duration=\"0ms\" error=\"policy shop/deny: \\\"no\\\"\\n\""
            ),
            "warn\taccess\tconnection failed\tsrc.addr=[fd00::1]:5 dst.addr=[fd00::2]:6 direction=\"inbound\" \
             error=\"TLS 1.2\""
                .to_owned(),
        ]
    );
}

#[test]
fn json_lines_have_the_same_fields() {
    let lines = written(LogFormat::Json, not_debug, |telemetry| {
        telemetry.connection(info(Direction::Outbound)).close(Outcome::error("tab\tquote\" back\\slash"));
    });
    let mut line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let time = line["time"].take();
    assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
    let expected = serde_json::json!({
        "level": "error", "time": null, "scope": "access", "message": "connection complete",
        "src.addr": "10.0.1.2:51234", "src.workload": "web-1", "src.namespace": "shop",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/web", "src.cluster": "Kubernetes",
        "dst.addr": "10.0.2.3:15008", "dst.hbone_addr": "10.0.2.3:8080",
        "dst.service": "cart.shop.svc.cluster.local", "dst.workload": "cart-1", "dst.namespace": "shop",
        "dst.identity": "spiffe://cluster.local/ns/shop/sa/cart", "dst.cluster": "Kubernetes",
        "direction": "outbound", "bytes_sent": 0, "bytes_recv": 0, "duration": "0ms",
        "error": "tab\tquote\" back\\slash",
    });
    assert_eq!(line, expected);
}

#[test]
fn plaintext_names_no_identity_and_what_is_unknown_is_left_out() {
    let lines = written(LogFormat::Text, not_debug, |telemetry| {
        let plaintext = ConnectionInfo {
            security: SecurityPolicy::Unknown,
            source: None,
            hbone_target: None,
            service: None,
            ..info(Direction::Inbound)
        };
        telemetry.connection(plaintext).close(Outcome::complete());
    });
    let line = &lines[0];
    assert!(!line.contains("identity") && !line.contains("src.workload") && !line.contains("hbone"), "{line}");
}

#[test]
fn the_level_switches_lines_off() {
    let lines = written(
        LogFormat::Text,
        |level| level == Level::ERROR,
        |telemetry| {
            telemetry.connection(info(Direction::Outbound)).close(Outcome::complete());
            telemetry.connection(info(Direction::Outbound)).close(Outcome::error("broken"));
        },
    );
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("error\t"), "{}", lines[0]);
}

/// A writer that waits for a word before it takes anything.
struct Stuck(Receiver<()>, Written);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_that_cannot_keep_up_loses_lines_and_never_waits() {
    let (release, wait) = channel();
    let to = Written::default();
    let log = AccessLog::queued(LogFormat::Text, not_debug, Stuck(wait, to.clone()), 8);
    let telemetry = Telemetry::new(log.clone());
    for _ in 0..1000 {
        telemetry.connection(info(Direction::Outbound)).close(Outcome::complete());
    }
    assert!(log.dropped() > 100, "{}", log.dropped());
    let metrics = telemetry.encode().unwrap();
    assert!(metrics.contains(&format!("culvert_access_log_dropped_lines_total {}", log.dropped())));
    drop(release);
    log.flush(Duration::from_secs(10));
    let written = to.text().lines().filter(|line| line.contains("complete")).count() as u64;
    assert_eq!(written + log.dropped(), 1000);
    assert!(to.text().contains("lines dropped: they come too fast\tcount="), "{}", to.text());
}

#[test]
fn one_event_is_one_line_in_both_formats() {
    let text = logged(LogFormat::Text, "info", |_| {
        tracing::warn!(target: "hbone", peer = %"10.0.0.1:80", odd = %"a b", count = 3, name = "x y", "two\nlines");
        tracing::debug!("not shown");
    });
    let (_, line) = text.split_once('\t').unwrap();
    assert_eq!(line, "warn\thbone\ttwo\\nlines\tpeer=10.0.0.1:80 odd=\"a b\" count=3 name=\"x y\"\n");
    let text = logged(LogFormat::Json, "info", |_| tracing::info!(target: "t", ok = true, said = %"\u{1}\"", "hi"));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["level"], "info");
    assert_eq!(line["said"], "\u{1}\"");
    assert_eq!(line["ok"], true);
}

#[test]
fn the_level_changes_while_running_for_one_target_or_all() {
    let text = logged(LogFormat::Text, "info", |handle| {
        tracing::debug!(target: "one", "1");
        handle.set("one:debug").unwrap();
        tracing::debug!(target: "one", "2");
        tracing::debug!(target: "other", "3");
        assert!(handle.level().contains("one=debug") && handle.level().contains("info"), "{}", handle.level());
        handle.set("error").unwrap();
        tracing::warn!(target: "one", "4");
        assert!(matches!(handle.set("verbose"), Err(LevelError::Unreadable(_))));
        assert!(matches!(handle.set("one:loud"), Err(LevelError::Unreadable(_))));
        assert_eq!(handle.level(), "error", "a bad level changes nothing");
    });
    let messages: Vec<_> = text.lines().filter_map(|line| line.split('\t').nth(3)).collect();
    assert_eq!(messages, ["2"]);
}

#[test]
fn times_are_rfc_3339() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
    ] {
        let mut text = String::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Line::new(&mut text, LogFormat::Text, time, Level::INFO, "t", "m").end();
        assert_eq!(text, format!("{expected}\tinfo\tt\tm\n"));
    }
}

#[test]
fn a_flood_of_denied_connections_is_counted_whole_and_written_in_part() {
    let denied = || Outcome::failed(ResponseFlags::Denied, "no");
    let mut counted = String::new();
    let lines = written(LogFormat::Text, not_debug, |telemetry| {
        for _ in 0..500 {
            telemetry.connection(info(Direction::Inbound)).close(denied());
        }
        // Its own pods' misfortunes are not a peer's to cause.
        telemetry.connection(info(Direction::Outbound)).close(denied());
        counted = telemetry.encode().unwrap();
    });
    let of = |direction: &str| lines.iter().filter(|line| line.contains(direction)).count();
    // A slow machine may see a second pass.
    assert!((1..=60).contains(&of("inbound")), "{} lines", of("inbound"));
    assert_eq!(of("outbound"), 1);
    let failed =
        counted.lines().find(|line| line.contains("connections_failed_total") && line.contains("\"destination\""));
    assert!(failed.is_some_and(|line| line.ends_with(" 500")), "{failed:?}");
}
