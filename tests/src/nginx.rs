//! An ordinary server: nginx, saying which address its client came from.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::deadline::eventually;
use crate::process::Process;
use crate::scope::Scope;
use crate::topology::Pod;

const START: Duration = Duration::from_secs(10);

/// The file that is served slowly, at [`SLOW_PATH`].
const SLOW_BYTES: usize = 1 << 20;

/// Answers at 10 kB/s for as long as the connection stands (about 100 s).
pub const SLOW_PATH: &str = "/slow";

/// nginx in a pod, on one port of all its addresses; ended when dropped.
///
/// `/` answers `POD saw ADDRESS`, `/text` what it was started with, [`SLOW_PATH`] trickles.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
}

impl Nginx {
    /// Starts nginx and waits until it listens.
    pub fn start(scope: &Scope, pod: &Pod, port: u16, text: &str) -> Result<Self> {
        let directory = scope.directory().join(format!("nginx-{}", pod.name()));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("slow"), text.bytes().cycle().take(SLOW_BYTES).collect::<Vec<_>>())?;
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration(&directory, pod.name(), port, text))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = pod.place().command("/usr/sbin/nginx")?;
        command.arg("-c").arg(&file).arg("-p").arg(&directory).args(["-e", "stderr"]);
        let mut process = Process::spawn("nginx", command)?;
        // By loopback: it listens on all addresses, and loopback is never steered.
        let listening = pod.run(|| {
            eventually(START, "nginx to listen", || {
                let ended = process.try_wait().ok().flatten().is_some();
                let local = SocketAddr::from(([127, 0, 0, 1], port));
                let connected = TcpStream::connect_timeout(&local, Duration::from_secs(1)).is_ok();
                (connected || ended).then_some(connected)
            })
        })?;
        if !listening.with_context(|| process.output())? {
            anyhow::bail!("nginx did not start: {}", process.output());
        }
        Ok(Self { _process: process })
    }
}

fn configuration(directory: &Path, name: &str, port: u16, text: &str) -> String {
    let directory = directory.display();
    format!(
        "\
daemon off;
master_process off;
worker_processes 1;
user root;
pid {directory}/pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  keepalive_timeout 3600s;
  default_type text/plain;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 0.0.0.0:{port} backlog=4096 reuseport;
    listen [::]:{port} backlog=4096 ipv6only=on reuseport;
    location = / {{ return 200 \"{name} saw $remote_addr\\n\"; }}
    location = /text {{ return 200 \"{text}\\n\"; }}
    location = {SLOW_PATH} {{ root {directory}; limit_rate 10k; }}
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::topology::Topology;

    #[test]
    fn nginx_says_which_address_its_client_came_from() {
        let mut topology = Topology::new(1).unwrap();
        topology.add_pod(1, "shop", "client").unwrap();
        topology.add_pod(1, "shop", "server").unwrap();
        let (client, server) = (topology.pod("client"), topology.pod("server"));
        let _nginx = Nginx::start(topology.scope(), server, 8080, "a text").unwrap();
        for (from, to) in client.addresses().into_iter().zip(server.addresses()) {
            let to = SocketAddr::new(to, 8080);
            let answer = client.run(|| http::get(to, "/", START)).unwrap().unwrap();
            assert_eq!(answer.body, format!("server saw {from}\n"));
        }
    }
}
