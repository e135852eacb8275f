//! The role `waypoint`: the proxy that routes and authorizes what is asked of the services that are bound to it.

pub mod body;
pub mod http;
