//! What a waypoint does not take.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_tests::{eventually, http};

use crate::support::authority::Authority;
use crate::support::echo;
use crate::support::peer::{connect, status, tls};
use crate::world::{CART_ECHO, HBONE, LIMIT, World, write_cart};

#[test]
fn a_peer_that_asks_for_what_is_not_bound_to_the_waypoint_is_refused_and_told_so_in_the_log() -> Result<()> {
    let world = World::new()?;
    let leaf = Authority::open(&world.config.ca)?.issue("spiffe://cluster.local/ns/shop/sa/client")?;
    let (client, waypoint) = (world.pod("client").place(), SocketAddr::new(world.pod("wp").ipv4(), HBONE));
    let (trusted, nobody) = (tls(Some(&leaf))?, tls(None)?);
    let cart = world.pod("cart").ipv4();
    // Not as the application, whose connections are captured: from the node.
    let node = world.topology.node(1).place();
    let mut told = 0;
    for (authority, expected, reason) in [
        (CART_ECHO.to_owned(), 200, ""),
        ("cart.shop.svc.cluster.local:90".to_owned(), 200, ""),
        ("10.96.0.2:90".to_owned(), 400, "service shop/bare.shop.svc.cluster.local is bound to no waypoint"),
        (format!("{cart}:9000"), 400, "workload shop/cart is bound to no waypoint"),
        ("192.0.2.1:80".to_owned(), 400, "belongs to no service or workload"),
        ("10.96.0.1:1".to_owned(), 503, "has no TCP port 1"),
        ("nobody.example:80".to_owned(), 503, "belongs to no service or workload"),
    ] {
        let answered = status(&node, waypoint, &trusted, connect(&authority))?;
        ensure!(answered == expected, "{authority}: {answered}\n{}", world.logs());
        if expected != 200 {
            told += 1;
            let is_told =
                || world.waypoint.log().lines().any(|line| line.contains("stream refused") && line.contains(reason));
            eventually(LIMIT, reason, || is_told().then_some(()))?;
        }
    }
    ensure!(told == 5);
    let get = ::http::Request::builder().method("GET").uri("https://10.96.0.1:90/").body(())?;
    ensure!(status(&node, waypoint, &trusted, get)? == 400);
    // Who cannot say who it is does not get as far.
    ensure!(status(&client, waypoint, &nobody, connect(CART_ECHO)).is_err());
    ensure!(status(&node, waypoint, &nobody, connect(CART_ECHO)).is_err());
    let stranger = tls(Some(&Authority::unknown()?.issue("spiffe://cluster.local/ns/shop/sa/client")?))?;
    ensure!(status(&node, waypoint, &stranger, connect(CART_ECHO)).is_err());
    Ok(())
}

#[test]
fn a_service_whose_waypoint_is_missing_or_gone_is_refused_and_never_reached_without() -> Result<()> {
    let mut world = World::new()?;
    let refused =
        |world: &World| world.in_client(CART_ECHO, |to| echo::exchange(to, 10, LIMIT)).map(|asked| asked.is_err());
    world.waypoint.kill()?;
    ensure!(refused(&world)?, "reached past a waypoint that is gone");
    write_cart(&world.directory, "nowhere")?;
    let is_missing = || {
        let refused = refused(&world).ok()?;
        let log = world.near.log();
        (refused && log.lines().any(|line| line.contains("nowhere") && line.contains("does not exist"))).then_some(())
    };
    eventually(LIMIT, "the refusal of a waypoint that does not exist", is_missing)?;
    ensure!(world.echoed("cart") == 0);
    Ok(())
}

#[test]
fn a_waypoint_whose_gateway_is_not_there_is_not_ready_and_says_what_is_missing() -> Result<()> {
    let world = World::new()?;
    world.directory.remove("waypoint")?;
    let place = world.pod("wp").place();
    let said = eventually(LIMIT, "the waypoint to be unready", || {
        let ready = place.run(|| http::get(SocketAddr::new([127, 0, 0, 1].into(), 15021), "/healthz/ready", LIMIT));
        ready.ok()?.ok().filter(|answer| answer.status == 503)
    })?;
    ensure!(said.body.contains("there is no waypoint shop/wp"), "{said:?}");
    Ok(())
}
