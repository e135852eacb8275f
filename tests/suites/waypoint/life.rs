//! What changes while connections are open, and the waypoint's end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::{eventually, objects};

use crate::support::authority::Authority;
use crate::support::echo;
use crate::support::peer::{DATA, END_STREAM, Frame, HEADERS, Raw, connect, connect_frame, frame, status, tls};
use crate::world::{CART_ECHO, CART_HTTP, HBONE, LIMIT, World, write_cart};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[test]
fn connections_end_when_a_policy_denies_them_and_others_do_not() -> Result<()> {
    let world = World::new()?;
    let mut stream = world.in_client(CART_ECHO, |to| echo::open(to, LIMIT))??;
    let deny = |principal: &str| {
        let rule = format!("rules:\n- from:\n  - source: {{principals: [cluster.local/ns/shop/sa/{principal}]}}");
        objects::authorization_policy(
            "shop",
            principal,
            &format!("targetRefs: [{{kind: Service, name: cart}}]\naction: DENY\n{rule}"),
        )
    };
    world.directory.write("policies", &[deny("somebody")])?;
    let seen = || world.waypoint.admin("/config_dump/policies").ok()?.body.contains("somebody").then_some(());
    eventually(LIMIT, "the policy to be known", seen)?;
    echo::ping(&mut stream)?;
    world.directory.write("policies", &[deny("client")])?;
    let ended = stream.read(&mut [0]);
    ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    let told = || world.waypoint.log().contains("closed due to policy change").then_some(());
    eventually(LIMIT, "the reason in the log", told).map_err(|error| error.context(world.logs()))
}

#[test]
fn connections_end_when_their_service_is_given_to_another_waypoint() -> Result<()> {
    let world = World::new()?;
    let mut stream = world.in_client(CART_ECHO, |to| echo::open(to, LIMIT))??;
    write_cart(&world.directory, "elsewhere")?;
    let ended = stream.read(&mut [0]);
    ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    let listed = || (world.waypoint.admin("/connections").ok()?.body.trim() == "[]").then_some(());
    eventually(LIMIT, "the list to be empty", listed)
}

#[test]
fn requests_over_an_open_connection_are_refused_once_their_service_is_another_waypoints() -> Result<()> {
    let world = World::new()?;
    let leaf = Authority::open(&world.config.ca)?.issue(CLIENT)?;
    // A peer that has not heard: a node of ours would have ended the connection itself.
    let (node, door) = (world.topology.node(1).place(), SocketAddr::new(world.pod("wp").ipv4(), HBONE));
    let mut peer = Raw::connect(&node, door, &tls(Some(&leaf))?)?;
    peer.send(&connect_frame(1, CART_HTTP))?;
    peer.wait_for(|frame| frame.kind == HEADERS)?;
    let mut ask = || -> Result<Frame> {
        peer.send(&frame(DATA, 0, 1, b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n"))?;
        peer.wait_for(|frame| frame.stream == 1 && frame.payload.starts_with(b"HTTP/1.1 "))
    };
    ensure!(ask()?.payload.starts_with(b"HTTP/1.1 200"), "{}", world.logs());
    write_cart(&world.directory, "elsewhere")?;
    let before = world.answered();
    let refused = eventually(LIMIT, "a refusal", || {
        Some(ask()).filter(|answer| !answer.as_ref().is_ok_and(|answer| answer.payload.starts_with(b"HTTP/1.1 200")))
    })??;
    ensure!(refused.payload.starts_with(b"HTTP/1.1 503"), "{refused:?}");
    ensure!(world.answered() == before, "it was dialled anew");
    Ok(())
}

#[test]
fn a_peer_whose_certificate_is_revoked_loses_its_connections_and_gets_no_others() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::open(&world.config.ca)?;
    let (bad, good) = (authority.issue(CLIENT)?, authority.issue(CLIENT)?);
    // From the node, whose connections are not captured.
    let (node, door) = (world.topology.node(1).place(), SocketAddr::new(world.pod("wp").ipv4(), HBONE));
    let tunnel = |leaf| -> Result<Raw> {
        let mut raw = Raw::connect(&node, door, &tls(Some(leaf))?)?;
        raw.send(&connect_frame(1, CART_ECHO))?;
        raw.wait_for(|frame| frame.kind == HEADERS)?;
        Ok(raw)
    };
    let (mut revoked, mut kept) = (tunnel(&bad)?, tunnel(&good)?);
    authority.revoke(&bad)?;
    ensure!(revoked.ends(), "{}", world.logs());
    ensure!(status(&node, door, &tls(Some(&bad))?, connect(CART_ECHO)).is_err(), "let in again");
    kept.send(&frame(DATA, END_STREAM, 1, b"kept"))?;
    ensure!(kept.wait_for(|frame| frame.kind == DATA)?.payload.starts_with(b"kept"));
    Ok(())
}

#[test]
fn an_idle_connection_of_http_ends_in_good_order_with_the_waypoint() -> Result<()> {
    let mut world = World::new()?;
    let mut stream = world.in_client(CART_HTTP, |to| TcpStream::connect_timeout(&to, LIMIT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n")?;
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer)?;
    ensure!(answer[..length].starts_with(b"HTTP/1.1 200"));
    let status = world.waypoint.terminate(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", world.waypoint.log());
    // A reset would be an error.
    ensure!(stream.read(&mut answer)? == 0);
    Ok(())
}

#[test]
fn a_waypoint_that_ends_lets_connections_finish_and_takes_no_more() -> Result<()> {
    let mut world = World::new()?;
    let mut stream = world.in_client(CART_ECHO, |to| echo::open(to, LIMIT))??;
    let listed = world.waypoint.admin("/connections")?.body;
    ensure!(listed.contains("\"waypoint\"") && listed.contains("cart.shop.svc.cluster.local"), "{listed}");
    world.waypoint.admin_post("/quitquitquit")?;
    world.waypoint.wait_for_line(LIMIT, "the end to begin", |line| line.contains("stopping on request"))?;
    // Longer than it goes on as before.
    std::thread::sleep(Duration::from_millis(1500));
    echo::ping(&mut stream)?;
    ensure!(world.in_client(CART_ECHO, |to| echo::open(to, LIMIT))?.is_err(), "something new began");
    drop(stream);
    let status = world.waypoint.terminate(LIMIT)?;
    ensure!(status.success(), "{status}\n{}", world.waypoint.log());
    Ok(())
}
