//! Keys, roots, and who writes them.

use std::time::{Duration, Instant};

use culvert_tests::eventually;
use serde_json::json;

use super::plugged::{crl, root};
use super::replica::{Installation, LIMIT};

#[test]
fn two_replicas_that_start_at_once_have_one_root_and_the_second_takes_over_from_the_first() {
    let installation = Installation::new("ca-replicas");
    let replicas = [installation.start("one", &[]), installation.start("two", &[])];
    replicas.iter().for_each(|replica| replica.wait_ready());
    let root = installation.secret("culvert-ca-secret", "root-cert.pem").unwrap();
    let made: usize = replicas.iter().map(|replica| replica.log().matches("made a root").count()).sum();
    assert_eq!(made, 1, "one of them made it");
    let leader = eventually(LIMIT, "a leader", || installation.leader()).unwrap();
    for namespace in [installation.namespace, "default", "kube-system"] {
        eventually(LIMIT, namespace, || (installation.roots(namespace)? == root).then_some(())).unwrap();
    }
    let [one, two] = replicas;
    let (first, second) = if leader == "one" { (one, two) } else { (two, one) };
    assert_eq!((first.metric("culvert_controller_leader"), second.metric("culvert_controller_leader")), (1.0, 0.0));

    let killed = Instant::now();
    first.kill();
    eventually(LIMIT, "the other replica to lead", || installation.leader().filter(|now| *now != leader)).unwrap();
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(10), "it waited for the Lease to run out: {took:?}");
    eventually(LIMIT, "it to say so", || (second.metric("culvert_controller_leader") == 1.0).then_some(())).unwrap();

    // What the leader is for: a new namespace, an edit, a deletion.
    installation.cluster.namespace("late").unwrap();
    let in_order = || (installation.roots("late")? == root).then_some(());
    eventually(LIMIT, "the roots in a new namespace", in_order).unwrap();
    let path = "/api/v1/namespaces/late/configmaps/istio-ca-root-cert";
    let edit = json!({"data": {"root-cert.pem": "someone else's"}});
    installation.cluster.request("PATCH", path, Some(&edit)).unwrap().success().unwrap();
    eventually(LIMIT, "an edit to be repaired", in_order).unwrap();
    installation.cluster.request("DELETE", path, None).unwrap().success().unwrap();
    eventually(LIMIT, "a deletion to be repaired", in_order).unwrap();
    assert_eq!(installation.secret("culvert-ca-secret", "root-cert.pem").unwrap(), root, "the root is the same");

    // One that ends leaves the Lease at once.
    let log = second.stop();
    assert!(log.contains("gave up the Lease"), "{log}");
    assert_eq!(installation.leader(), None);
}

#[test]
fn a_root_that_is_asked_for_spreads_before_it_signs() {
    let installation = Installation::new("ca-rotation");
    let mut replica = installation.start("one", &["--root-spread-seconds", "3"]);
    replica.wait_ready();
    let old = installation.secret("culvert-ca-secret", "root-cert.pem").unwrap();
    let annotate =
        ["-n", installation.namespace, "annotate", "secret", "culvert-ca-secret", "culvert.dev/rotate-root=now"];
    installation.cluster.kubectl(&annotate).unwrap();
    replica.wait_for_line("made another root");
    let signing = || installation.secret("culvert-ca-secret", "ca-cert.pem").unwrap();
    let both = |namespace: &str| {
        eventually(LIMIT, "both roots", || {
            let roots = installation.roots(namespace)?;
            (roots.contains(old.trim()) && roots.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
        })
        .unwrap();
    };
    both("default");
    both(installation.namespace);
    replica.wait_for_line("the new root signs");
    assert_ne!(signing().trim(), old.trim());
    both("default");
    replica.stop();
}

#[test]
fn what_is_plugged_in_counts_at_once_with_its_revocations() {
    let installation = Installation::new("ca-cacerts");
    let mut replica = installation.start("one", &[]);
    replica.wait_ready();
    let generated = installation.secret("culvert-ca-secret", "root-cert.pem").unwrap();
    let (root, key) = root("plugged in");
    let path = format!("/api/v1/namespaces/{}/secrets", installation.namespace);
    let mut secret = json!({
        "metadata": {"name": "cacerts"},
        "stringData": {
            "ca-cert.pem": root, "ca-key.pem": key, "cert-chain.pem": root, "root-cert.pem": root,
            "ca-crl.pem": crl(&root, &key),
        },
    });
    installation.cluster.request("POST", &path, Some(&secret)).unwrap().success().unwrap();
    eventually(LIMIT, "its root", || (installation.roots("default")?.trim() == root.trim()).then_some(())).unwrap();
    let revocations = || installation.map("default", "istio-ca-crl", "ca-crl.pem");
    eventually(LIMIT, "its revocations", || revocations().filter(|text| text.contains("X509 CRL"))).unwrap();
    assert!(replica.log().contains("none of the roots before is among the new ones"), "{}", replica.log());

    // Broken: the old one stays, and the log says what is wrong.
    let broken = json!({"stringData": {"ca-key.pem": "no key"}});
    let cacerts = format!("{path}/cacerts");
    installation.cluster.request("PATCH", &cacerts, Some(&broken)).unwrap().success().unwrap();
    let line = replica.wait_for_line("ca-key.pem: holds no private key in PEM");
    assert!(line.contains(&format!("Secret {}/cacerts", installation.namespace)), "{line}");
    assert_eq!(installation.roots("default").unwrap().trim(), root.trim());

    // Mended, without revocations, beside the root from before.
    secret["stringData"] = json!({
        "ca-cert.pem": root, "ca-key.pem": key, "cert-chain.pem": root, "root-cert.pem": format!("{root}{generated}"),
    });
    installation.cluster.request("DELETE", &cacerts, None).unwrap().success().unwrap();
    installation.cluster.request("POST", &path, Some(&secret)).unwrap().success().unwrap();
    eventually(LIMIT, "both roots", || installation.roots("default").filter(|t| t.contains(generated.trim()))).unwrap();
    eventually(LIMIT, "no revocations", || revocations().is_none().then_some(())).unwrap();
    replica.stop();
}
