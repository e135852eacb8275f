//! `connectionPool`, `outlierDetection`, `tls`, `retryBudget` and `proxyProtocol`.

use std::time::Duration;

use culvert_api::networking::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, OutlierDetection,
    ProxyProtocol, ProxyProtocolVersion, RetryBudget as WrittenBudget, TcpSettings,
};

use super::super::Findings;
use super::super::values::{duration, shown};
use crate::traffic::outliers::OutlierSettings;
use crate::traffic::policy::{ClientTls, ConnectionPool, Keepalive, RetryBudget, TlsFiles};

/// A duration; what is none has no effect.
fn time(field: &str, name: &str, written: Option<&String>, findings: &mut Findings<'_>) -> Option<Duration> {
    let written = written.filter(|written| !written.is_empty())?;
    let read = duration(written);
    if read.is_none() {
        findings.error(format!("{field}.{name}"), format!("{} is no duration, such as 10s: ignored", shown(written)));
    }
    read
}

/// A number; 0 and absent say nothing, what is negative has no effect.
fn limit(field: &str, name: &str, written: Option<i32>, findings: &mut Findings<'_>) -> Option<u32> {
    let read = u32::try_from(written?);
    if read.is_err() {
        findings.error(format!("{field}.{name}"), "is negative: ignored");
    }
    read.ok().filter(|number| *number != 0)
}

pub(super) fn pool(field: &str, written: &ConnectionPoolSettings, findings: &mut Findings<'_>) -> ConnectionPool {
    let default = ConnectionPool::default();
    let tcp = written.tcp.clone().unwrap_or_default();
    let http = written.http.clone().unwrap_or_default();
    let TcpSettings { max_connections, connect_timeout, tcp_keepalive, max_connection_duration, idle_timeout } = &tcp;
    let field_of_tcp = format!("{field}.tcp");
    let field = format!("{field}.http");
    let zero_is_none = |time: Option<Duration>, default| match time {
        Some(time) if time.is_zero() => None,
        Some(time) => Some(time),
        None => default,
    };
    let HttpSettings {
        http1_max_pending_requests,
        http2_max_requests,
        max_requests_per_connection,
        max_retries,
        idle_timeout: http_idle,
        h2_upgrade_policy,
        use_client_protocol,
        max_concurrent_streams,
        http2_keep_alive,
    } = &http;
    if *h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) && *use_client_protocol == Some(true) {
        let message = "goes not with useClientProtocol: the protocol of the client is kept";
        findings.error(format!("{field}.h2UpgradePolicy"), message);
    }
    let keepalive = tcp_keepalive.as_ref().map(|keepalive| Keepalive {
        probes: keepalive.probes.filter(|probes| *probes != 0),
        time: time(&field_of_tcp, "tcpKeepalive.time", keepalive.time.as_ref(), findings),
        interval: time(&field_of_tcp, "tcpKeepalive.interval", keepalive.interval.as_ref(), findings),
    });
    let h2_keepalive = http2_keep_alive.as_ref().and_then(|keepalive| {
        let interval = time(&field, "http2KeepAlive.interval", keepalive.interval.as_ref(), findings)?;
        let timeout = time(&field, "http2KeepAlive.timeout", keepalive.timeout.as_ref(), findings);
        (!interval.is_zero()).then_some((interval, timeout.unwrap_or(Duration::from_secs(10))))
    });
    let tcp_field = &field_of_tcp;
    ConnectionPool {
        max_connections: limit(tcp_field, "maxConnections", *max_connections, findings)
            .unwrap_or(default.max_connections),
        connect_timeout: time(tcp_field, "connectTimeout", connect_timeout.as_ref(), findings)
            .filter(|time| !time.is_zero()),
        keepalive,
        max_connection_duration: time(tcp_field, "maxConnectionDuration", max_connection_duration.as_ref(), findings)
            .filter(|time| !time.is_zero()),
        tcp_idle: zero_is_none(time(tcp_field, "idleTimeout", idle_timeout.as_ref(), findings), default.tcp_idle),
        max_pending: limit(&field, "http1MaxPendingRequests", *http1_max_pending_requests, findings)
            .unwrap_or(default.max_pending),
        max_requests: limit(&field, "http2MaxRequests", *http2_max_requests, findings).unwrap_or(default.max_requests),
        max_retries: limit(&field, "maxRetries", *max_retries, findings).unwrap_or(default.max_retries),
        max_requests_per_connection: limit(&field, "maxRequestsPerConnection", *max_requests_per_connection, findings)
            .unwrap_or(0),
        http_idle: zero_is_none(time(&field, "idleTimeout", http_idle.as_ref(), findings), default.http_idle),
        upgrade: *h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) && *use_client_protocol != Some(true),
        use_client_protocol: use_client_protocol.unwrap_or(false),
        max_concurrent_streams: limit(&field, "maxConcurrentStreams", *max_concurrent_streams, findings),
        h2_keepalive,
    }
}

pub(super) fn outliers(field: &str, written: &OutlierDetection, findings: &mut Findings<'_>) -> OutlierSettings {
    let default = OutlierSettings::default();
    let deprecated = limit(field, "consecutiveErrors", Some(written.consecutive_errors), findings);
    if written.consecutive_local_origin_failures.is_some() && !written.split_external_local_origin_errors {
        let message = "has no effect without splitExternalLocalOriginErrors: set it";
        findings.warning(format!("{field}.consecutiveLocalOriginFailures"), message);
    }
    let mut percent = |name: &str, written: Option<i32>, default: u32| match written.map(u32::try_from) {
        None => default,
        Some(Ok(percent @ 0..=100)) => percent,
        Some(_) => {
            findings.error(format!("{field}.{name}"), format!("is not from 0 to 100: read as {default}"));
            default
        }
    };
    let max_ejection_percent =
        percent("maxEjectionPercent", written.max_ejection_percent, default.max_ejection_percent);
    let min_health_percent = percent("minHealthPercent", written.min_health_percent, default.min_health_percent);
    let mut statuses = Vec::new();
    for (at, status) in written.outlier_detection_http_error_codes.iter().enumerate().take(500) {
        match u16::try_from(*status) {
            Ok(status @ 100..=599) => statuses.push(status),
            _ => findings.error(
                format!("{field}.outlierDetectionHttpErrorCodes[{at}]"),
                format!("{status} is not from 100 to 599: left out"),
            ),
        }
    }
    let some = |time: Option<Duration>, default| time.filter(|time| !time.is_zero()).unwrap_or(default);
    OutlierSettings {
        consecutive_errors: written.consecutive_5xx_errors.unwrap_or(default.consecutive_errors),
        consecutive_gateway_errors: written
            .consecutive_gateway_errors
            .or(deprecated)
            .unwrap_or(default.consecutive_gateway_errors),
        consecutive_local_failures: written
            .consecutive_local_origin_failures
            .unwrap_or(default.consecutive_local_failures),
        split_local: written.split_external_local_origin_errors,
        interval: some(time(field, "interval", written.interval.as_ref(), findings), default.interval),
        base_ejection: some(
            time(field, "baseEjectionTime", written.base_ejection_time.as_ref(), findings),
            default.base_ejection,
        ),
        max_ejection_percent,
        min_health_percent,
        error_statuses: (!statuses.is_empty()).then_some(statuses),
    }
}

/// TLS; `None` for what the tunnel does already.
pub(super) fn tls(field: &str, written: &ClientTlsSettings, findings: &mut Findings<'_>) -> Option<ClientTls> {
    match written.mode {
        // The tunnel to a workload of the mesh has its own mTLS, whatever is said here.
        ClientTlsMode::Disable => return None,
        ClientTlsMode::IstioMutual => {
            if written.sni.is_empty() && written.subject_alt_names.is_empty() {
                return None;
            }
            let message = "ISTIO_MUTUAL is what waypoints do anyway: sni and subjectAltNames have no effect";
            findings.warning(format!("{field}.mode"), message);
            return None;
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
    let some = |text: &String| (!text.is_empty()).then(|| text.as_str().into());
    let mutual = written.mode == ClientTlsMode::Mutual;
    let (files, secret) = (!written.client_certificate.is_empty(), !written.credential_name.is_empty());
    if mutual && !secret && (!files || written.private_key.is_empty()) {
        let message = "MUTUAL has no certificate to show: set credentialName, or clientCertificate and privateKey";
        findings.error(format!("{field}.mode"), message);
    }
    if !mutual && files {
        findings.warning(format!("{field}.clientCertificate"), "is not shown with mode SIMPLE: use MUTUAL");
    }
    if secret && (files || !written.ca_certificates.is_empty()) {
        findings.error(format!("{field}.credentialName"), "goes not with files: it counts, and they do not");
    }
    if written.insecure_skip_verify == Some(true) && !written.subject_alt_names.is_empty() {
        findings.error(format!("{field}.insecureSkipVerify"), "leaves subjectAltNames without effect: remove one");
    }
    let certificate = || {
        let (certificate, key) = (written.client_certificate.as_str().into(), written.private_key.as_str().into());
        TlsFiles { certificate, key }
    };
    Some(ClientTls {
        certificate: (mutual && files && !secret).then(certificate),
        credential_name: some(&written.credential_name),
        roots: some(&written.ca_certificates).filter(|_| !secret),
        revoked: some(&written.ca_crl),
        names: written.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        sni: some(&written.sni),
        insecure: written.insecure_skip_verify.unwrap_or(false),
    })
}

pub(super) fn retry_budget(field: &str, written: &WrittenBudget, findings: &mut Findings<'_>) -> Option<RetryBudget> {
    let percent = written.percent.unwrap_or(20.0);
    if !(0.0..=100.0).contains(&percent) {
        findings.error(format!("{field}.percent"), "is not from 0 to 100: the budget has no effect");
        return None;
    }
    if written.budget_interval.is_some() {
        let message = "has no effect: requests count as long as they are under way";
        findings.warning(format!("{field}.budgetInterval"), message);
    }
    Some(RetryBudget { percent, minimum: written.min_retry_concurrency.unwrap_or(3) })
}

pub(super) fn proxy_protocol(written: &ProxyProtocol) -> u8 {
    match written.version {
        ProxyProtocolVersion::V1 => 1,
        ProxyProtocolVersion::V2 => 2,
    }
}
