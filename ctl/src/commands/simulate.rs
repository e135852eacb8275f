//! `culvertctl simulate`

use std::process::ExitCode;

use anyhow::{Result, bail};
use culvert_core::simulate::{HttpRequest, Outcome, Report, Request, Transport, Verdict, simulate};

use crate::directory::Directory;
use crate::table::paragraph;
use crate::{Options, output};

const EXIT_DENIED: u8 = 2;
const EXIT_UNROUTABLE: u8 = 3;

const HELP: &str = "\
The objects come from --config-dir, and the decision from the engine of the data path: the client's routing; the
AuthorizationPolicies, VirtualServices and routes of a waypoint on the way (where --method, --path or --header describe a
request); and the server's PeerAuthentication and AuthorizationPolicies.

Exit status: 0 allowed, 1 usage or input error, 2 denied, 3 unroutable.

Examples:
  culvertctl simulate --config-dir ./mesh --from shop/front --to cart:80
  culvertctl simulate --config-dir ./mesh --from shop/front --to cart:80 --path /v1 --header 'x-user: eve'
  culvertctl simulate --config-dir ./mesh --from 192.0.2.7 --to cart.shop.svc.cluster.local:80
  culvertctl simulate --config-dir ./mesh --from shop/front --to 10.0.2.1:8080 --plaintext -o json";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Simulate {
    /// Who calls: a pod, or an address outside the mesh.
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    from: String,

    /// Who is called: a service by any name its clients may use, a pod, or an address.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,

    /// The caller evades its node, and dials in plaintext.
    #[arg(long)]
    plaintext: bool,

    /// The method of the request that is made, for waypoints on the way.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,

    /// Its path, with its query.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,

    /// A header of it; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
}

impl Simulate {
    pub(super) fn run(self, options: &Options) -> Result<ExitCode> {
        let directory = Directory::required(options, "simulate")?.sound()?;
        let asks = self.method.is_some() || self.path.is_some() || !self.header.is_empty();
        let mut headers = Vec::new();
        for header in &self.header {
            let Some((name, value)) = header.split_once(':') else {
                bail!("--header {header:?} is not NAME: VALUE: write --header 'x-user: eve'");
            };
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        let http = asks.then(|| HttpRequest {
            method: self.method.unwrap_or_else(|| "GET".to_owned()),
            path: self.path.unwrap_or_else(|| "/".to_owned()),
            headers,
        });
        let request = Request { from: self.from, to: self.to, plaintext: self.plaintext, http };
        let report = simulate(&directory.snapshot, &request)?;
        output::print(options.output, &report, || render(&request, &report))?;
        Ok(match report.outcome {
            Outcome::Allowed => ExitCode::SUCCESS,
            Outcome::Denied => EXIT_DENIED.into(),
            Outcome::Unroutable => EXIT_UNROUTABLE.into(),
        })
    }
}

fn render(request: &Request, report: &Report) -> String {
    let outcome = match report.outcome {
        Outcome::Allowed => "allowed",
        Outcome::Denied => "denied",
        Outcome::Unroutable => "unroutable",
    };
    let transport = match report.transport {
        Some(Transport::Hbone) => ", over HBONE",
        Some(Transport::Plaintext) => ", in plaintext",
        None => "",
    };
    let mut text = format!("{} -> {}: {outcome}{transport}\n\n", request.from, request.to);
    let path = if report.path.is_empty() { "no proxy".to_owned() } else { report.path.join(" -> ") };
    text.push_str(&paragraph("path    ", &path));
    if let Some(route) = &report.route {
        text.push_str(&paragraph("route   ", &route.to_string()));
    }
    for check in &report.checks {
        let verdict = match (check.decision, check.dry_run) {
            (Verdict::Allow, false) => "allows",
            (Verdict::Deny, false) => "denies",
            (Verdict::Allow, true) => "would allow",
            (Verdict::Deny, true) => "would deny",
        };
        let heading = if check.dry_run { "dry run " } else { "check   " };
        text.push_str(&paragraph(heading, &format!("{} {verdict}: {}", check.at, check.reason)));
    }
    if report.checks.is_empty() {
        text.push_str("check   none: no node of the mesh guards the destination\n");
    }
    text
}
