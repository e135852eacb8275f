//! `culvertctl analyze`

use std::process::ExitCode;

use anyhow::Result;
use culvert_api::yaml::Gravity;
use culvert_core::translate::Severity;
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::table::paragraph;
use crate::{Options, admin, output};

/// At least one finding is an error.
const EXIT_ERRORS: u8 = 2;

/// Something that the author of an object should know.
#[derive(Debug, Serialize)]
struct Issue {
    severity: Severity,
    /// The file, line and column, for what is wrong in a file.
    place: Option<String>,
    /// The object, for what is wrong in an object.
    object: Option<String>,
    field: Option<String>,
    message: String,
}

/// Exits with 0 if there is no error, and with 2 if there is one.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let issues = match &options.config_dir {
        Some(path) => issues(&Directory::read(path)?),
        None => told(&options.admin)?,
    };
    output::print(options.output, &issues, || render(&issues))?;
    let is_bad = issues.iter().any(|issue| issue.severity == Severity::Error);
    Ok(if is_bad { EXIT_ERRORS.into() } else { ExitCode::SUCCESS })
}

/// What an agent has found in the objects that it reads, and in files that say of no object what is wrong.
fn told(admin: &str) -> Result<Vec<Issue>> {
    let findings: Vec<Found> = admin::read(admin, "/config_dump/findings")?;
    let mut issues: Vec<Issue> = findings.into_iter().map(Issue::from).collect();
    // An agent that reads an API server has no files.
    let files: Files = match admin::read(admin, "/config_dump/files") {
        Err(error) if error.to_string().contains("has no /config_dump/files") => Files::default(),
        read => read?,
    };
    for file in files.files {
        issues.extend(file.mistakes.into_iter().filter(|mistake| mistake.object.is_none()).map(|mistake| Issue {
            severity: if mistake.gravity == "leftout" { Severity::Warning } else { Severity::Error },
            place: Some(format!("{}:{}:{}", file.path, mistake.place.line, mistake.place.column)),
            object: None,
            field: None,
            message: mistake.message,
        }));
    }
    issues.sort_by_key(|issue| std::cmp::Reverse(issue.severity));
    Ok(issues)
}

/// A finding as an agent tells it.
#[derive(Debug, Deserialize)]
struct Found {
    object: Named,
    field: String,
    severity: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Named {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Files {
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
struct File {
    path: String,
    mistakes: Vec<InFile>,
}

#[derive(Debug, Deserialize)]
struct InFile {
    place: At,
    gravity: String,
    message: String,
    object: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct At {
    line: u64,
    column: u64,
}

impl From<Found> for Issue {
    fn from(found: Found) -> Self {
        let Named { kind, namespace, name } = found.object;
        let slash = if namespace.is_empty() { "" } else { "/" };
        Self {
            severity: if found.severity == "warning" { Severity::Warning } else { Severity::Error },
            place: None,
            object: Some(format!("{kind} {namespace}{slash}{name}")),
            field: Some(found.field).filter(|field| !field.is_empty()),
            message: found.message,
        }
    }
}

fn issues(directory: &Directory) -> Vec<Issue> {
    let files = directory.mistakes.iter().map(|(path, mistake)| Issue {
        severity: match mistake.gravity {
            Gravity::Broken | Gravity::UnknownField => Severity::Error,
            Gravity::LeftOut => Severity::Warning,
        },
        place: Some(format!("{}:{}", path.display(), mistake.place)),
        object: None,
        field: None,
        message: mistake.message.clone(),
    });
    let objects = directory.snapshot.findings().map(|(object, finding)| Issue {
        severity: finding.severity,
        place: None,
        object: Some(object.to_string()),
        field: Some(finding.field.clone()),
        message: finding.message.clone(),
    });
    let unbound = directory.snapshot.unbound().map(|finding| Issue {
        severity: finding.severity,
        place: None,
        object: Some(finding.object.to_string()),
        field: Some(finding.field),
        message: finding.message,
    });
    let mut issues: Vec<_> = files.chain(objects).chain(unbound).collect();
    // Errors first; otherwise as they were found, file by file and object by object.
    issues.sort_by_key(|issue| std::cmp::Reverse(issue.severity));
    issues
}

fn render(issues: &[Issue]) -> String {
    let line = |issue: &Issue| {
        let severity = match issue.severity {
            Severity::Error => "error    ",
            Severity::Warning => "warning  ",
        };
        let whereabouts = [&issue.place, &issue.object, &issue.field].into_iter().flatten();
        let parts: Vec<_> = whereabouts.filter(|part| !part.is_empty()).chain([&issue.message]).cloned().collect();
        paragraph(severity, &parts.join(": "))
    };
    if issues.is_empty() { "no findings\n".to_owned() } else { issues.iter().map(line).collect() }
}
