//! Connections that carry no requests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_tests::{eventually, objects};
use rustls::pki_types::ServerName;

use crate::support::echo;
use crate::support::peer::tls;
use crate::world::{CART_ANY, CART_ECHO, CART_TLS, LIMIT, World};

#[test]
fn bytes_go_both_ways_and_each_end_is_carried_over() -> Result<()> {
    let world = World::new()?;
    for length in [0, 1, 100_000, 3_000_000] {
        let exchanged = world.in_client(CART_ECHO, |to| echo::exchange(to, length, LIMIT))?;
        exchanged.map_err(|error| error.context(format!("{length} bytes\n{}", world.logs())))?;
    }
    Ok(())
}

#[test]
fn where_nothing_is_declared_bytes_that_are_no_request_are_carried_as_they_are() -> Result<()> {
    let world = World::new()?;
    // The first of them can be neither a request nor TLS.
    let begun = Instant::now();
    world.in_client(CART_ANY, |to| echo::exchange(to, 100_000, LIMIT))??;
    ensure!(begun.elapsed() < Duration::from_secs(4), "it waited for more");
    Ok(())
}

#[test]
fn what_is_cut_off_at_the_destination_is_reset_at_the_client() -> Result<()> {
    let mut world = World::new()?;
    let mut stream = world.in_client(CART_ECHO, |to| echo::open(to, LIMIT))??;
    world.far.kill()?;
    let ended = stream.read(&mut [0]);
    ensure!(matches!(&ended, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{ended:?}");
    Ok(())
}

#[test]
fn a_connection_to_what_cannot_be_reached_is_refused_with_the_reason() -> Result<()> {
    let world = World::new()?;
    let absent = objects::service("shop", "absent", &["10.96.0.3".parse()?], "nobody", &[("tcp", 90, 90)]);
    let label = "metadata:\n  labels: {istio.io/use-waypoint: wp}\n";
    world.directory.write("absent", &[absent.replacen("metadata:\n", label, 1)])?;
    let refused = eventually(LIMIT, "a refusal by the waypoint", || {
        let opened = world.in_client("10.96.0.3:90", |to| echo::open(to, LIMIT)).ok()?;
        let log = world.waypoint.log();
        let line = log.lines().find(|line| line.contains("absent") && line.contains("error="))?.to_owned();
        opened.is_err().then_some(line)
    });
    refused.map(drop).map_err(|error| error.context(world.logs()))
}

#[test]
fn policies_on_the_service_decide_by_who_the_client_is() -> Result<()> {
    let deny = objects::authorization_policy(
        "shop",
        "no-client",
        "targetRefs: [{kind: Service, name: cart}]\naction: DENY\nrules:\n- from:\n  - source: {principals: [cluster.local/ns/shop/sa/client]}",
    );
    let world = World::with(&[deny], &[])?;
    for to in [CART_ECHO, CART_ANY] {
        ensure!(world.in_client(to, |to| echo::exchange(to, 10, LIMIT))?.is_err(), "{to} is not denied");
    }
    ensure!(world.echoed("cart") == 0);
    let line =
        |log: &str| log.lines().any(|line| line.contains("shop/no-client") && line.contains("dst.service=\"cart.shop"));
    let log = eventually(LIMIT, "the reason in the log", || Some(world.waypoint.log()).filter(|log| line(log)));
    log.map(drop).map_err(|error| error.context(world.logs()))
}

#[test]
fn tls_is_routed_by_the_server_name_that_it_asks_for() -> Result<()> {
    let routes = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-name, namespace: shop}
spec:
  hosts: [cart.shop.svc.cluster.local]
  tls:
  - match: [{sniHosts: [cart.shop.svc.cluster.local]}]
    route: [{destination: {host: bare.shop.svc.cluster.local, port: {number: 90}}}]
";
    let world = World::with(&[routes.to_owned()], &[])?;
    for (name, pod) in [("cart.shop.svc.cluster.local", "other"), ("else.example", "cart")] {
        let before = world.echoed(pod);
        let hello = client_hello(name)?;
        let echoed = world.in_client(CART_TLS, |to| -> Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
            stream.set_read_timeout(Some(LIMIT))?;
            // In two pieces, the name in the second.
            let (first, second) = hello.split_at(60);
            stream.write_all(first)?;
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(second)?;
            let mut echoed = vec![0; hello.len()];
            stream.read_exact(&mut echoed)?;
            Ok(echoed)
        })??;
        ensure!(echoed == hello, "{name}: other bytes came back");
        ensure!(world.echoed(pod) == before + 1, "{name} did not come to {pod}\n{}", world.logs());
    }
    Ok(())
}

/// What a client that asks for `name` sends first.
fn client_hello(name: &str) -> Result<Vec<u8>> {
    let mut client = rustls::ClientConnection::new(tls(None)?, ServerName::try_from(name.to_owned())?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
