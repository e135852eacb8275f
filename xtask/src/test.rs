//! `cargo xtask test`: every test, on the real kernel. What CI runs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::run::{cargo, run};
use crate::{ebpf, setup};

/// Builds what the suites start, then runs `cargo test` on the whole workspace with these further arguments.
pub(crate) fn run_all(arguments: &[String]) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("the tests make network namespaces and load eBPF programs: run this as root");
    }
    setup::install(setup::TOPOLOGY)?;
    setup::install(setup::TESTS)?;
    ebpf::build()?;
    // cargo builds binaries only for the tests of their own package; the suites start these two.
    run(cargo().args(["build", "--package", "culvert", "--package", "culvertctl"]))?;

    // One test binary after the other, as cargo does it. Within one, tests run side by side: each has its own names.
    let mut child = cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let mut total = Total::default();
    for line in BufReader::new(child.stdout.take().context("no output of cargo test")?).lines() {
        let line = line?;
        println!("{line}");
        total.add(&line);
    }
    let status = child.wait()?;
    println!("\n{} passed, {} failed", total.passed, total.failed);
    if !status.success() {
        bail!("cargo test: {status}");
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
}

impl Total {
    /// Counts cargo's summary lines: `test result: ok. 3 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_lines_of_all_test_binaries_are_added_up() {
        let mut total = Total::default();
        total.add("test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.43s");
        total.add("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.43s");
        total.add("test topology::tests::a_pod_that_is_not_passed ... ok");
        assert_eq!(total, Total { passed: 13, failed: 1 });
    }
}
