//! Envoy as Istio configures it for a waypoint: tunnels end at one listener, and what is in them goes on to another inside
//! the process, which routes it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_tests::{Pod, Process, Scope, eventually};
use serde_json::{Value, json};

use super::Routes;
use crate::setup;

const START: Duration = Duration::from_secs(15);
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Starts it in `pod`, with the certificate at `leaf`, in front of `server`.
pub(super) fn start(
    scope: &Scope,
    pod: &Pod,
    port: u16,
    server: SocketAddr,
    leaf: &Path,
    routes: Routes,
) -> Result<Process> {
    let listen = SocketAddr::new(pod.ipv4(), port);
    let file = scope.directory().join("envoy.json");
    fs::write(&file, serde_json::to_vec_pretty(&configuration(listen, server, leaf, routes))?)?;
    let mut command = pod.place().command(setup::envoy())?;
    command.arg("--config-path").arg(&file);
    // Without hot restart there is no shared memory to be left behind.
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
    let mut process = Process::spawn("envoy", command)?;
    let listening = pod.run(|| {
        eventually(START, "Envoy to listen", || match process.try_wait() {
            Ok(None) => TcpStream::connect_timeout(&listen, Duration::from_secs(1)).is_ok().then_some(true),
            _ => Some(false),
        })
    })?;
    if !listening.with_context(|| process.output())? {
        bail!("Envoy did not start: {}", process.output());
    }
    Ok(process)
}

fn configuration(listen: SocketAddr, server: SocketAddr, leaf: &Path, routes: Routes) -> Value {
    let tunnels = manager(
        json!({
            "stat_prefix": "tunnels",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        }),
        &json!([{
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "inside",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                "timeout": "0s",
            },
        }]),
    );
    let requests = manager(json!({ "stat_prefix": "requests", "codec_type": "AUTO" }), &table(routes));
    let socket = json!({
        "socket_address": { "address": listen.ip().to_string(), "port_value": listen.port() },
    });
    json!({
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }],
        "static_resources": {
            "listeners": [
                {
                    "name": "tunnels",
                    "address": socket,
                    "filter_chains": [{ "filters": [tunnels], "transport_socket": tls(leaf) }],
                },
                { "name": "inside", "internal_listener": {}, "filter_chains": [{ "filters": [requests] }] },
            ],
            "clusters": [inside(), application(server)],
        },
    })
}

fn manager(mut config: Value, routes: &Value) -> Value {
    config["@type"] = json!(MANAGER);
    config["route_config"] = json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] });
    config["http_filters"] = json!([{
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    }]);
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": config })
}

fn table(routes: Routes) -> Value {
    let plain = json!({ "match": { "prefix": "/" }, "route": { "cluster": "application", "timeout": "0s" } });
    match routes {
        Routes::Plain => json!([plain]),
        Routes::Hundred => {
            let other = |at| {
                json!({
                    "match": { "prefix": format!("/service-{at}/") },
                    "route": { "cluster": "application", "timeout": "0s" },
                })
            };
            (1..100).map(other).chain([plain]).collect()
        }
        Routes::Weights => json!([{
            "match": { "prefix": "/" },
            "route": {
                "timeout": "0s",
                "weighted_clusters": { "clusters": [
                    { "name": "application", "weight": 90 },
                    {
                        "name": "application",
                        "weight": 10,
                        "request_headers_to_add": [{
                            "header": { "key": "x-canary", "value": "yes" },
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                        }],
                    },
                ] },
            },
        }]),
    }
}

fn inside() -> Value {
    let address = json!({ "envoy_internal_address": { "server_listener_name": "inside" } });
    json!({
        "name": "inside",
        "type": "STATIC",
        "load_assignment": endpoint("inside", &address),
        "transport_socket": {
            "name": "envoy.transport_sockets.internal_upstream",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
                "transport_socket": {
                    "name": "envoy.transport_sockets.raw_buffer",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
                    },
                },
            },
        },
    })
}

fn application(server: SocketAddr) -> Value {
    let address = json!({
        "socket_address": { "address": server.ip().to_string(), "port_value": server.port() },
    });
    json!({ "name": "application", "type": "STATIC", "load_assignment": endpoint("application", &address) })
}

fn endpoint(cluster: &str, address: &Value) -> Value {
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }] })
}

/// TLS 1.3 with certificates on both sides.
fn tls(leaf: &Path) -> Value {
    let file = |suffix: &str| json!({ "filename": format!("{}-{suffix}.pem", leaf.display()) });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
                "alpn_protocols": ["h2"],
                "tls_certificates": [{ "certificate_chain": file("cert"), "private_key": file("key") }],
                "validation_context": { "trusted_ca": file("root") },
            },
        },
    })
}
