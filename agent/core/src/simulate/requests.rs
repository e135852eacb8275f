//! What a waypoint asks of a request before it routes it.

use std::sync::Arc;

use super::{Check, Layer, Verdict};
use crate::mesh::Snapshot;
use crate::policy::{self, DryRun, RequestDecision, RequestFacts, RequestTarget};

/// The checks of layer `l7`, in order: one for each provider that would be asked, which is taken to agree; one for a
/// token, which cannot be verified offline and is taken to be none; and the answer of the policies, the last that is
/// not on trial. `query` is the request's, without its `?`.
pub fn at_waypoint(
    snapshot: &Snapshot,
    target: RequestTarget<'_>,
    facts: &RequestFacts<'_>,
    query: &str,
) -> Vec<Check> {
    let at = format!("waypoint/{}", target.gateway);
    let mut checks = Vec::new();
    let mut agreed: Vec<Arc<str>> = facts.agreed.to_vec();
    let mut decision = policy::authorize_request(snapshot, target, facts);
    while let policy::Verdict::Ask(provider) = &decision.verdict {
        let reason = format!("{}: taken to agree", decision.reason);
        checks.push(Check { decision: Verdict::Allow, reason, ..check(&at, &decision, None) });
        agreed.push(provider.name.clone());
        decision = policy::authorize_request(snapshot, target, &RequestFacts { agreed: &agreed, ..*facts });
    }
    if facts.authenticated.is_none() && carries_token(snapshot, target, facts, query) {
        checks.push(Check {
            decision: Verdict::Allow,
            policy: None,
            rule: None,
            reason: "the request carries a token, which cannot be verified offline: taken to carry none".to_owned(),
            ..check(&at, &decision, None)
        });
    }
    checks.push(check(&at, &decision, None));
    checks.extend(decision.dry_run.iter().map(|trial| check(&at, &decision, Some(trial))));
    checks
}

fn carries_token(snapshot: &Snapshot, target: RequestTarget<'_>, facts: &RequestFacts<'_>, query: &str) -> bool {
    let Some(http) = &facts.http else { return false };
    let objects = snapshot.request_authentications_at(target);
    let mut places = objects.iter().flat_map(|object| &object.rules).flat_map(|rule| &*rule.places);
    places.any(|place| !matches!(place.find(http.headers, query), Ok(None)))
}

/// The answer; with `trial`, what that policy alone would say.
fn check(at: &str, decision: &RequestDecision, trial: Option<&DryRun>) -> Check {
    let answer = |is_allowed| if is_allowed { Verdict::Allow } else { Verdict::Deny };
    let (verdict, policy, rule, reason) = match trial {
        None => (
            answer(decision.is_allowed()),
            decision.reason.policy().map(ToString::to_string),
            decision.reason.rule(),
            decision.reason.to_string(),
        ),
        Some(DryRun { policy, rule }) => {
            let allows = (policy.action == policy::Action::Allow) == rule.is_some();
            let matched = match rule {
                Some(rule) => format!("rule {rule} matches"),
                None => "no rule matches".to_owned(),
            };
            let reason = format!("with {} enforced: {matched}", policy.name);
            (answer(allows), Some(policy.name.to_string()), *rule, reason)
        }
    };
    let (at, dry_run) = (at.to_owned(), trial.is_some());
    Check { at, layer: Layer::L7, decision: verdict, policy, rule, reason, dry_run }
}

#[cfg(test)]
mod tests {
    use culvert_api::yaml;
    use http::HeaderMap;

    use super::*;
    use crate::identity::Identity;
    use crate::mesh::{Change, Mesh};
    use crate::policy::{Call, HttpFacts};
    use crate::workload::NamespacedName;

    const MESH: &str = "
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: culvert, namespace: istio-system},
 data: {mesh: 'extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.example, port: 9000}}]'}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ask, namespace: shop},
 spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/a]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: get, namespace: shop},
 spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], rules: [{to: [{operation: {methods: [GET]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: 'true'}},
 spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], action: DENY, rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: tokens, namespace: shop},
 spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], jwtRules: [{issuer: 'https://a.example'}]}}
";

    #[test]
    fn every_question_is_told_in_order() {
        let parsed = yaml::parse(MESH.as_bytes());
        assert!(parsed.mistakes.is_empty(), "{:?}", parsed.mistakes);
        let mut mesh = Mesh::new();
        mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
        let snapshot = mesh.snapshot();
        let ask = |method: &str, query: &str| {
            let identity = Identity::new("cluster.local", "shop", "front");
            let headers = HeaderMap::new();
            let facts = RequestFacts {
                call: Call {
                    principal: Some(&identity),
                    source_ip: [10, 0, 0, 1].into(),
                    destination: ([10, 96, 0, 1], 80).into(),
                },
                remote_ip: [10, 0, 0, 1].into(),
                sni: None,
                http: Some(HttpFacts { method, host: "cart", path: "/a", headers: &headers }),
                authenticated: None,
                agreed: &[],
            };
            let gateway = NamespacedName::new("shop", "wp");
            let checks = at_waypoint(&snapshot, RequestTarget { gateway: &gateway, service: None }, &facts, query);
            let tell = |check: &Check| {
                assert_eq!((check.layer, &*check.at), (Layer::L7, "waypoint/shop/wp"));
                (check.decision, check.policy.clone().unwrap_or_default(), check.dry_run)
            };
            checks.iter().map(tell).collect::<Vec<_>>()
        };
        let asked = (Verdict::Allow, "shop/ask".to_owned(), false);
        let trial = (Verdict::Deny, "shop/trial".to_owned(), true);
        let get = |verdict| (verdict, "shop/get".to_owned(), false);
        assert_eq!(ask("GET", ""), [asked.clone(), get(Verdict::Allow), trial.clone()]);
        assert_eq!(ask("PUT", ""), [asked.clone(), get(Verdict::Deny), trial.clone()]);
        let token = (Verdict::Allow, String::new(), false);
        assert_eq!(ask("GET", "access_token=x"), [asked, token, get(Verdict::Allow), trial]);
    }
}
