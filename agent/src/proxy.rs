//! The proxies of an enrolled pod; waypoints use parts of them.
//!
//! | module | what it is for |
//! |---|---|
//! | [`control`] | the proxies of every pod of the node |
//! | [`pod`] | what a pod's proxies share, and their life |
//! | `outbound` | what the pod's applications dial: a tunnel, or a plain connection from inside the pod |
//! | `inbound` | tunnels that peers open to the pod, and the judgement of their streams |
//! | `baggage` | how a workload describes itself to its peers |
//! | `plaintext` | connections that reach the pod in plaintext |
//! | `tunnels` | the tunnels that peers open to a proxy |
//! | `limits` | what the clients of one pod may take of the agent |
//! | [`live`] | the live connections, and the means to end them |
//! | [`recheck`] | asking again whether they are allowed, whenever something changed |
//! | `on_trial` | what policies on trial would have decided |
//! | `pump` | copying between two plain connections |

pub(crate) mod accept;
pub(crate) mod baggage;
pub mod control;
mod inbound;
pub(crate) mod limits;
pub mod live;
pub(crate) mod on_trial;
mod outbound;
mod plaintext;
pub mod pod;
pub(crate) mod pump;
pub mod recheck;
pub(crate) mod resolve;
mod served;
pub(crate) mod tunnels;
