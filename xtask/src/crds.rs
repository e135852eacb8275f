//! `cargo xtask crds`: what is generated in `deploy/`.
//!
//! The tests that compare these files with the types write them when `CULVERT_BLESS` is set, so there is one code for
//! both, and this task stays free of the Kubernetes crates.

use anyhow::Result;

use crate::run::{cargo, run};

pub(crate) fn write() -> Result<()> {
    // As all of the workspace is built, or the Kubernetes crates would be built again with fewer features.
    let tests = ["test", "--quiet", "--workspace"];
    run(cargo().args(tests).args(["--test", "crds"]).env("CULVERT_BLESS", "1"))?;
    run(cargo().args(tests).args(["--bin", "culvertctl", "the_charts_schema"]).env("CULVERT_BLESS", "1"))
}
