//! Where a connection goes.

pub mod outbound;
