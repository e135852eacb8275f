//! `culvertctl check`: what a cluster or a node lacks, before anything is installed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::Options;
use crate::chart;
use crate::check::{self, Finding, Level};
use crate::cluster::{self, Cluster, ClusterOptions};
use crate::output;
use crate::table::paragraph;

/// Something would not work.
const EXIT_LACKING: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    cluster: ClusterOptions,

    /// The namespace to install in.
    #[arg(short, long, value_name = "NAMESPACE", default_value = chart::NAMESPACE)]
    namespace: String,

    /// Look at a node from its root directory rather than at the cluster: / on the node itself, /host in a container of
    /// `kubectl debug node`.
    #[arg(long, value_name = "DIR")]
    node_root: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(self, options: &Options) -> Result<ExitCode> {
        let findings = match &self.node_root {
            Some(root) => check::machine::judge(root),
            None => cluster::run(async {
                let cluster = Cluster::connect(&self.cluster).await?;
                check::cluster::judge(&cluster, &self.namespace).await
            })?,
        };
        output::print(options.output, &findings, || render(&findings))?;
        let lacks = findings.iter().any(|finding| finding.level == Level::Error);
        Ok(if lacks { EXIT_LACKING.into() } else { ExitCode::SUCCESS })
    }
}

fn render(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is lacking\n".to_owned();
    }
    let lines = findings.iter().map(|Finding { level, about, problem, cure }| {
        let label = match level {
            Level::Error => "error    ",
            Level::Warning => "warning  ",
            Level::Note => "note     ",
        };
        let cure = if cure.is_empty() { String::new() } else { format!(": {cure}") };
        paragraph(label, &format!("{about}: {problem}{cure}"))
    });
    lines.collect()
}
