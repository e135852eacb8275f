//! What the API server refused or failed at, in one line that a person can act on.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};

/// The longest text that is quoted from the server.
const MAX_QUOTED: usize = 300;

/// Says in one line why `verb` on `resource` (`pods`, `policies.example.com`) failed, and what helps.
pub fn explain(error: &kube::Error, verb: &str, resource: &str) -> String {
    match error {
        kube::Error::Api(status) => explain_failure(status.code, &status.message, verb, resource),
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => {
            format!("cannot {verb} {resource}: the API server cannot be reached: {}", root_cause(error))
        }
        other => format!("cannot {verb} {resource}: {}", root_cause(other)),
    }
}

/// Says in one line what the API server's answer `code` to `verb` on `resource` means; `message` is what it said.
pub fn explain_failure(code: u16, message: &str, verb: &str, resource: &str) -> String {
    match code {
        403 => forbidden(message, verb, resource),
        401 => format!(
            "cannot {verb} {resource}: the API server does not know the caller: the service account's token has \
             expired or belongs to another cluster; restart the pod"
        ),
        404 => format!("cannot {verb} {resource}: the API server does not have it"),
        code => format!("cannot {verb} {resource}: the API server says {code}: {}", quoted(message)),
    }
}

/// Says in one line that a permission is missing, and which Helm value gives it. `message` is what the API server
/// said: it names the user.
pub fn forbidden(message: &str, verb: &str, resource: &str) -> String {
    let user = message.split_once("User \"").and_then(|(_, rest)| rest.split_once('"')).map(|(user, _)| user);
    let user = quoted(user.unwrap_or("this service account"));
    format!(
        "cannot {verb} {resource}: {user} may not: install the chart with the value rbac.create=true, or grant it the \
         verb {verb} on {resource}"
    )
}

/// The last cause of an error, which is what happened; those above say only who was told.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    quoted(&cause.to_string())
}

/// One line of a bounded length.
fn quoted(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_QUOTED) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// What has been said already: each thing is said once, until it changes.
#[derive(Debug, Default)]
pub struct Notices(Mutex<HashMap<String, String>>);

impl Notices {
    /// Logs `line` as what is wrong with `about`, unless it was the last thing said of it.
    pub fn wrong(&self, about: &str, line: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(about).is_none_or(|known| known != line) {
            said.insert(about.to_owned(), line.to_owned());
            tracing::warn!("{line}");
        }
    }

    /// Logs that nothing is wrong with `about` any more, if anything was.
    pub fn right(&self, about: &str) {
        let was = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(about);
        if was.is_some() {
            tracing::info!("{about}: in order again");
        }
    }

    /// What is wrong now, by what it is about.
    pub fn list(&self) -> Vec<(String, String)> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = said.iter().map(|(about, line)| (about.clone(), line.clone())).collect();
        list.sort();
        list
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn status(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, "").with_code(code)))
    }

    #[test]
    fn a_missing_permission_names_the_verb_the_resource_and_the_value() {
        let message = "pods is forbidden: User \"system:serviceaccount:culvert-system:culvert-node\" cannot list \
                       resource \"pods\" in API group \"\" at the cluster scope";
        let line = explain(&status(403, message), "list", "pods");
        assert_eq!(
            line,
            "cannot list pods: system:serviceaccount:culvert-system:culvert-node may not: install the chart with the \
             value rbac.create=true, or grant it the verb list on pods"
        );
    }

    #[test]
    fn what_the_server_says_is_one_bounded_line() {
        let line = explain(&status(500, &"etcd\nis slow ".repeat(500)), "create", "events");
        assert!(line.starts_with("cannot create events: the API server says 500: etcd is slow"), "{line}");
        assert!(line.len() < 400 && !line.contains('\n'), "{}", line.len());
    }

    #[test]
    fn a_thing_is_said_once_until_it_changes() {
        let notices = Notices::default();
        notices.wrong("pods", "cannot list pods");
        notices.wrong("pods", "cannot list pods");
        assert_eq!(notices.list(), [("pods".to_owned(), "cannot list pods".to_owned())]);
        notices.wrong("pods", "cannot watch pods");
        assert_eq!(notices.list(), [("pods".to_owned(), "cannot watch pods".to_owned())]);
        notices.right("pods");
        assert_eq!(notices.list(), []);
    }
}
