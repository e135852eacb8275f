//! A waypoint between two nodes: what is asked of it, by whom, and what comes out at the other side.
//!
//! | module | what it is for |
//! |---|---|
//! | `world` | two nodes with agents, a waypoint in a pod, a client, servers |
//! | `refusals` | what a waypoint does not take |

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

#[path = "waypoint/refusals.rs"]
mod refusals;
mod support;
#[path = "waypoint/world.rs"]
mod world;
