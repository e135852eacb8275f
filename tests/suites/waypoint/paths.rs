//! The way that connections take, and who is seen where.

use anyhow::{Result, ensure};
use culvert_tests::{eventually, objects};

use crate::support::echo;
use crate::world::{BARE_ECHO, CART_ECHO, CART_ECHO_V6, ECHO, LIMIT, World, write_pods};

/// The labels of connections that the mesh encrypts.
const MUTUAL: (&str, &str) = ("connection_security_policy", "mutual_tls");

fn principal(name: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
}

#[test]
fn a_bound_service_is_reached_through_the_waypoint_whose_identity_the_destination_sees() -> Result<()> {
    let world = World::new()?;
    world.in_client(CART_ECHO, |to| echo::exchange(to, 300_000, LIMIT))??;
    let (client, wp, cart) = (principal("client"), principal("wp"), principal("cart"));
    let opened = "istio_tcp_connections_opened_total";
    let metrics = [
        ("the client's agent sends it to the waypoint", world.near.metrics()?, "source", &client, &wp),
        ("the waypoint knows both", world.waypoint.metrics()?, "waypoint", &client, &cart),
        ("the destination's agent sees the waypoint", world.far.metrics()?, "destination", &wp, &cart),
    ];
    for (what, page, reporter, source, destination) in metrics {
        let labels =
            [("reporter", reporter), ("source_principal", source), ("destination_principal", destination), MUTUAL];
        let count = culvert_tests::daemon::sum(&page, opened, &labels);
        ensure!(count == 1.0, "{what}: {count} connections of {labels:?}\n{page}");
    }
    let labels = [("reporter", "waypoint"), ("destination_service", "cart.shop.svc.cluster.local")];
    ensure!(world.waypoint.metric("istio_tcp_received_bytes_total", &labels)? == 300_000.0);
    Ok(())
}

#[test]
fn curl_is_answered_by_the_application_through_both_nodes_and_the_waypoint() -> Result<()> {
    let world = World::new()?;
    let asked = ["-sS", "--max-time", "10", "-w", "%{http_code} %{http_version} %{num_connects}\n"];
    let twice = [&asked[..], &["http://10.96.0.1/a", "http://10.96.0.1/b"]].concat();
    let said = world.pod("client").output(LIMIT, "curl", &twice)?.success()?;
    // The application sees who dialled it: the waypoint. Both requests went over one connection.
    let wp = world.pod("wp").ipv4();
    ensure!(said == format!("cart saw {wp}\n200 1.1 1\ncart saw {wp}\n200 1.1 0\n"), "{said}\n{}", world.logs());
    let labels = |source: &str, destination: &str| {
        [
            ("source_principal", principal(source)),
            ("destination_principal", principal(destination)),
            ("response_code", "200".into()),
        ]
    };
    let page = world.waypoint.metrics()?;
    let labels = labels("client", "cart");
    let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, &**value)).collect();
    ensure!(culvert_tests::daemon::sum(&page, "istio_requests_total", &labels) == 2.0, "{page}");
    let h2 = [&asked[..], &["--http2-prior-knowledge", "http://10.96.0.1/"]].concat();
    let said = world.pod("client").output(LIMIT, "curl", &h2)?.success()?;
    ensure!(said == format!("cart saw {wp}\n200 2 1\n"), "{said}\n{}", world.logs());
    Ok(())
}

#[test]
fn a_workload_that_is_bound_itself_is_reached_through_the_waypoint_by_its_own_address() -> Result<()> {
    let world = World::new()?;
    let (cart, wp) = (world.pod("cart").ipv4(), world.pod("wp").ipv4());
    let http = format!("{cart}:8080");
    let client = world.pod("client").ipv4();
    ensure!(world.get(&http)?.body == format!("cart saw {client}\n"), "it is not bound yet");
    world.directory.write("waypoint", &objects::waypoint("shop", "wp", "all"))?;
    write_pods(&world.topology, &world.directory, |pod, object| match pod.name() {
        "cart" => object.replacen("labels: {", "labels: {istio.io/use-waypoint: wp, ", 1),
        _ => object,
    })?;
    let through = || (world.get(&http).ok()?.body == format!("cart saw {wp}\n")).then_some(());
    eventually(LIMIT, "the way through the waypoint", through).map_err(|error| error.context(world.logs()))?;
    world.in_client(&format!("{cart}:{ECHO}"), |to| echo::exchange(to, 100_000, LIMIT))??;
    let streams = [("reporter", "waypoint"), ("destination_workload", "cart")];
    ensure!(world.waypoint.metric("istio_tcp_connections_opened_total", &streams)? == 1.0);
    Ok(())
}

#[test]
fn the_waypoint_is_reached_over_ipv6_too() -> Result<()> {
    let world = World::new()?;
    world.in_client(CART_ECHO_V6, |to| echo::exchange(to, 1000, LIMIT))??;
    let wp = format!("[{}]:15008", world.pod("wp").ipv6());
    let logged = || world.near.log().contains(&format!("dst.addr={wp}")).then_some(());
    eventually(LIMIT, "the line of the connection", logged).map_err(|error| error.context(world.logs()))
}

#[test]
fn a_service_that_is_not_bound_is_reached_without_the_waypoint() -> Result<()> {
    let world = World::new()?;
    world.in_client(BARE_ECHO, |to| echo::exchange(to, 1000, LIMIT))??;
    ensure!(world.waypoint.metric("istio_tcp_connections_opened_total", &[])? == 0.0);
    let labels = [("source_principal", &*principal("client")), ("destination_principal", &*principal("other"))];
    ensure!(world.far.metric("istio_tcp_connections_opened_total", &labels)? == 1.0);
    Ok(())
}
