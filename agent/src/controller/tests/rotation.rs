//! Keys are exchanged, and nobody's connection notices.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::super::keys::PLUGGED_IN;
use super::super::keys::secret::{self, Step};
use super::server::CaService;
use crate::ca::testing::{Root, TempDir};
use crate::ca::{CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT};
use crate::identity::{CertificateStore, StoreOptions, WorkloadCertificate, verify_peer, verify_server};

/// A node agent that has the certificates of `shop/cart` and `shop/job` on its node.
struct Agent {
    directory: TempDir,
    store: CertificateStore,
}

impl Agent {
    fn new(ca: &CaService) -> Self {
        let directory = TempDir::new();
        let store = CertificateStore::new(ca.client(&directory), StoreOptions::default());
        Self { directory, store }
    }

    /// The kubelet has brought the ConfigMap up to date.
    async fn sees(&self, ca: &CaService) {
        let mut trust = self.store.trust();
        ca.give(&self.directory);
        trust.changed().await.unwrap();
    }

    async fn certificate(&self, account: &str) -> Arc<WorkloadCertificate> {
        self.store.fetch(&Identity::new("cluster.local", "shop", account)).await.unwrap()
    }

    /// The certificate once it has been exchanged for the one of `serial`.
    async fn exchanged(&self, account: &str, serial: &str) -> Arc<WorkloadCertificate> {
        for _ in 0..500 {
            let certificate = self.certificate(account).await;
            if &*certificate.serial != serial {
                return certificate;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the certificate of {account} is still the one of {serial}");
    }
}

type Tunnel = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

/// A mutual handshake between two workloads, each verifying the other.
async fn connect(from: &WorkloadCertificate, to: &WorkloadCertificate, agents: [&Agent; 2]) -> Tunnel {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let (client, server) = tokio::join!(
        TlsConnector::from(from.client.clone()).connect(name, near),
        TlsAcceptor::from(to.server.clone()).accept(far),
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    let now = SystemTime::now();
    let [_, far] = agents;
    verify_server(client.get_ref().1.peer_certificates().unwrap(), std::slice::from_ref(&to.identity), now).unwrap();
    verify_peer(server.get_ref().1.peer_certificates().unwrap(), &far.store.trust_domains(), now).unwrap();

    (client, server)
}

async fn exchange(tunnel: &mut Tunnel, text: &[u8]) {
    tunnel.0.write_all(text).await.unwrap();
    tunnel.0.flush().await.unwrap();
    let mut read = vec![0; text.len()];
    tunnel.1.read_exact(&mut read).await.unwrap();
    assert_eq!(read, text);
}

#[tokio::test]
async fn a_generated_root_is_exchanged_without_a_dropped_or_a_refused_connection() {
    let now = SystemTime::now();
    let first = secret::generate(now).unwrap();
    let ca = CaService::start_with(first.clone()).await;
    ca.cluster.pod("shop", "job-2", "j2", "n1", "job", "Running");
    let (a, b) = (Agent::new(&ca), Agent::new(&ca));
    let (cart, job) = (a.certificate("cart").await, b.certificate("job").await);
    let mut live = connect(&cart, &job, [&a, &b]).await;

    // The new root spreads; one of the two has it, the other does not yet.
    let spreading = secret::take(Step::Begin, &first, now).unwrap();
    ca.replace(spreading.clone());
    a.sees(&ca).await;
    connect(&*a.certificate("cart").await, &*b.certificate("job").await, [&a, &b]).await;
    connect(&*b.certificate("job").await, &*a.certificate("cart").await, [&b, &a]).await;
    b.sees(&ca).await;

    // It signs: what it signs and what the old one signed know each other.
    let promoted = secret::take(Step::Promote, &spreading, now).unwrap();
    ca.replace(promoted.clone());
    let old_cart = a.certificate("cart").await.serial.clone();
    b.store.forget(&job.identity);
    let new_job = b.certificate("job").await;
    assert_ne!(new_job.serial, job.serial);
    connect(&*a.certificate("cart").await, &new_job, [&a, &b]).await;
    connect(&new_job, &*a.certificate("cart").await, [&b, &a]).await;
    exchange(&mut live, b"while both are trusted").await;

    // The old one is dropped: who still has a certificate of it gets another at once.
    let retired = secret::take(Step::Retire, &promoted, now).unwrap();
    ca.replace(retired);
    a.sees(&ca).await;
    let new_cart = a.exchanged("cart", &old_cart).await;
    b.sees(&ca).await;
    connect(&new_cart, &*b.certificate("job").await, [&a, &b]).await;
    exchange(&mut live, b"and the first connection lives on").await;
}

#[tokio::test]
async fn an_intermediate_is_exchanged_without_a_dropped_or_a_refused_connection() {
    let root = Root::new("root");
    let (first, second) = (root.intermediate("first"), root.intermediate("second"));
    let ca = CaService::start().await;
    ca.keys.see(PLUGGED_IN, Some(Arc::new(cacerts(&first, &root))));
    ca.cluster.pod("shop", "job-2", "j2", "n1", "job", "Running");
    let (a, b) = (Agent::new(&ca), Agent::new(&ca));
    let cart = a.certificate("cart").await;
    let mut live = connect(&cart, &*b.certificate("job").await, [&a, &b]).await;

    ca.keys.see(PLUGGED_IN, Some(Arc::new(cacerts(&second, &root))));
    a.store.forget(&cart.identity);
    let renewed = a.certificate("cart").await;
    assert_ne!(renewed.serial, cart.serial);
    connect(&renewed, &*b.certificate("job").await, [&a, &b]).await;
    connect(&*b.certificate("job").await, &renewed, [&b, &a]).await;
    exchange(&mut live, b"still there").await;
}

#[tokio::test]
async fn keys_that_are_broken_or_gone_leave_what_signed_before() {
    let root = Root::new("root");
    let ca = CaService::start().await;
    let roots = || ca.keys.current().unwrap().roots.clone();
    let generated = roots();
    ca.keys.see(PLUGGED_IN, Some(Arc::new(cacerts(&root, &root))));
    let plugged_in = roots();
    assert_ne!(generated, plugged_in, "what is plugged in counts");

    let mut broken = cacerts(&root, &root);
    broken.data.as_mut().unwrap().remove(CA_KEY);
    ca.keys.see(PLUGGED_IN, Some(Arc::new(broken)));
    assert_eq!(roots(), plugged_in);
    let problem = ca.keys.problem().unwrap();
    assert!(problem.starts_with("Secret culvert-system/cacerts: ca-key.pem: is missing"), "{problem}");

    ca.keys.see(super::super::keys::GENERATED, None);
    ca.keys.see(PLUGGED_IN, None);
    assert_eq!(roots(), plugged_in, "a Secret deleted by mistake does not replace every identity");
    assert!(ca.keys.problem().unwrap().contains("has been deleted"));
}

fn cacerts(signing: &Root, root: &Root) -> Secret {
    let data = [
        (CA_CERT, signing.pem.clone()),
        (CA_KEY, signing.key_pem()),
        (CERT_CHAIN, format!("{}{}", signing.pem, root.pem)),
        (ROOT_CERT, root.pem.clone()),
    ];
    let data = data.into_iter().map(|(file, text)| (file.to_owned(), k8s_openapi::ByteString(text.into_bytes())));
    Secret { data: Some(data.collect()), ..Secret::default() }
}
