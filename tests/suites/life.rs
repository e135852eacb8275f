//! The whole life of an enrolled pod on this kernel; `cargo xtask kernels` proves the same on others.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

use culvert_tests::{AgentConfig, selftest};

#[test]
fn a_pod_is_enrolled_served_protected_and_let_go() {
    selftest::whole_life(|directory| AgentConfig::new(directory.path()), |fact| println!("{fact}")).unwrap();
}
