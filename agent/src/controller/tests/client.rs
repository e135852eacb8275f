//! The agent's client against the real service.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rcgen::{CertificateParams, KeyPair};

use super::server::{CaService, jwt, options};
use crate::ca::testing::{Root, TempDir};
use crate::ca::{Asker, CertificateAuthority, ServiceCa, ServiceOptions, SigningRequest, certificate_pem};
use crate::identity::{CertificateStore, StoreOptions, TokioClock, peer_identities};

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn signing(csr: String) -> SigningRequest {
    SigningRequest { csr, identity: cart(), ttl: Duration::from_secs(3600) }
}

fn good() -> SigningRequest {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    signing(csr)
}

async fn complaint(client: &Arc<ServiceCa>, request: SigningRequest) -> String {
    let line = client.sign(request).await.unwrap_err().to_string();
    assert!(!line.contains('\n') && line.len() < 700, "{line}");
    line
}

#[tokio::test]
async fn a_certificate_is_obtained_and_kept_and_openssl_agrees_with_its_chain() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    let store = CertificateStore::new(ca.client(&directory), StoreOptions::default());
    let certificate = store.fetch(&cart()).await.unwrap();
    let life = certificate.not_after.duration_since(certificate.not_before).unwrap();
    assert_eq!(life, Duration::from_secs(24 * 3600 + 120), "a day, and two minutes for clocks that differ");

    let signed = ca.client(&directory).sign(good()).await.unwrap();
    directory.write("leaf.pem", &certificate_pem(&signed.chain[0]));
    let script = "openssl verify -purpose sslserver -CAfile root-cert.pem leaf.pem && \
                  openssl verify -purpose sslclient -CAfile root-cert.pem leaf.pem && \
                  openssl x509 -in leaf.pem -noout -ext subjectAltName,basicConstraints,extendedKeyUsage";
    let said = Command::new("sh").arg("-ec").arg(script).current_dir(directory.path()).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    assert!(text.contains("URI:spiffe://cluster.local/ns/shop/sa/cart") && text.contains("CA:FALSE"), "{text}");
    assert!(text.contains("TLS Web Server Authentication, TLS Web Client Authentication"), "{text}");
}

#[tokio::test]
async fn who_asks_for_itself_names_nobody_and_is_given_its_own_identity() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    ca.give(&directory);
    directory.write("token", &jwt("agent"));
    for (asker, expected) in
        [(Asker::Node, cart()), (Asker::Itself, Identity::new("cluster.local", "culvert-system", "culvert-node"))]
    {
        let options = ServiceOptions { asker, ..options(&directory, &format!("localhost:{}", ca.port)) };
        let signed = ServiceCa::open(options).unwrap().sign(good()).await.unwrap();
        assert_eq!(peer_identities(&signed.chain).unwrap()[..], [expected], "{asker:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_check() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    let client = ca.client(&directory);
    directory.write("token", &jwt("of nobody"));
    let line = complaint(&client, good()).await;
    for word in ["refuses this agent", "audience istio-ca", "--ca-token-file", "trustedNodeAccounts", "log"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    directory.write("token", &jwt("agent"));
    client.sign(good()).await.expect("the token is read anew for each request");
}

#[tokio::test]
async fn a_request_of_a_megabyte_is_refused_and_the_next_one_served() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    let client = ca.client(&directory);
    let line = complaint(&client, signing("x".repeat(1 << 20))).await;
    assert!(line.contains("OutOfRange"), "{line}");
    assert_eq!(ca.metrics.last_refusal(), "unread", "counted and logged like every refusal");
    client.sign(good()).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_one_line_with_the_flag_and_the_cure() {
    let directory = TempDir::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = ServiceCa::open(options(&directory, &format!("localhost:{closed}"))).unwrap();
    let line = complaint(&client, good()).await;
    assert!(line.starts_with("--ca-root-file: ") && line.contains("istio-ca-root-cert"), "{line}");
    assert!(client.trust().borrow().roots().is_empty());

    let mut trust = client.trust();
    directory.write("root-cert.pem", &Root::new("root").pem);
    trust.changed().await.unwrap();
    let line = complaint(&client, good()).await;
    assert!(line.starts_with("--ca-token-file: ") && line.contains("audience istio-ca"), "{line}");

    directory.write("token", &jwt("agent"));
    let line = complaint(&client, good()).await;
    assert!(line.contains(&format!("localhost:{closed} is out of reach")), "{line}");
    assert!(line.to_lowercase().contains("refused") && line.contains("check --ca-address"), "{line}");

    for bad in ["no-port", "host:", "host:x"] {
        let line = ServiceCa::open(options(&directory, bad)).unwrap_err().to_string();
        assert!(line.starts_with("--ca-address: "), "{line}");
    }
}

#[tokio::test]
async fn a_server_of_another_root_or_name_is_not_trusted() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    directory.write("root-cert.pem", &Root::new("of someone else").pem);
    directory.write("token", &jwt("agent"));
    let client = ServiceCa::open(options(&directory, &format!("localhost:{}", ca.port))).unwrap();
    let line = complaint(&client, good()).await;
    assert!(line.contains("leads to no root in --ca-root-file"), "{line}");

    ca.give(&directory);
    let client = ServiceCa::open(options(&directory, &format!("127.0.0.1:{}", ca.port))).unwrap();
    let line = complaint(&client, good()).await;
    assert!(line.contains("is not for 127.0.0.1"), "{line}");
}

#[tokio::test]
async fn a_clock_that_is_a_day_off_is_told_as_one() {
    let ca = CaService::start().await;
    let directory = TempDir::new();
    ca.give(&directory);
    directory.write("token", &jwt("agent"));
    let day = Duration::from_secs(25 * 3600);
    for now in [SystemTime::now() + day, SystemTime::now() - day] {
        let options = options(&directory, &format!("localhost:{}", ca.port));
        let options = ServiceOptions { clock: Arc::new(TokioClock::starting_at(now)), ..options };
        let line = complaint(&ServiceCa::open(options).unwrap(), good()).await;
        assert!(line.contains("clock"), "{line}");
    }
}

#[tokio::test]
async fn roots_and_revocations_are_followed_and_broken_files_change_nothing() {
    let directory = TempDir::new();
    let (old, new) = (Root::new("old"), Root::new("new"));
    directory.write("root-cert.pem", &old.pem);
    let client = ServiceCa::open(options(&directory, "localhost:1")).unwrap();
    let mut trust = client.trust();
    assert_eq!(trust.borrow_and_update().roots(), std::slice::from_ref(&old.der));
    directory.write("root-cert.pem", "half a fil");
    directory.write("ca-crl.pem", &old.revoke(&[7]));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!trust.has_changed().unwrap());
    directory.write("root-cert.pem", &format!("{}{}", old.pem, new.pem));
    trust.changed().await.unwrap();
    let bundle = trust.borrow_and_update().clone();
    assert_eq!(bundle.roots().len(), 2);
    let issuer = x509_parser::parse_x509_certificate(&old.der).unwrap().1.subject().as_raw().to_vec();
    assert!(bundle.revokes(&issuer, &[7]) && !bundle.revokes(&issuer, &[8]));
}
