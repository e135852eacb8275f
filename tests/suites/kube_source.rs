//! What is read of a real API server is what is there: through cut links, restarts, compaction, missing permissions,
//! objects that nobody checked, and custom resources that come later or in old versions. And what is known outlives the
//! agent while the API server is away.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

#[path = "kube_source/reader.rs"]
mod reader;

use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use culvert::source::kube::{Health, ResourceStatus, State};
use culvert_core::mesh::Snapshot;
use culvert_tests::kube::ControlPlane;
use reader::{
    LIMIT, Reader, create, definition, delete, has_pod, has_policy, is_whole, policies, policies_path, policy, state,
};
use serde_json::{Value, json};

/// Tests that take the API server away from everyone.
static SERVER: RwLock<()> = RwLock::new(());

/// The API server that tests have in common, and that nobody takes away meanwhile.
fn shared() -> (RwLockReadGuard<'static, ()>, &'static ControlPlane) {
    (SERVER.read().unwrap_or_else(PoisonError::into_inner), ControlPlane::shared())
}

#[test]
fn objects_come_change_and_go() {
    let (_server, cluster) = shared();
    cluster.namespace("events").unwrap();
    cluster.pod("events", "before", "default", "n1", &["10.1.0.1"]).unwrap();
    let mut reader = Reader::started(cluster);
    reader.until("the pod that was there", |mesh, _| has_pod(mesh, "events", "before"));
    cluster.pod("events", "after", "default", "n1", &["10.1.0.2"]).unwrap();
    reader.until("the pod that came", |mesh, _| has_pod(mesh, "events", "after"));

    let labels = json!({"metadata": {"labels": {"app": "other"}}});
    cluster.request("PATCH", "/api/v1/namespaces/events/pods/after", Some(&labels)).unwrap().success().unwrap();
    reader.until("its new label", |mesh, _| {
        mesh.pod("events", "after").is_some_and(|pod| pod.labels.get("app").is_some_and(|app| **app == *"other"))
    });
    let options = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "culvert"},
        "data": {"mesh": "trustDomain: example.org\n"},
    });
    cluster.namespace("istio-system").unwrap();
    create(cluster, "/api/v1/namespaces/istio-system/configmaps", &options);
    reader.until("the options", |mesh, _| *mesh.options().trust_domain == *"example.org");
    delete(cluster, "/api/v1/namespaces/istio-system/configmaps/culvert");
    reader.until("the options' end", |mesh, _| *mesh.options().trust_domain == *"cluster.local");
    delete(cluster, "/api/v1/namespaces/events/pods/after");
    reader.until("its end", |mesh, _| !has_pod(mesh, "events", "after") && has_pod(mesh, "events", "before"));
}

#[test]
fn custom_resources_are_picked_up_when_they_are_installed_in_whatever_version() {
    let (_server, cluster) = shared();
    cluster.namespace("late").unwrap();
    let mut reader = Reader::started(cluster);
    reader.until("a mesh without", |_, health| {
        state(health, "workloadentries.networking.istio.io") == State::Absent
            && state(health, "peerauthentications.security.istio.io") == State::Absent
    });

    // As in Istio before 1.6: no other version is served.
    cluster.crds(&definition("networking.istio.io", "workloadentries", "WorkloadEntry", &["v1alpha3"])).unwrap();
    let path = "/apis/networking.istio.io/v1alpha3/namespaces/late/workloadentries";
    let entry = json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "WorkloadEntry", "metadata": {"name": "vm"},
        "spec": {"address": "10.77.0.1", "serviceAccount": "vm"},
    });
    create(cluster, path, &entry);
    reader.until("the entry", |mesh, _| mesh.workload_by_address("10.77.0.1".parse().unwrap()).is_some());
    let version = |health: &Health, name: &str| health.status().resources[name].version;
    assert_eq!(version(&reader.health, "workloadentries.networking.istio.io"), Some("v1alpha3"));

    // And of a definition that learns a better version, that one is read from then on.
    let name = "peerauthentications.security.istio.io";
    let served =
        |versions: &[&str]| definition("security.istio.io", "peerauthentications", "PeerAuthentication", versions);
    cluster.crds(&served(&["v1beta1"])).unwrap();
    reader.until("v1beta1", |_, health| version(health, name) == Some("v1beta1"));
    let both = json!({"spec": serde_json::from_str::<Value>(&served(&["v1beta1", "v1"])).unwrap()["spec"]});
    let crd = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    cluster.request("PATCH", &crd, Some(&both)).unwrap().success().unwrap();
    reader.until("v1", |_, health| version(health, name) == Some("v1") && state(health, name) == State::Watched);

    // Its objects go with a definition.
    delete(cluster, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workloadentries.networking.istio.io");
    reader.until("the entry's end", |mesh, health| {
        mesh.workload_by_address("10.77.0.1".parse().unwrap()).is_none()
            && state(health, "workloadentries.networking.istio.io") == State::Absent
    });
}

#[test]
fn objects_that_a_webhook_would_have_refused_are_told_and_disturb_no_other() {
    let (_server, cluster) = shared();
    cluster.namespace("invalid").unwrap();
    policies(cluster);
    let path = policies_path("invalid");
    create(cluster, &path, &policy("good", Value::Null));
    create(cluster, &path, &policy("never", json!({"action": {"of": "the wrong type"}})));
    let mut reader = Reader::started(cluster);
    reader.until("the good one", |mesh, _| has_policy(mesh, "invalid", "good"));
    let rejected = |health: &Health, name: &str| health.status().rejected.get(name).cloned();
    let line = rejected(&reader.health, "AuthorizationPolicy invalid/never").unwrap();
    assert!(line.starts_with("spec.action: ") && line.contains("it is left out"), "{line}");
    let is_found = |mesh: &Snapshot, name: &str| {
        mesh.findings().any(|(object, finding)| object.to_string() == name && finding.message.contains("until that is"))
    };
    assert!(is_found(&reader.snapshot(), "AuthorizationPolicy invalid/never"), "whoever reads the mesh must be told");

    // One that was good stays as it was; one that comes is read all the same.
    let broken = json!({"spec": {"rules": "none"}});
    cluster.request("PATCH", &format!("{path}/good"), Some(&broken)).unwrap().success().unwrap();
    reader.until("the finding", |_, health| rejected(health, "AuthorizationPolicy invalid/good").is_some());
    reader.until("the same in the mesh", |mesh, _| is_found(mesh, "AuthorizationPolicy invalid/good"));
    assert!(has_policy(&reader.snapshot(), "invalid", "good"));
    let huge = json!({"annotations": {"example.org/blob": "x".repeat(100 << 10)}});
    let mut bloated = policy("bloated", Value::Null);
    bloated["metadata"]["annotations"] = huge["annotations"].clone();
    create(cluster, &path, &bloated);
    reader.until("the one with a huge annotation", |mesh, _| has_policy(mesh, "invalid", "bloated"));
    let mended = json!({"spec": {"rules": [{}]}});
    cluster.request("PATCH", &format!("{path}/good"), Some(&mended)).unwrap().success().unwrap();
    reader.until("its end", |_, health| rejected(health, "AuthorizationPolicy invalid/good").is_none());
    delete(cluster, &format!("{path}/never"));
    reader.until("the other's end", |mesh, health| {
        rejected(health, "AuthorizationPolicy invalid/never").is_none()
            && !is_found(mesh, "AuthorizationPolicy invalid/never")
            && !is_found(mesh, "AuthorizationPolicy invalid/good")
    });
}

/// JSON that is deeper than a parser takes: the API server stores it where a definition has no schema.
#[test]
fn a_policy_that_is_edited_into_what_cannot_be_parsed_stays_as_it_was_through_lists() {
    let (_server, cluster) = shared();
    cluster.namespace("deep").unwrap();
    policies(cluster);
    let path = policies_path("deep");
    let deny = json!({"action": "DENY", "rules": [{}]});
    create(cluster, &path, &policy("deny", deny.clone()));
    create(cluster, &path, &policy("other", Value::Null));
    let deep = (0..300).fold(json!(1), |inner, _| json!([inner]));
    create(cluster, &path, &policy("never", json!({"rules": deep})));
    let mut reader = Reader::started(cluster);
    reader.until("what is there", |mesh, health| {
        has_policy(mesh, "deep", "deny") && has_policy(mesh, "deep", "other") && is_whole(health)
    });
    let rejected = |health: &Health, name: &str| {
        health.status().rejected.get(&format!("AuthorizationPolicy deep/{name}")).cloned().unwrap_or_default()
    };
    // Nobody knows what it denies.
    let is_closed = |mesh: &Snapshot| mesh.incomplete("deep").is_some_and(|why| why.contains("deep/never"));
    assert!(is_closed(&reader.snapshot()), "{:#?}", reader.health.status());

    let garbage = json!({"spec": {"rules": deep}});
    cluster.request("PATCH", &format!("{path}/deny"), Some(&garbage)).unwrap().success().unwrap();
    reader.until("the finding", |_, health| rejected(health, "deny").contains("it stays as it was"));
    // A definition that changes has its objects listed again; so has a restart of the API server.
    let versions = ["v1", "v1beta1"];
    let since = cluster.audit().unwrap().len();
    cluster.crds(&definition("security.istio.io", "authorizationpolicies", "AuthorizationPolicy", &versions)).unwrap();
    delete(cluster, &format!("{path}/other"));
    reader.until("the other's end", |mesh, _| !has_policy(mesh, "deep", "other"));
    let lists = || {
        let asked = cluster.requests_of("culvert/", since).unwrap();
        asked.iter().filter(|one| one.verb == "list" && one.resource == "authorizationpolicies").count()
    };
    reader.until("another list", |_, health| lists() > 0 && is_whole(health));
    let snapshot = reader.snapshot();
    assert!(has_policy(&snapshot, "deep", "deny") && is_closed(&snapshot), "a list took it away");

    let mended = json!({"spec": {"rules": [{}]}});
    for name in ["deny", "never"] {
        cluster.request("PATCH", &format!("{path}/{name}"), Some(&mended)).unwrap().success().unwrap();
        reader.until("what can be read again", |mesh, health| {
            has_policy(mesh, "deep", name) && rejected(health, name).is_empty()
        });
    }
    assert!(!is_closed(&reader.snapshot()));
}

#[test]
fn a_watch_that_is_cut_goes_on_where_it_was() {
    let (_server, cluster) = shared();
    cluster.namespace("cut").unwrap();
    cluster.pod("cut", "stays", "default", "n1", &["10.2.0.1"]).unwrap();
    cluster.pod("cut", "goes", "default", "n1", &["10.2.0.2"]).unwrap();
    let mut reader = Reader::started(cluster);
    let pods = |health: &Health| state(health, "pods") == State::Watched;
    reader.until("both pods", |mesh, health| has_pod(mesh, "cut", "goes") && pods(health) && is_whole(health));

    reader.wire.cut();
    reader.until("the cut to be noticed", |_, health| health.status().unreachable.is_some());
    assert!(!is_whole(&reader.health) && has_pod(&reader.snapshot(), "cut", "goes"));
    let note = reader.health.notes().join("\n");
    assert!(note.contains("configuration from 2") && note.contains("cannot be reached"), "{note}");
    delete(cluster, "/api/v1/namespaces/cut/pods/goes");
    cluster.pod("cut", "comes", "default", "n1", &["10.2.0.3"]).unwrap();
    reader.wire.restore();
    reader.until("what happened meanwhile", |mesh, health| {
        has_pod(mesh, "cut", "comes")
            && !has_pod(mesh, "cut", "goes")
            && has_pod(mesh, "cut", "stays")
            && is_whole(health)
    });
    assert_eq!(reader.health.notes(), Vec::<String>::new());
}

#[test]
fn what_was_compacted_away_is_listed_again_and_nothing_is_lost() {
    // With its cache of watches the API server remembers more than etcd.
    let cluster = ControlPlane::start_with(&["--watch-cache=false"]).unwrap();
    cluster.namespace("compacted").unwrap();
    policies(&cluster);
    for (name, address) in [("stays", "10.5.0.1"), ("goes", "10.5.0.2")] {
        cluster.pod("compacted", name, "default", "n1", &[address]).unwrap();
        create(&cluster, &policies_path("compacted"), &policy(name, Value::Null));
    }
    let mut reader = Reader::started(&cluster);
    let policies = "authorizationpolicies.security.istio.io";
    reader.until("what is there", |mesh, health| {
        has_pod(mesh, "compacted", "goes")
            && has_policy(mesh, "compacted", "goes")
            && ["pods", policies].iter().all(|name| state(health, name) == State::Watched)
    });
    reader.wire.cut();
    reader.until("the cut to be noticed", |_, health| health.status().unreachable.is_some());
    delete(&cluster, "/api/v1/namespaces/compacted/pods/goes");
    delete(&cluster, &format!("{}/goes", policies_path("compacted")));
    cluster.pod("compacted", "comes", "default", "n1", &["10.5.0.3"]).unwrap();
    cluster.compact().unwrap();
    let since = cluster.audit().unwrap().len();
    reader.wire.restore();
    reader.until("what happened meanwhile", |mesh, health| {
        assert!(has_pod(mesh, "compacted", "stays") && has_policy(mesh, "compacted", "stays"), "lost on the way");
        has_pod(mesh, "compacted", "comes")
            && !has_pod(mesh, "compacted", "goes")
            && !has_policy(mesh, "compacted", "goes")
            && is_whole(health)
    });
    // It asked to go on where it was, and was told that this is gone.
    let asked = cluster.requests_of("culvert/", since).unwrap();
    let lists = |resource: &str| asked.iter().filter(|one| one.verb == "list" && one.resource == resource).count();
    assert!(lists("pods") >= 1 && lists("authorizationpolicies") >= 1, "{asked:#?}");
    assert!(lists("pods") <= 2, "more than one list: {asked:#?}");
}

#[test]
fn an_api_server_that_was_killed_is_caught_up_with() {
    let _server = SERVER.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = ControlPlane::shared();
    cluster.namespace("killed").unwrap();
    policies(cluster);
    cluster.pod("killed", "goes", "default", "n1", &["10.3.0.1"]).unwrap();
    create(cluster, &policies_path("killed"), &policy("stays", Value::Null));
    create(cluster, &policies_path("killed"), &policy("goes", Value::Null));
    let mut reader = Reader::started(cluster);
    reader.until("what is there", |mesh, health| {
        has_pod(mesh, "killed", "goes")
            && has_policy(mesh, "killed", "stays")
            && has_policy(mesh, "killed", "goes")
            && is_whole(health)
    });
    reader.wire.cut();
    reader.until("the cut to be noticed", |_, health| health.status().unreachable.is_some());
    delete(cluster, "/api/v1/namespaces/killed/pods/goes");
    delete(cluster, &format!("{}/goes", policies_path("killed")));
    cluster.kill_apiserver().unwrap();
    // A new one remembers nothing of what was before: whoever asks where it was is told to list again. While it starts,
    // it says of custom resources that it has never heard of them; which is no reason to take policies away.
    let (wire, mesh) = (&reader.wire, reader.mesh.snapshot());
    assert!(has_policy(&mesh, "killed", "stays"));
    wire.restore();
    let restarted = std::thread::scope(|scope| {
        let restarting = scope.spawn(|| cluster.start_apiserver().unwrap());
        let mut lost = false;
        while !restarting.is_finished() {
            reader.take(Duration::from_millis(200), |mesh, _| {
                lost |= !has_policy(mesh, "killed", "stays");
                false
            });
        }
        restarting.join().unwrap();
        !lost
    });
    assert!(restarted, "a policy was lost while the API server started");
    reader.until("what happened meanwhile", |mesh, health| {
        assert!(has_policy(mesh, "killed", "stays"));
        !has_pod(mesh, "killed", "goes") && !has_policy(mesh, "killed", "goes") && is_whole(health)
    });
}

#[test]
fn what_may_not_be_read_is_named_and_no_mesh_is_shown_without_it() {
    let (_server, cluster) = shared();
    cluster.namespace("forbidden").unwrap();
    policies(cluster);
    let rule = |groups: &str, resources: &str| {
        format!("- {{apiGroups: [{groups}], resources: [{resources}], verbs: [list, watch]}}\n")
    };
    let some = rule("''", "namespaces, nodes, pods, services, configmaps")
        + &rule("discovery.k8s.io", "endpointslices")
        + &rule("networking.istio.io, gateway.networking.k8s.io", "'*'")
        + &rule("security.istio.io", "peerauthentications")
        + &rule("apiextensions.k8s.io", "customresourcedefinitions");
    let grant = |rules: &str| {
        let role = format!(
            "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: kube-source}}
rules:
{rules}---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: kube-source}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-source}}
subjects:
- {{kind: ServiceAccount, name: default, namespace: forbidden}}
"
        );
        cluster.apply(&role).unwrap();
    };
    grant(&some);
    let kubeconfig = cluster.kubeconfig_of("forbidden", "default").unwrap();
    let mut reader = Reader::new(cluster, &kubeconfig, None);
    let all_but_one = |health: &Health| health.missing().len() == 1;
    // Permissions take a moment to be known to the API server.
    let started = std::time::Instant::now();
    while !all_but_one(&reader.health) && started.elapsed() < LIMIT {
        assert!(!reader.take(Duration::from_millis(200), |_, _| true), "a mesh without policies is open");
    }
    let expected = "cannot list authorizationpolicies.security.istio.io: system:serviceaccount:forbidden:default may not: \
                    install the chart with the value rbac.create=true, or grant it the verb list on \
                    authorizationpolicies.security.istio.io";
    assert_eq!(reader.health.missing(), [expected]);
    assert!(!reader.take(Duration::from_secs(2), |_, _| true), "a mesh without policies is open");

    grant(&(some + &rule("security.istio.io", "authorizationpolicies")));
    reader.until("a mesh", |_, health| health.missing().is_empty() && is_whole(health));
}

/// Whether a resource is not there or only not yet, nobody can say who may not read the definitions; an agent without any
/// objects of it goes by the API server's word.
#[test]
fn an_agent_that_may_not_read_definitions_and_finds_no_resources_is_ready() {
    let cluster = ControlPlane::start().unwrap();
    cluster.namespace("blind").unwrap();
    let role = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: blind}
rules:
- {apiGroups: [''], resources: [namespaces, nodes, pods, services, configmaps], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
- {apiGroups: [networking.istio.io, security.istio.io, gateway.networking.k8s.io], resources: ['*'], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: blind}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: blind}
subjects:
- {kind: ServiceAccount, name: default, namespace: blind}
";
    cluster.apply(role).unwrap();
    cluster.pod("blind", "there", "default", "n1", &["10.7.0.1"]).unwrap();
    let mut reader = Reader::new(&cluster, &cluster.kubeconfig_of("blind", "default").unwrap(), None);
    reader.until("a mesh", |mesh, health| has_pod(mesh, "blind", "there") && health.missing().is_empty());
    let status = reader.health.status();
    let definitions = &status.resources["customresourcedefinitions.apiextensions.k8s.io"];
    let problem = definitions.problem.clone().unwrap_or_default();
    assert!(definitions.state == State::Failing && problem.contains("rbac.create=true"), "{definitions:?}");
    assert_eq!(state(&reader.health, "serviceentries.networking.istio.io"), State::Absent);
}

#[test]
fn an_agent_that_starts_while_the_api_server_is_away_starts_from_what_was_known() {
    let (_server, cluster) = shared();
    cluster.namespace("disk").unwrap();
    policies(cluster);
    cluster.pod("disk", "stays", "default", "n1", &["10.4.0.1"]).unwrap();
    cluster.pod("disk", "goes", "default", "n1", &["10.4.0.2"]).unwrap();
    create(cluster, &policies_path("disk"), &policy("goes", Value::Null));
    let file = cluster.directory().join("disk").join("objects");
    let mut reader = Reader::new(cluster, &cluster.kubeconfig(), Some(file.clone()));
    reader.until("what is there", |mesh, health| {
        has_pod(mesh, "disk", "stays") && has_policy(mesh, "disk", "goes") && is_whole(health)
    });
    let port = reader.port;
    let wire = reader.end();
    let bytes = std::fs::read(&file).unwrap();

    // The next one, with nobody there.
    wire.cut();
    let mut reader = Reader::over(wire, port, &cluster.kubeconfig(), Some(file.clone()));
    reader.until("the pods of before", |mesh, _| {
        has_pod(mesh, "disk", "stays") && has_pod(mesh, "disk", "goes") && has_policy(mesh, "disk", "goes")
    });
    assert!(!is_whole(&reader.health) && reader.health.missing().is_empty());
    let note = reader.health.notes().join("\n");
    assert!(note.starts_with("configuration from 2") && note.contains("cannot be reached"), "{note}");
    assert!(reader.health.status().started_from.is_some());

    // What went meanwhile goes once it can be known.
    delete(cluster, "/api/v1/namespaces/disk/pods/goes");
    delete(cluster, &format!("{}/goes", policies_path("disk")));
    reader.wire.restore();
    reader.until("what happened meanwhile", |mesh, health| {
        !has_pod(mesh, "disk", "goes") && !has_policy(mesh, "disk", "goes") && is_whole(health)
    });
    assert!(has_pod(&reader.snapshot(), "disk", "stays") && reader.health.status().started_from.is_none());
    let wire = reader.end();

    // A file that is not whole is none: the mesh waits for the API server.
    wire.cut();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let mut reader = Reader::over(wire, port, &cluster.kubeconfig(), Some(file));
    assert!(!reader.take(Duration::from_secs(3), |_, _| true), "started from half a file");
    assert!(!reader.health.missing().is_empty());
    reader.wire.restore();
    reader.until("a mesh", |mesh, health| has_pod(mesh, "disk", "stays") && is_whole(health));
}

#[test]
fn ten_thousand_pods_are_followed_as_they_come_and_listed_in_pages() {
    const PODS: usize = 10_000;
    let (_server, cluster) = shared();
    cluster.namespace("bulk").unwrap();
    let mut reader = Reader::started(cluster);
    reader.until("a mesh", |_, health| is_whole(health));
    let pod = |n: usize| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}"), "labels": {"app": "bulk"}},
            "spec": {
                "nodeName": "n1", "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none"}],
            },
        })
    };
    let path = "/api/v1/namespaces/bulk/pods";
    let pods: Vec<_> = (0..PODS).map(|n| ("POST", path.to_owned(), pod(n))).collect();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| cluster.request_many(&pods).unwrap());
        reader.until("all of them", |_, health| health.status().resources["pods"].objects >= PODS);
        creating.join().unwrap();
    });

    let since = cluster.audit().unwrap().len();
    let mut second = Reader::started(cluster);
    second.until("a mesh", |_, health| is_whole(health) && health.status().resources["pods"].objects >= PODS);
    let pages = cluster.requests_of("culvert/", since).unwrap();
    let pages = pages.iter().filter(|request| request.verb == "list" && request.resource == "pods");
    assert!(pages.filter(|request| request.uri.contains("continue=")).count() >= PODS / 500 - 1);

    let all = format!("{path}?gracePeriodSeconds=0");
    std::thread::scope(|scope| {
        // It may take longer than a client waits.
        scope.spawn(|| (0..5).any(|_| cluster.request("DELETE", &all, None).is_ok()));
        reader.until("most of them to go", |_, health| health.status().resources["pods"].objects < PODS / 2);
    });
}

#[test]
fn an_idle_agent_asks_for_nothing() {
    let _server = SERVER.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = ControlPlane::shared();
    let user = cluster.kubeconfig_with_certificate("idle", "/O=system:masters/CN=idle").unwrap();
    let mut reader = Reader::new(cluster, &user, None);
    let is_waiting = |resource: &ResourceStatus| matches!(resource.state, State::Waiting | State::Listed);
    reader.until("a mesh", |_, health| is_whole(health) && !health.status().resources.values().any(is_waiting));
    // Alone: what other tests install, an agent would look at.
    let since = cluster.audit().unwrap().len();
    reader.take(Duration::from_secs(5), |_, _| false);
    let asked = cluster.requests_of("idle", since).unwrap();
    assert!(asked.iter().all(|request| request.verb == "watch"), "{asked:#?}");
    let is_followed = |resource: &ResourceStatus| matches!(resource.state, State::Watched | State::Absent);
    let status = reader.health.status();
    assert!(status.resources.values().all(is_followed), "{status:#?}");
    // Before, it listed each resource once, and asked for nothing else.
    let lists = cluster.requests_of("idle", 0).unwrap();
    let lists: Vec<_> = lists.iter().filter(|request| request.verb != "watch").map(|request| &request.uri).collect();
    assert!(lists.len() <= status.resources.len() && lists.iter().all(|uri| uri.contains("limit=500")), "{lists:#?}");
}
