//! What becomes of requests: through a client's node, the waypoint and the destination's node, and back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_tests::daemon::sum;
use culvert_tests::{eventually, http};

use crate::world::{CART_HTTP, CART_HTTP_V6, LIMIT, World};

/// Rules of the cart, each for a path.
const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  http:
  - match: [{uri: {exact: /redirect}}]
    redirect: {uri: /elsewhere}
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 418, body: {string: teapot}}
  - match: [{uri: {exact: /abort}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 503}}
    route: [{destination: {host: cart}}]
  - match: [{uri: {exact: /delay}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 0.5s}}
    route: [{destination: {host: cart}}]
  - match: [{uri: {exact: /other}}]
    route: [{destination: {host: bare, port: {number: 80}}}]
  - match: [{uri: {exact: /nowhere}}]
    route: [{destination: {host: nowhere}}]
  - match: [{uri: {exact: /both}}]
    route:
    - {destination: {host: cart}, weight: 50}
    - {destination: {host: bare, port: {number: 80}}, weight: 50}
  - match: [{method: {exact: GET}}]
    route: [{destination: {host: cart}}]
";

impl World {
    fn get_path(&self, path: &str) -> Result<http::Response> {
        self.in_client(CART_HTTP, |to| http::get(to, path, LIMIT))?
    }
}

#[test]
fn requests_are_routed_by_what_they_ask_for() -> Result<()> {
    let world = World::with(&[RULES.to_owned()], &[])?;
    for (path, status, body) in [
        ("/", 200, "cart saw "),
        ("/other", 200, "other saw "),
        ("/direct", 418, "teapot"),
        ("/redirect", 301, ""),
        ("/abort", 503, "fault filter abort"),
        ("/nowhere", 503, ""),
    ] {
        let answer = world.get_path(path)?;
        ensure!(answer.status == status && answer.body.starts_with(body), "{path}: {answer:?}\n{}", world.logs());
    }
    ensure!(world.get(CART_HTTP_V6)?.body.starts_with("cart saw "), "{}", world.logs());
    let posted = world.in_client(CART_HTTP, |to| http::request("POST", to, "/", LIMIT))??;
    ensure!(posted.status == 404, "{posted:?}");
    let start = Instant::now();
    ensure!(world.get_path("/delay")?.status == 200 && start.elapsed() >= Duration::from_millis(500));

    let mut seen = [0_u32; 2];
    for _ in 0..60 {
        let body = world.get_path("/both")?.body;
        seen[usize::from(body.starts_with("other"))] += 1;
    }
    ensure!(seen.iter().all(|count| *count >= 10), "{seen:?} of 60 by halves");

    let page = world.waypoint.metrics()?;
    let client = ("source_principal", "spiffe://cluster.local/ns/shop/sa/client");
    let of = |code, flags| [("reporter", "waypoint"), client, ("response_code", code), ("response_flags", flags)];
    for (labels, count) in
        [(of("418", "-"), 1.0), (of("503", "FI"), 1.0), (of("503", "NC"), 1.0), (of("404", "NR"), 1.0)]
    {
        ensure!(sum(&page, "istio_requests_total", &labels) == count, "{labels:?}\n{page}");
    }
    let whole = [("destination_workload", "cart"), ("request_protocol", "http"), ("response_code", "200")];
    ensure!(sum(&page, "istio_requests_total", &whole) >= 3.0, "{page}");
    Ok(())
}

#[test]
fn a_connection_carries_one_request_after_the_other_while_routes_change() -> Result<()> {
    let world = World::new()?;
    world.in_client(CART_HTTP, |to| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        for _ in 0..3 {
            ensure!(ask(&mut stream, to)?.starts_with("HTTP/1.1 200 OK"));
        }
        world.directory.write("rules", &[RULES.replace("[{method: {exact: GET}}]", "[{method: {exact: PUT}}]")])?;
        // On the same connection.
        eventually(LIMIT, "the new routes", || ask(&mut stream, to).ok()?.starts_with("HTTP/1.1 404").then_some(()))
    })??;
    Ok(())
}

/// The head of an answer, whose body is read too.
fn ask(stream: &mut TcpStream, to: SocketAddr) -> Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {to}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the connection ended");
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Ok(head.to_owned());
        }
    }
}
