//! What changes while connections are open.

mod support;
