//! `cargo xtask crds`: what is generated in `deploy/`.
//!
//! The tests that compare these files with the types write them when `CULVERT_BLESS` is set, so there is one code for
//! both, and this task stays free of the Kubernetes crates.

use anyhow::Result;

use crate::run::{cargo, run};

pub(crate) fn write() -> Result<()> {
    run(cargo().args(["test", "--quiet", "--package", "culvert-api", "--test", "crds"]).env("CULVERT_BLESS", "1"))
}
