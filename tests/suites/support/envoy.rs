//! A real Envoy, at either end of a tunnel.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_tests::{Pod, Process, Scope, eventually};
use serde_json::{Value, json};

use super::authority::LeafFiles;

const START: Duration = Duration::from_secs(15);

/// Envoy in a pod; ended when dropped.
pub(crate) struct Envoy {
    process: Process,
}

impl Envoy {
    /// Accepts plain connections on `listen` and carries each through an HBONE tunnel to `target`, which `peer` serves
    /// and whose identity must be `expected`.
    pub(crate) fn client(
        scope: &Scope,
        pod: &Pod,
        listen: SocketAddr,
        peer: SocketAddr,
        target: SocketAddr,
        expected: &str,
        leaf: &LeafFiles,
    ) -> Result<Self> {
        let proxy = json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "out",
                "cluster": "peer",
                "tunneling_config": { "hostname": target.to_string() },
            },
        });
        let cluster = json!({
            "name": "peer",
            "type": "STATIC",
            "load_assignment": endpoint("peer", peer),
            "typed_extension_protocol_options": http2(),
            "transport_socket": tls("UpstreamTlsContext", leaf, expected),
        });
        Self::start(scope, pod, listen, &json!({ "filters": [proxy] }), &cluster)
    }

    /// Terminates HBONE tunnels on `listen` and carries what is in them to `application`, for `expected` alone.
    pub(crate) fn server(
        scope: &Scope,
        pod: &Pod,
        listen: SocketAddr,
        application: SocketAddr,
        expected: &str,
        leaf: &LeafFiles,
    ) -> Result<Self> {
        let route = json!({
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "application",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                "timeout": "0s",
            },
        });
        let manager = json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "in",
                "codec_type": "HTTP2",
                "http2_protocol_options": { "allow_connect": true, "max_concurrent_streams": 100 },
                "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
                "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
            },
        });
        let chain = json!({ "filters": [manager], "transport_socket": tls("DownstreamTlsContext", leaf, expected) });
        let cluster = json!({
            "name": "application",
            "type": "STATIC",
            "load_assignment": endpoint("application", application),
        });
        Self::start(scope, pod, listen, &chain, &cluster)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    fn start(scope: &Scope, pod: &Pod, listen: SocketAddr, chain: &Value, cluster: &Value) -> Result<Self> {
        let config = json!({
            "static_resources": {
                "listeners": [{ "name": "in", "address": address(listen), "filter_chains": [chain] }],
                "clusters": [cluster],
            },
        });
        let file = scope.directory().join(format!("envoy-{}.json", listen.port()));
        fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let mut command = pod.place().command(binary()?)?;
        command.arg("--config-path").arg(&file);
        // Without hot restart there is no shared memory to be left behind.
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        command.args(["--component-log-level", "upstream:info,connection:info,http2:info"]);
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
        Ok(Self { process })
    }
}

/// Where `cargo xtask setup` puts it: below the build directory that holds this test.
fn binary() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let found = this.ancestors().map(|directory| directory.join("tools/envoy/envoy/_bin/envoy"));
    found.into_iter().find(|path| path.is_file()).context("Envoy is not there: cargo xtask setup")
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn endpoint(cluster: &str, at: SocketAddr) -> Value {
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(at) } }] }] })
}

fn http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

/// TLS 1.3 with certificates on both sides; Envoy's client would offer 1.2 at most.
fn tls(side: &str, leaf: &LeafFiles, expected: &str) -> Value {
    let mut context = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}"),
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": { "filename": leaf.certificate },
                "private_key": { "filename": leaf.key },
            }],
            "validation_context": {
                "trusted_ca": { "filename": leaf.root },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": expected } }],
            },
        },
    });
    if side == "DownstreamTlsContext" {
        context["require_client_certificate"] = json!(true);
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}
