//! `culvertctl redirection`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::dump::{CapturedPod, EnrolledPod, Outbound, Redirection, typed};
use crate::table::{Table, paragraph};
use crate::{Options, admin, output};

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if options.config_dir.is_some() {
        bail!("redirection is what an agent does on its node: give --admin URL, not --config-dir");
    }
    let answer: Value = admin::read(&options.admin, "/redirection")?;
    let report: Redirection = typed(&answer)?;
    output::print(options.output, &answer, || render(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// What is known of one pod.
struct Pod<'a> {
    enrolled: Option<&'a EnrolledPod>,
    captured: Option<&'a CapturedPod>,
}

impl Pod<'_> {
    fn problems(&self) -> Vec<&str> {
        let mut problems: Vec<&str> = Vec::new();
        problems.extend(self.enrolled.and_then(|pod| pod.reason.as_deref()));
        problems.extend(self.captured.iter().flat_map(|pod| &pod.problems).map(String::as_str));
        if self.enrolled.is_none() {
            problems.push("captured, but no pod of the mesh: left over, or about to leave");
        }
        if self.captured.is_none() && self.enrolled.is_some_and(|pod| pod.state == "enrolled") {
            problems.push("enrolled, but the programs do not know it: its traffic is not captured");
        }
        problems
    }

    fn name(&self, uid: &str) -> String {
        self.enrolled.map_or_else(|| uid.to_owned(), |pod| format!("{}/{}", pod.namespace, pod.name))
    }

    fn state(&self) -> &str {
        self.enrolled.map_or("unknown", |pod| &pod.state)
    }
}

fn render(report: &Redirection) -> String {
    let pods = pods(report);
    let mut text = String::new();
    let troubled: BTreeMap<_, _> = pods
        .iter()
        .map(|(uid, pod)| (pod.name(uid), pod.problems()))
        .filter(|(_, problems)| !problems.is_empty())
        .collect();
    if !troubled.is_empty() {
        text.push_str("Problems:\n");
        for (name, problems) in &troubled {
            for problem in problems {
                text.push_str(&paragraph(&format!("  {name}: "), problem));
            }
        }
        text.push('\n');
    }

    let mut table = Table::new(["POD", "STATE", "CAPTURED", "ADDRESSES", "PROBLEMS"]);
    for (uid, pod) in &pods {
        let captured = match pod.captured {
            None => "no",
            Some(known) if !known.captured => "no",
            Some(known) if known.bypass_inbound => "outbound",
            Some(_) => "both ways",
        };
        let addresses = pod.captured.map(|known| known.addresses.join(",")).unwrap_or_default();
        let problems = pod.problems().len().to_string();
        table.row([pod.name(uid), pod.state().to_owned(), captured.to_owned(), addresses, problems]);
    }
    let nothing = format!("no pod of node {} is in the mesh", report.node);
    text.push_str(&table.sorted().render(&nothing));

    let named: BTreeMap<_, _> = pods.iter().map(|(uid, pod)| (pod.name(uid), pod)).collect();
    for (name, known) in named.iter().filter_map(|(name, pod)| Some((name, pod.captured?))) {
        let _ = write!(text, "\n{name}\n  netns      {} (cookie {})\n", known.netns, known.cookie);
        for (label, list) in [
            ("programs ", &known.programs),
            ("listeners", &known.listeners),
            ("rules    ", &known.rules),
            ("outbound ", &known.outbound_rules),
        ] {
            for (i, item) in list.iter().enumerate() {
                let label = if i == 0 { format!("  {label}  ") } else { " ".repeat(13) };
                text.push_str(&paragraph(&label, item));
            }
        }
    }

    text.push_str(&every_pod(&report.outbound));

    let mut counters = Table::new(["COUNTER", "REASON", "VALUE"]);
    for counter in report.counters.iter().filter(|counter| counter.value > 0) {
        counters.row([counter.name.clone(), counter.reason.clone(), counter.value.to_string()]);
    }
    text.push('\n');
    text.push_str(&counters.sorted().render("every counter is 0"));
    text
}

/// What holds for the connections of every pod.
fn every_pod(outbound: &Outbound) -> String {
    let mut lines: Vec<&str> = outbound.rules.iter().map(String::as_str).collect();
    if outbound.registry_only {
        lines.push("refuse what belongs to no service or workload (REGISTRY_ONLY)");
    }
    if lines.is_empty() {
        return String::new();
    }
    if !outbound.complete {
        lines.push("not yet in force: the programs do not know every destination of the mesh");
    }
    let mut text = "\nevery pod\n".to_owned();
    for (i, line) in lines.into_iter().enumerate() {
        let label = if i == 0 { "  outbound   ".to_owned() } else { " ".repeat(13) };
        text.push_str(&paragraph(&label, line));
    }
    text
}

/// The pods by UID, from both sides.
fn pods(report: &Redirection) -> BTreeMap<&str, Pod<'_>> {
    let enrolled: BTreeMap<_, _> = report.pods.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
    let captured: BTreeMap<_, _> = report.programs.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
    let uids: BTreeSet<_> = enrolled.keys().chain(captured.keys()).copied().collect();
    let both = |uid| Pod { enrolled: enrolled.get(uid).copied(), captured: captured.get(uid).copied() };
    uids.into_iter().map(|uid| (uid, both(uid))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_first() {
        let report = serde_json::from_str(include_str!("../../tests/fixtures/redirection.json")).unwrap();
        insta::assert_snapshot!(render(&report), @r#"
Problems:
  shop/front-1: nobody listens: HBONE connections are refused
  shop/late-1: the network namespace /run/netns/late does not hold 10.0.1.3:
               check the annotation culvert.dev/netns
  u9: captured, but no pod of the mesh: left over, or about to leave

POD           STATE     CAPTURED   ADDRESSES         PROBLEMS
shop/cart-1   enrolled  both ways  10.0.1.1,fd00::1  0
shop/front-1  enrolled  outbound   10.0.1.2          1
shop/late-1   failed    no         -                 1
u9            unknown   no         -                 1

shop/cart-1
  netns      /run/netns/cart (cookie 11)
  programs   connect4, connect6 at the pods' cgroup
             sk_lookup in its network namespace
  listeners  outbound
             hbone
             plaintext
  rules      fwmark 0x539 lookup 139
  outbound   bypass 192.0.2.0/24
             bypass port 3306

shop/front-1
  netns      /run/netns/front (cookie 12)

u9
  netns      /run/netns/gone (cookie 9)

every pod
  outbound   bypass 198.51.100.0/24
             refuse what belongs to no service or workload (REGISTRY_ONLY)

COUNTER   REASON    VALUE
captured  outbound  1200
refused   no_agent  3
"#);
    }

    #[test]
    fn a_node_without_pods_says_so() {
        let report = Redirection { node: "n1".to_owned(), ..Redirection::default() };
        assert_eq!(render(&report), "no pod of node n1 is in the mesh\n\nevery counter is 0\n");
    }
}
