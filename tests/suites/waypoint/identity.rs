//! On whose behalf a waypoint calls, who is believed to say so, and who is refused for not having come through it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_tests::{Place, eventually, objects};

use crate::support::authority::Authority;
use crate::support::echo;
use crate::support::peer::{connect, status, tls};
use crate::world::{CART_ECHO, CART_HTTP, ECHO, HBONE, LIMIT, World};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// The node of the cart takes from the client's account alone.
fn clients_alone() -> String {
    let spec = "selector: {matchLabels: {app: cart}}\nrules:\n- from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]\n";
    objects::authorization_policy("shop", "clients-alone", spec)
}

/// What the cart's node says to a tunnel stream that `account` asks for from `place`, on behalf of `client`.
fn ask(world: &World, place: &Place, account: &str, client: Option<&str>) -> Result<u16> {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let trusted = tls(Some(&Authority::open(&world.config.ca)?.issue(&identity)?))?;
    let cart = world.pod("cart").ipv4();
    let mut request = connect(&format!("{cart}:{ECHO}"));
    if let Some(client) = client {
        request.headers_mut().insert("culvert-client-identity", client.parse()?);
    }
    status(place, SocketAddr::new(cart, HBONE), &trusted, request)
}

#[test]
fn a_node_believes_a_waypoint_of_the_service_and_nobody_else_on_whose_behalf_it_calls() -> Result<()> {
    let world = World::with(&[clients_alone()], &[])?;
    // Its pod has no agent that would capture what is sent from there.
    let waypoint = world.pod("wp").place();
    let node = world.topology.node(1).place();
    for (why, place, account, client, expected) in [
        ("the waypoint alone is not the client", &waypoint, "wp", None, 401),
        ("the waypoint calls for the client", &waypoint, "wp", Some(CLIENT), 200),
        ("the waypoint calls for another", &waypoint, "wp", Some("spiffe://cluster.local/ns/shop/sa/other"), 401),
        ("what it says is no identity", &waypoint, "wp", Some("client"), 400),
        ("its account at another address", &node, "wp", Some(CLIENT), 401),
        ("another account at its address", &waypoint, "other", Some(CLIENT), 401),
        ("another account", &node, "other", Some(CLIENT), 401),
        ("the client itself", &node, "client", None, 200),
    ] {
        let answered = ask(&world, place, account, client)?;
        ensure!(answered == expected, "{why}: {answered}\n{}", world.logs());
    }
    Ok(())
}

#[test]
fn a_policy_of_the_node_names_the_client_of_connections_and_of_requests() -> Result<()> {
    let world = World::with(&[clients_alone()], &[])?;
    world.in_client(CART_ECHO, |to| echo::exchange(to, 10, LIMIT))??;
    let answer = world.get(CART_HTTP)?;
    ensure!(answer.status == 200, "{answer:?}\n{}", world.logs());
    let others = clients_alone().replace("sa/client", "sa/other");
    world.directory.write("documents", &[others])?;
    let refused = || world.in_client(CART_ECHO, |to| echo::exchange(to, 10, LIMIT)).ok()?.is_err().then_some(());
    eventually(LIMIT, "the node to refuse another client's connections", refused)?;
    let answer = world.get(CART_HTTP)?;
    ensure!(answer.status == 503, "{answer:?}\n{}", world.logs());
    Ok(())
}

#[test]
fn a_service_that_requires_its_waypoint_is_closed_to_everybody_else() -> Result<()> {
    let world = World::new()?;
    let (waypoint, node) = (world.pod("wp").place(), world.topology.node(1).place());
    let cart = SocketAddr::new(world.pod("cart").ipv4(), ECHO);
    let plaintext = || node.run(|| echo::exchange(cart, 10, LIMIT));
    ensure!(ask(&world, &node, "client", None)? == 200 && plaintext()?.is_ok(), "{}", world.logs());
    let namespace = objects::namespace("shop", true).replacen(
        "metadata:\n",
        "metadata:\n  annotations: {culvert.dev/require-waypoint: \"true\"}\n",
        1,
    );
    world.directory.write("namespace", &[namespace])?;
    eventually(LIMIT, "the node to require the waypoint", || {
        (ask(&world, &node, "client", None).ok()? == 401).then_some(())
    })?;
    ensure!(plaintext()?.is_err(), "reached in plaintext\n{}", world.logs());
    ensure!(ask(&world, &waypoint, "wp", None)? == 200, "{}", world.logs());
    ensure!(ask(&world, &node, "wp", None)? == 401, "the waypoint's account alone\n{}", world.logs());
    let told = "takes connections from waypoint shop/wp alone";
    ensure!(world.far.log().lines().any(|line| line.contains(told)), "{}", world.logs());
    Ok(())
}
