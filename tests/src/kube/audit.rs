//! Who asked the API server for what: its audit log.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::ControlPlane;
use crate::deadline::eventually;

/// One request, as the audit log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `list`, `watch`, `get`, `create`, …
    pub verb: String,
    /// With the query.
    pub uri: String,
    /// The user's name, such as `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// As the client told it.
    pub user_agent: String,
    /// The status it was answered with.
    pub status: u16,
    /// What was asked for: `pods`, `pods/status`, …
    pub resource: String,
}

impl ControlPlane {
    /// Every request that has been answered so far; a watch counts from its first answer.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<Request>> {
        let path = self.audit_log();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().filter_map(request).collect())
    }

    /// Those since a count of [`ControlPlane::audit`] whose user is this, or whose user agent begins so.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests_of(&self, user_or_agent: &str, since: usize) -> Result<Vec<Request>> {
        let all = self.audit()?.into_iter().skip(since);
        Ok(all.filter(|one| one.user == user_or_agent || one.user_agent.starts_with(user_or_agent)).collect())
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn await_request(&self, limit: Duration, what: &str, is_it: impl Fn(&Request) -> bool) -> Result<Request> {
        eventually(limit, what, || self.audit().ok()?.into_iter().find(|request| is_it(request)))
    }
}

fn request(line: &str) -> Option<Request> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let verb = text(&event["verb"]);
    // A watch is told of when it begins and when it ends, everything else when it is answered.
    let wanted = if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
    if event["stage"] != wanted {
        return None;
    }
    let object = &event["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(part) = object["subresource"].as_str() {
        resource = format!("{resource}/{part}");
    }
    Some(Request {
        verb,
        uri: text(&event["requestURI"]),
        user: text(&event["user"]["username"]),
        user_agent: text(&event["userAgent"]),
        status: u16::try_from(event["responseStatus"]["code"].as_u64()?).ok()?,
        resource,
    })
}
