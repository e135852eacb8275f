//! The proxies of an enrolled pod.
//!
//! | module | what it is for |
//! |---|---|
//! | [`control`] | the proxies of every pod of the node |
//! | [`pod`] | what a pod's proxies share, and their life |
//! | `outbound` | what the pod's applications dial: a tunnel, or a plain connection from inside the pod |
//! | `inbound` | tunnels that peers open to the pod, and the judgement of their streams |
//! | `plaintext` | connections that reach the pod in plaintext |
//! | `limits` | what the clients of one pod may take of the agent |
//! | [`live`] | the live connections, and the means to end them |
//! | [`recheck`] | asking again whether they are allowed, whenever something changed |
//! | `pump` | copying between two plain connections |

pub(crate) mod accept;
pub mod control;
mod inbound;
mod limits;
pub mod live;
mod outbound;
mod plaintext;
pub mod pod;
mod pump;
pub mod recheck;
mod resolve;
mod served;
