//! A waypoint between two nodes: what is asked of it, by whom, and what comes out at the other side.
//!
//! | module | what it is for |
//! |---|---|
//! | `world` | two nodes with agents, a waypoint in a pod, a client, servers |
//! | `paths` | the way that connections take, and who is seen where |
//! | `streams` | connections that carry no requests |
//! | `identity` | on whose behalf it calls, and who has to come through it |
//! | `judged` | policies, tokens and providers in front of a service |
//! | `refusals` | what a waypoint does not take |
//! | `kubernetes` | objects from an API server |
//! | `life` | what changes while connections are open, and the waypoint's end |
//! | `requests` | what becomes of requests |

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

#[path = "waypoint/identity.rs"]
mod identity;
#[path = "waypoint/judged.rs"]
mod judged;
#[path = "waypoint/kubernetes.rs"]
mod kubernetes;
#[path = "waypoint/life.rs"]
mod life;
#[path = "waypoint/paths.rs"]
mod paths;
#[path = "waypoint/refusals.rs"]
mod refusals;
#[path = "waypoint/requests.rs"]
mod requests;
#[path = "waypoint/streams.rs"]
mod streams;
mod support;
#[path = "waypoint/world.rs"]
mod world;
