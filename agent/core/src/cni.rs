//! The network configurations of the Container Network Interface: where our plugin goes in them, and how it is taken
//! out again. Text in, text out: what people wrote stays as they wrote it, byte for byte.

mod conflist;
mod json;

pub use conflist::{ConflistError, Merged, PLUGIN_TYPE, check, is_configuration, merge, unmerge};
pub use json::member;
