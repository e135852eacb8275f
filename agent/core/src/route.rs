//! Where a connection goes, and, at a waypoint, a request.
//!
//! | module | what it is for |
//! |---|---|
//! | [`outbound`] | L4: what a pod dialled, and where that goes |
//! | [`decide`] | L7: what becomes of a request, or of a connection, at a waypoint |
//! | [`table`] | the rules of one service, and the index that finds the first that matches |
//! | [`http`], [`l4`] | a rule for requests, and one for connections |
//! | [`gateway_api`] | what the routes of Gateway API are told about themselves |
//! | [`normalize`] | one spelling for each path |
//! | [`request`], [`matcher`], [`pattern`] | what a request says, and what it has to look like |
//! | [`headers`], [`template`], [`rewrite`], [`redirect`] | what it is turned into |
//! | [`fault`], [`retry`], [`cors`] | what goes wrong on purpose, what is tried again, which web pages may ask |

pub mod cors;
pub mod decide;
pub mod fault;
pub mod gateway_api;
pub mod headers;
pub mod http;
pub mod l4;
pub mod matcher;
pub mod normalize;
pub mod outbound;
pub mod pattern;
pub mod redirect;
pub mod request;
pub mod retry;
pub mod rewrite;
pub mod table;
pub mod template;
#[cfg(test)]
pub(crate) mod tests;
