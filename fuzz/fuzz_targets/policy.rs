//! Any policy is read and decides any call, says why, and what L4 cannot see never opens a door.
//!
//! The first four bytes are the call; what follows are specs in YAML, separated by lines of `---`: a PeerAuthentication
//! where there is an `mtls`, else an AuthorizationPolicy.

#![no_main]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use culvert_api::security::{AuthorizationPolicy, Rule};
use culvert_api::{Object, yaml};
use culvert_core::identity::Identity;
use culvert_core::mesh::{Change, Mesh};
use culvert_core::policy::{
    Action, Call, Decision, EffectivePeerAuthentication, Reason, Settings, UnsupportedDeny, authorize, authorize_with,
    decide,
};
use culvert_core::translate;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const ROOT: &str = "istio-system";

static IDENTITIES: LazyLock<Vec<Option<Identity>>> = LazyLock::new(|| {
    let ids = ["cluster.local/ns/shop/sa/front", "cluster.local/ns/other/sa/b", "elsewhere/ns/shop/sa/front"];
    let ids = ids.iter().map(|id| format!("spiffe://{id}").parse().ok());
    std::iter::once(None).chain(ids).collect()
});

fuzz_target!(|input: &[u8]| {
    let Some((&[who, host, port, flags], specs)) = input.split_first_chunk::<4>() else { return };
    let Ok(specs) = std::str::from_utf8(specs) else { return };
    let source_ip = match host % 2 {
        0 => IpAddr::from([10, 0, 0, host]),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
    };
    let call = Call {
        principal: IDENTITIES[usize::from(who) % IDENTITIES.len()].as_ref(),
        source_ip,
        destination: SocketAddr::from(([10, 0, 1, 1], u16::from(port) * 10)),
    };
    let objects: Vec<Object> = specs.split("---\n").take(8).enumerate().filter_map(|(i, s)| object(i, s)).collect();
    for object in &objects {
        if let Object::AuthorizationPolicy(object) = object {
            alone(object, &call);
        }
    }
    together(objects, &call, flags);
});

/// What holds for each policy by itself.
fn alone(object: &AuthorizationPolicy, call: &Call<'_>) {
    let by = |object: &AuthorizationPolicy, unsupported_deny| {
        let policy = translate::authorization_policy(object, ROOT, &mut Vec::new());
        let policy = Arc::new(policy.filter(|policy| policy.is_for_nodes())?);
        let settings = Settings { trust_domain: "cluster.local", aliases: &["old.example".into()], unsupported_deny };
        let decision = decide(settings, &EffectivePeerAuthentication::default(), &[policy.clone()], call, None);
        assert_explained(&decision, call);
        Some((policy.action, decision.allowed))
    };
    let Some((action, allowed)) = by(object, UnsupportedDeny::Deny) else { return };
    let mut visible = object.clone();
    visible.spec.rules.iter_mut().for_each(keep_what_l4_sees);
    let (_, allowed_without) = by(&visible, UnsupportedDeny::Deny).expect("it is translated as it was");
    assert!(allowed_without || !allowed, "{action:?}: a field that L4 cannot see opens: {:?}", object.spec);
    let (_, ignoring) = by(object, UnsupportedDeny::Ignore).expect("it is translated as it was");
    assert!(ignoring || !allowed, "{action:?}: ignoring what is unsupported denies more: {:?}", object.spec);
}

/// What holds for all of them in a mesh.
fn together(objects: Vec<Object>, call: &Call<'_>, flags: u8) {
    let mut mesh = Mesh::new();
    mesh.apply(POD.iter().cloned().chain(objects).map(Change::Upsert));
    let snapshot = mesh.snapshot();
    let workload = snapshot.pod("shop", "app").expect("the pod is there");
    let call = Call { destination: SocketAddr::new(workload.addresses[0], call.destination.port()), ..*call };
    let decision = authorize(&snapshot, workload, &call, None);
    assert_explained(&decision, &call);
    for trial in decision.dry_run.iter().take(usize::from(flags % 4)) {
        let enforced = authorize_with(&snapshot, workload, &call, None, trial);
        assert_explained(&enforced, &call);
        let by_it = trial.policy.action == Action::Deny && trial.rule.is_some();
        assert!(!by_it || !enforced.allowed, "a DENY that matches must deny: {}", enforced.reason);
    }
}

/// The explanation says what was decided, and points to what is there.
fn assert_explained(decision: &Decision, call: &Call<'_>) {
    let matched = match &decision.reason {
        Reason::NoAllowPolicy | Reason::Incomplete(_) => None,
        Reason::Allowed(found) => Some((found, Action::Allow)),
        Reason::Denied(found) => Some((&**found, Action::Deny)),
        Reason::Ask(_) | Reason::UnknownProvider(_) => unreachable!("nodes ask nobody"),
        Reason::NotAllowed(tried) => {
            assert!(!decision.allowed && tried.policies > 0);
            None
        }
        Reason::NotThroughWaypoint(_) => {
            assert!(!decision.allowed);
            None
        }
        Reason::MtlsRequired { port, .. } => {
            assert!(!decision.allowed && call.principal.is_none() && *port == call.destination.port());
            None
        }
    };
    if let Some((found, action)) = matched {
        assert_eq!((found.policy.action, decision.allowed), (action, action == Action::Allow));
        assert!(found.rule < found.policy.rules.len() && !found.policy.dry_run);
    }
    let explanation = decision.reason.explanation();
    assert_eq!(explanation.rule, matched.map(|(found, _)| found.rule));
    assert!(!explanation.message.is_empty() && !explanation.message.contains(char::is_control), "{explanation:?}");
}

fn keep_what_l4_sees(rule: &mut Rule) {
    for source in rule.from.iter_mut().filter_map(|from| from.source.as_mut()) {
        for unseen in [
            &mut source.request_principals,
            &mut source.not_request_principals,
            &mut source.remote_ip_blocks,
            &mut source.not_remote_ip_blocks,
        ] {
            unseen.clear();
        }
    }
    for operation in rule.to.iter_mut().filter_map(|to| to.operation.as_mut()) {
        for unseen in [
            &mut operation.hosts,
            &mut operation.not_hosts,
            &mut operation.methods,
            &mut operation.not_methods,
            &mut operation.paths,
            &mut operation.not_paths,
        ] {
            unseen.clear();
        }
    }
}

fn object(number: usize, spec: &str) -> Option<Object> {
    let spec = yaml::value(spec).ok()?;
    let kind = if spec.get("mtls").is_some() { "PeerAuthentication" } else { "AuthorizationPolicy" };
    let dry_run = if number % 3 == 2 { "true" } else { "false" };
    let metadata =
        json!({"name": format!("p{number}"), "namespace": "shop", "annotations": {"istio.io/dry-run": dry_run}});
    parsed(json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}))
}

fn parsed(value: Value) -> Option<Object> {
    Object::from_value(value).ok().map(|(object, _)| object)
}

static POD: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let labels = json!({"istio.io/dataplane-mode": "ambient"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "app", "namespace": "shop", "labels": {"app": "a"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "app", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.1.1"}]},
    });
    [namespace, pod].into_iter().filter_map(parsed).collect()
});
