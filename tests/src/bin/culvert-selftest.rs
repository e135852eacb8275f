//! Proves on the running kernel that a pod can be enrolled, served, protected and let go.
//!
//! `culvert-selftest [CULVERT]`: the agent's binary, else the one beside this.

use std::path::PathBuf;
use std::process::ExitCode;

use culvert_tests::agent::binary;
use culvert_tests::{AgentConfig, selftest};

fn main() -> ExitCode {
    let agent = std::env::args_os().nth(1).map(PathBuf::from);
    let configure = |directory: &culvert_tests::ConfigDir| {
        let agent = agent.clone().map_or_else(|| binary("culvert"), Ok)?;
        Ok(AgentConfig::with_binary(agent, directory.path()))
    };
    match selftest::whole_life(configure, |fact| println!("proven: {fact}")) {
        Ok(()) => {
            println!("selftest: passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("selftest: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
