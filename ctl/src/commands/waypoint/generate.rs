//! `culvertctl waypoint generate`

use std::process::ExitCode;

use anyhow::Result;

use super::gateway::Wanted;
use crate::Options;
use crate::output::{self, Format};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  culvertctl waypoint generate -n shop --for all | kubectl apply -f -")]
pub(super) struct Generate {
    #[command(flatten)]
    wanted: Wanted,

    /// The namespace; otherwise none is said.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl Generate {
    pub(super) fn run(self, options: &Options) -> Result<ExitCode> {
        let gateway = self.wanted.gateway(self.namespace.as_deref())?;
        // It is an object: as a table it would be nothing.
        let format = if options.output == Format::Json { Format::Json } else { Format::Yaml };
        output::print(format, &gateway, String::new)?;
        Ok(ExitCode::SUCCESS)
    }
}
