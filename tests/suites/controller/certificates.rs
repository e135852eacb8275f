//! Who is given a certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert::ca::{CertificateAuthority, ServiceCa, SigningRequest};
use culvert_core::identity::Identity;
use culvert_tests::eventually;
use culvert_tests::kube::ControlPlane;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::json;

use super::replica::{Installation, LIMIT};

fn csr(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn request(account: &str, csr: String) -> SigningRequest {
    let identity = Identity::new("cluster.local", "shop", account);
    SigningRequest { csr, identity, ttl: Duration::from_secs(3600) }
}

async fn refusal(client: &Arc<ServiceCa>, request: SigningRequest) -> String {
    client.sign(request).await.expect_err("is signed").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_given_what_runs_there_and_every_other_token_and_csr_is_refused_with_a_reason() {
    let installation = Installation::new("ca-tokens");
    let Installation { cluster, namespace, .. } = &installation;
    let mut replica = installation.start("one", &[]);
    replica.wait_ready();
    cluster.namespace("shop").unwrap();
    for account in ["cart", "web"] {
        cluster.service_account("shop", account).unwrap();
    }
    let token = installation.node_agent("agent-1", "n1", "istio-ca");
    let _ = installation.node_agent("agent-2", "n2", "istio-ca");
    // Created a moment before it is asked for, as in CNI ADD.
    cluster.pod("shop", "cart-1", "cart", "n1", &["10.9.1.1"]).unwrap();
    let client = installation.client(&replica, "good", &token);
    let signed = client.sign(request("cart", csr(&["spiffe://cluster.local/ns/shop/sa/cart"]))).await.unwrap();
    assert_eq!(signed.chain.len(), 1, "the leaf; the root is everywhere already");
    verify_with_openssl(&installation, &signed.chain[0]);

    let audience = cluster.token(namespace, "culvert-node", "https://kubernetes.default.svc", Some("agent-1")).unwrap();
    let unbound = cluster.token(namespace, "culvert-node", "istio-ca", None).unwrap();
    let own_pods = cluster.token("shop", "cart", "istio-ca", Some("cart-1")).unwrap();
    let _ = installation.node_agent("agent-3", "n1", "istio-ca");
    let deleted = cluster.token(namespace, "culvert-node", "istio-ca", Some("agent-3")).unwrap();
    let gone = format!("/api/v1/namespaces/{namespace}/pods/agent-3");
    let at_once = json!({"gracePeriodSeconds": 0});
    cluster.request("DELETE", &gone, Some(&at_once)).unwrap().success().unwrap();
    eventually(LIMIT, "the pod to be gone", || (cluster.get(&gone).unwrap().status == 404).then_some(())).unwrap();
    let mut claims = ControlPlane::claims(&token).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    claims["iat"] = json!(now - 7200);
    claims["nbf"] = json!(now - 7200);
    claims["exp"] = json!(now - 3600);
    let expired = cluster.forge(&claims).unwrap();
    let elsewhere = cluster.token(namespace, "culvert-node", "istio-ca", Some("agent-2")).unwrap();

    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for (name, token, account, csr, reason, logged) in [
        ("audience", &audience, "cart", csr(&[]), "audience", "is for other audiences"),
        ("unbound", &unbound, "cart", csr(&[]), "unbound_token", "is bound to no pod"),
        ("expired", &expired, "cart", csr(&[]), "token", "does not accept the token"),
        ("deleted", &deleted, "cart", csr(&[]), "token", "does not accept the token"),
        (
            "elsewhere",
            &elsewhere,
            "cart",
            csr(&[]),
            "other_node",
            "on node n2 asks for spiffe://cluster.local/ns/shop/sa/cart",
        ),
        ("not there", &token, "web", csr(&[]), "other_node", "of which no pod runs there"),
        ("not a node's", &own_pods, "web", csr(&[]), "not_trusted", "shop/cart asks for"),
        ("foreign csr", &token, "cart", csr(&[web]), "csr_name", "names someone else"),
        ("two names", &token, "cart", csr(&[cart, web]), "csr", "the CSR asks for 2 names"),
        ("key type", &token, "cart", openssl_csr("secp521r1"), "csr", "the CSR is for an EC key of another curve"),
    ] {
        let counter = format!("culvert_controller_certificate_refusals_total{{reason=\"{reason}\"}}");
        let before = replica.metric(&counter);
        let client = installation.client(&replica, name, token);
        let line = refusal(&client, request(account, csr)).await;
        assert!(line.contains("refuses this agent") && line.contains("audience istio-ca"), "{name}: {line}");
        replica.wait_for_line(logged);
        assert!(replica.metric(&counter) > before, "{name}: {counter}");
    }
    let line = refusal(&client, request("cart", "x".repeat(1 << 20))).await;
    assert!(line.contains("OutOfRange"), "a megabyte: {line}");
    client.sign(request("cart", csr(&[]))).await.expect("nothing else is disturbed");
    let own = installation.client(&replica, "own", &own_pods);
    own.sign(request("cart", csr(&[]))).await.expect("anyone is given their own");
    assert!(replica.metric("citadel_server_success_cert_issuance_count") >= 3.0);

    // Mounted roots that are not those of the CA.
    let foreign = installation.agent(&replica, "foreign", &token);
    std::fs::write(&foreign.root_file, other_root()).unwrap();
    let line = refusal(&ServiceCa::open(foreign).unwrap(), request("cart", csr(&[]))).await;
    assert!(line.contains("leads to no root in --ca-root-file"), "{line}");
    let log = replica.stop();
    assert!(!log.contains(&token) && !log.contains("PRIVATE KEY"), "no secret is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_or_nonsense_hold_up_nobody() {
    use std::io::Write as _;
    use std::net::TcpStream;
    let installation = Installation::new("ca-hostile");
    let replica = installation.start("one", &[]);
    replica.wait_ready();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(replica.ca()).unwrap()).collect();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0x16; 4096]] {
        let mut socket = TcpStream::connect(replica.ca()).unwrap();
        let _ = socket.write_all(nonsense);
    }
    installation.cluster.namespace("shop").unwrap();
    installation.cluster.service_account("shop", "cart").unwrap();
    let token = installation.node_agent("agent-1", "n1", "istio-ca");
    let line = refusal(&installation.client(&replica, "agent", &token), request("nobody", csr(&[]))).await;
    assert!(line.contains("refuses this agent"), "the service answers: {line}");
    drop(silent);
}

fn verify_with_openssl(installation: &Installation, leaf: &[u8]) {
    use std::process::Command;
    let directory = installation.cluster.directory().join("openssl");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("leaf.der"), leaf).unwrap();
    std::fs::write(directory.join("roots.pem"), installation.roots(installation.namespace).unwrap()).unwrap();
    let script = "openssl x509 -inform der -in leaf.der -out leaf.pem
        openssl verify -purpose sslserver -CAfile roots.pem leaf.pem
        openssl verify -purpose sslclient -CAfile roots.pem leaf.pem
        openssl x509 -in leaf.pem -noout -ext subjectAltName";
    let said = Command::new("sh").args(["-ec", script]).current_dir(&directory).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    assert!(text.contains("URI:spiffe://cluster.local/ns/shop/sa/cart"), "{text}");
}

fn openssl_csr(curve: &str) -> String {
    use std::process::Command;
    let script = format!("openssl ecparam -name {curve} -genkey -noout | openssl req -new -key /dev/stdin -subj /CN=x");
    let said = Command::new("sh").args(["-ec", &script]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

fn other_root() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}
