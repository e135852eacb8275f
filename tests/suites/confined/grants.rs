//! What the chart's roles allow, and what was asked for.

use culvert_tests::kube::Request;
use serde_json::Value;

/// One verb on one kind of resource, of one name or of any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    pub(crate) account: String,
    pub(crate) verb: String,
    pub(crate) group: String,
    /// `pods`, `pods/status`
    pub(crate) resource: String,
    pub(crate) name: Option<String>,
}

impl std::fmt::Display for Grant {
    /// `culvert-node: patch pods/status`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.account, self.verb, self.resource)?;
        self.name.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

/// Those of the rendered chart, by its bindings. Whose the waypoints' is, is said as Gateways come and go.
pub(crate) fn of_chart(objects: &[Value]) -> Vec<Grant> {
    let mut grants = Vec::new();
    for binding in objects.iter().filter(|object| text(&object["kind"]).ends_with("Binding")) {
        let role = objects.iter().find(|object| {
            object["kind"] == binding["roleRef"]["kind"] && object["metadata"]["name"] == binding["roleRef"]["name"]
        });
        let Some(account) = binding["subjects"][0]["name"].as_str() else { continue };
        for rule in list(&role.expect("a binding of a role that is there")["rules"]) {
            let names: Vec<_> = list(&rule["resourceNames"]).map(|name| Some(text(name))).collect();
            let names = if names.is_empty() { vec![None] } else { names };
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    for verb in list(&rule["verbs"]) {
                        grants.extend(names.iter().map(|name| Grant {
                            account: account.to_owned(),
                            verb: text(verb),
                            group: text(group),
                            resource: text(resource),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    grants.sort();
    grants
}

impl Grant {
    /// Whether the request was allowed by this.
    pub(crate) fn allows(&self, request: &Request) -> bool {
        let (path, query) = request.uri.split_once('?').unwrap_or((&request.uri, ""));
        let mut parts = path.trim_start_matches('/').split('/');
        let group = match parts.next() {
            Some("apis") => parts.next().unwrap_or_default(),
            _ => "",
        };
        let mut parts: Vec<&str> = parts.skip(1).collect();
        if parts.len() > 2 && parts[0] == "namespaces" {
            parts.drain(..2);
        }
        let selected = query.split('&').find_map(|one| {
            let selector = one.strip_prefix("fieldSelector=metadata.name")?;
            selector.strip_prefix("%3D").or(selector.strip_prefix('='))
        });
        let name = parts.get(1).copied().or(selected);
        request.user.rsplit(':').next() == Some(self.account.as_str())
            && request.verb == self.verb
            && group == self.group
            && request.resource == self.resource
            && self.name.as_deref().is_none_or(|wanted| name == Some(wanted))
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
