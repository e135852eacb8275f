//! Handshakes between workloads, and with those who should not get in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::client::Resumption;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::ca::testing::{Root, ScriptedCa};
use crate::ca::{TrustBundle, Usage};
use crate::identity::tls::{Template, provider};
use crate::identity::{
    CertificateStore, Evidence, PeerError, StoreOptions, TlsProblem, TokioClock, TrustDomains, TrustWatch,
    WorkloadCertificate, verify_peer, verify_server,
};
use crate::telemetry::ResponseFlags;

struct Mesh {
    root: Root,
    ca: Arc<ScriptedCa>,
    store: CertificateStore,
}

impl Mesh {
    fn new() -> Self {
        let root = Root::new("root");
        let ca = ScriptedCa::new(&root, Arc::new(TokioClock::starting_at(SystemTime::now())));
        let options = StoreOptions { clock: ca.clock.clone(), ..StoreOptions::default() };
        let store = CertificateStore::new(ca.clone(), options);
        Self { root, ca, store }
    }

    async fn certificate(&self, account: &str) -> Arc<WorkloadCertificate> {
        self.store.fetch(&identity(account)).await.unwrap()
    }

    /// A client that trusts this mesh and presents what `root` signed for `uris`.
    fn stranger(&self, root: &Root, uris: &[&str], until: SystemTime) -> Arc<ClientConfig> {
        self.stranger_for(root, uris, &[ClientAuth, ServerAuth], until)
    }

    fn stranger_for(
        &self,
        root: &Root,
        uris: &[&str],
        usages: &[rcgen::ExtendedKeyUsagePurpose],
        until: SystemTime,
    ) -> Arc<ClientConfig> {
        self.template().client(&key(root, uris, usages, until)).unwrap()
    }

    fn template(&self) -> Template {
        let TrustWatch { bundle, domains } = self.store.trust();
        Template::new(bundle, domains, self.ca.clock.clone())
    }
}

fn key(root: &Root, uris: &[&str], usages: &[rcgen::ExtendedKeyUsagePurpose], until: SystemTime) -> Arc<CertifiedKey> {
    let (certificate, key) = root.leaf(uris, usages, until);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(CertifiedKey::from_der(chain, key, provider()).unwrap())
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn tomorrow() -> SystemTime {
    SystemTime::now() + Duration::from_secs(86400)
}

type Ends = (client::TlsStream<tokio::io::DuplexStream>, server::TlsStream<tokio::io::DuplexStream>);

/// A handshake after which a byte has gone both ways, so that the tickets have arrived.
async fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Ends, std::io::Error> {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let connector = TlsConnector::from(client.clone());
    let acceptor = TlsAcceptor::from(server.clone());
    let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    let (mut server, mut client) = (server?, client?);
    server.write_all(b"x").await?;
    server.flush().await?;
    client.read_u8().await?;
    Ok((client, server))
}

fn kinds((client, server): &Ends) -> (HandshakeKind, HandshakeKind) {
    (client.get_ref().1.handshake_kind().unwrap(), server.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test]
async fn workloads_of_one_mesh_know_each_other() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.certificate("a").await, mesh.certificate("b").await);
    let ends = connect(&a.client, &b.server).await.unwrap();
    let (client, server) = (ends.0.get_ref().1, ends.1.get_ref().1);
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(server.server_name(), None, "no SNI");
    let now = mesh.store.clock().now();
    let source = verify_peer(server.peer_certificates().unwrap(), &mesh.store.trust_domains(), now).unwrap();
    assert_eq!(source, identity("a"));
    let chain = client.peer_certificates().unwrap();
    assert_eq!(verify_server(chain, &[Arc::new(identity("b"))], now), Ok(identity("b")));
    let error = verify_server(chain, &[Arc::new(identity("c"))], now).unwrap_err().to_string();
    assert!(error.contains("/sa/c") && error.contains("/sa/b"), "{error}");
}

#[tokio::test]
async fn sessions_are_resumed_between_the_same_two_identities_only() {
    let mesh = Mesh::new();
    let (a, b, c) = (mesh.certificate("a").await, mesh.certificate("b").await, mesh.certificate("c").await);
    let full = (HandshakeKind::Full, HandshakeKind::Full);
    let resumed = (HandshakeKind::Resumed, HandshakeKind::Resumed);

    assert_eq!(kinds(&connect(&a.client, &b.server).await.unwrap()), full);
    let ends = connect(&a.client, &b.server).await.unwrap();
    assert_eq!(kinds(&ends), resumed);
    let now = mesh.store.clock().now();
    let chain = ends.1.get_ref().1.peer_certificates().unwrap();
    assert_eq!(verify_peer(chain, &mesh.store.trust_domains(), now), Ok(identity("a")), "and still knows the peer");

    // The same address now belongs to another identity: a ticket of b opens nothing at c.
    assert_eq!(kinds(&connect(&a.client, &c.server).await.unwrap()), full);
    // Another client identity has no part in the tickets of the first.
    assert_eq!(kinds(&connect(&c.client, &b.server).await.unwrap()), full);
}

#[tokio::test(start_paused = true)]
async fn tickets_go_with_the_certificate_and_with_the_roots() {
    let mesh = Mesh::new();
    let other = Root::new("other");
    let (a, b) = (mesh.certificate("a").await, mesh.certificate("b").await);
    connect(&a.client, &b.server).await.unwrap();

    mesh.ca.replace(&mesh.root, &format!("{}{}", mesh.root.pem, other.pem));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let b = mesh.certificate("b").await;
    let after_roots = connect(&a.client, &b.server).await.unwrap();
    assert_eq!(kinds(&after_roots).1, HandshakeKind::Full);

    tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
    let b = mesh.certificate("b").await;
    let after_renewal = connect(&a.client, &b.server).await.unwrap();
    assert_eq!(kinds(&after_renewal).1, HandshakeKind::Full);
}

#[tokio::test(start_paused = true)]
async fn a_resumed_session_does_not_outlive_the_certificate_it_began_with() {
    let mesh = Mesh::new();
    let b = mesh.certificate("b").await;
    let soon = SystemTime::now() + Duration::from_secs(600);
    let brief = mesh.stranger(&mesh.root, &["spiffe://cluster.local/ns/shop/sa/a"], soon);
    connect(&brief, &b.server).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let ends = connect(&brief, &b.server).await.unwrap();
    let server = ends.1.get_ref().1;
    assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed), "TLS itself does not look again");
    let now = mesh.store.clock().now();
    let verdict = verify_peer(server.peer_certificates().unwrap(), &mesh.store.trust_domains(), now);
    assert!(matches!(verdict, Err(PeerError::NotValidNow(_))), "{verdict:?}");
}

/// What the log says of a failed handshake.
fn told(error: &std::io::Error) -> String {
    TlsProblem(error.get_ref().unwrap().downcast_ref().unwrap()).to_string()
}

#[tokio::test]
async fn who_does_not_belong_is_refused_by_the_server() {
    let mesh = Mesh::new();
    let b = mesh.certificate("b").await;
    let known = ["spiffe://cluster.local/ns/shop/sa/a"];
    let foreign = Root::new("foreign");
    let yesterday = SystemTime::now() - Duration::from_secs(3600);
    let cases = [
        (
            "foreign root",
            mesh.stranger(&foreign, &known, tomorrow()),
            "leads to no root of this mesh; compare root-cert.pem",
        ),
        ("expired", mesh.stranger(&mesh.root, &known, yesterday), "has expired; check"),
        ("server only", mesh.stranger_for(&mesh.root, &known, &[ServerAuth], tomorrow()), "(extended key usage)"),
        (
            "foreign trust domain",
            mesh.stranger(&mesh.root, &["spiffe://other/ns/shop/sa/a"], tomorrow()),
            "spiffe://other/ns/shop/sa/a is not in this mesh's trust domain; if it should be, add",
        ),
        (
            "no identity",
            mesh.stranger(&mesh.root, &["https://a.example"], tomorrow()),
            "has no URI name of the form spiffe://",
        ),
        (
            "odd identity",
            mesh.stranger(&mesh.root, &["spiffe://cluster.local/shop/a"], tomorrow()),
            "has no URI name of the form spiffe://",
        ),
    ];
    for (case, client, expected) in cases {
        let error = connect(&client, &b.server).await.err().unwrap_or_else(|| panic!("{case} got in"));
        assert!(told(&error).contains(expected), "{case}: {}", told(&error));
    }
    let mixed = ["spiffe://other/ns/shop/sa/x", known[0]];
    let ends = connect(&mesh.stranger(&mesh.root, &mixed, tomorrow()), &b.server).await.unwrap();
    let chain = ends.1.get_ref().1.peer_certificates().unwrap();
    assert_eq!(verify_peer(chain, &mesh.store.trust_domains(), mesh.store.clock().now()), Ok(identity("a")));
}

#[tokio::test]
async fn who_does_not_belong_is_refused_by_the_client() {
    let mesh = Mesh::new();
    let a = mesh.certificate("a").await;
    let known = ["spiffe://cluster.local/ns/shop/sa/b"];
    let yesterday = SystemTime::now() - Duration::from_secs(3600);
    let both = [ClientAuth, ServerAuth];
    let cases = [
        (
            "foreign root",
            key(&Root::new("foreign"), &known, &both, tomorrow()),
            "leads to no root of this mesh; compare root-cert.pem",
        ),
        ("expired", key(&mesh.root, &known, &both, yesterday), "has expired; check"),
        ("client only", key(&mesh.root, &known, &[ClientAuth], tomorrow()), "(extended key usage)"),
        ("no identity", key(&mesh.root, &[], &both, tomorrow()), "has no URI name of the form spiffe://"),
    ];
    for (case, key, expected) in cases {
        let (near, far) = duplex(64 << 10);
        let acceptor = TlsAcceptor::from(mesh.template().server(&key).unwrap());
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let (client, _) = tokio::join!(TlsConnector::from(a.client.clone()).connect(name, near), acceptor.accept(far));
        let error = client.err().unwrap_or_else(|| panic!("{case} was believed"));
        assert!(told(&error).contains(expected), "{case}: {}", told(&error));
    }
}

#[tokio::test]
async fn an_alias_of_the_trust_domain_is_let_in_as_soon_as_the_options_say_so() {
    let mesh = Mesh::new();
    let b = mesh.certificate("b").await;
    let client = mesh.stranger(&mesh.root, &["spiffe://old-name/ns/shop/sa/a"], tomorrow());
    assert!(connect(&client, &b.server).await.is_err());
    mesh.store.set_trust_domains(TrustDomains::new("cluster.local", ["old-name".into()]));
    connect(&client, &b.server).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_any_of_several_roots_is_known() {
    let mesh = Mesh::new();
    let new = Root::new("new");
    mesh.ca.replace(&mesh.root, &format!("{}{}", mesh.root.pem, new.pem));
    let b = mesh.certificate("b").await;
    for root in [&mesh.root, &new] {
        let client = mesh.stranger(root, &["spiffe://cluster.local/ns/shop/sa/a"], tomorrow());
        connect(&client, &b.server).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_let_in_is_judged_by_every_later_trust() {
    let mesh = Mesh::new();
    let (new, watch) = (Root::new("new"), mesh.store.trust());
    let domains = |aliases: &[&str]| TrustDomains::new("cluster.local", aliases.iter().map(|alias| (*alias).into()));
    mesh.ca.replace(&mesh.root, &format!("{}{}", mesh.root.pem, new.pem));
    mesh.store.set_trust_domains(domains(&["old-name"]));
    let let_in = |root: &Root, usage, uri: &str| {
        let key = key(root, &[uri], &[ClientAuth, ServerAuth], tomorrow());
        let now = mesh.store.clock().now();
        Evidence::new(key.cert.clone(), usage, now, &uri.parse().unwrap(), &watch.now().domains)
    };
    let home = "spiffe://cluster.local/ns/shop/sa/a";
    let (old_root, new_root) = (let_in(&mesh.root, Usage::Client, home), let_in(&new, Usage::Server, home));
    let alias = let_in(&new, Usage::Client, "spiffe://old-name/ns/shop/sa/a");
    // As only a server may be, where a ServiceEntry names it.
    let foreign = let_in(&new, Usage::Server, "spiffe://elsewhere/ns/shop/sa/a");
    let trusted = || [&old_root, &new_root, &alias, &foreign].map(|peer| peer.check(&watch.now()).is_ok());
    assert_eq!(trusted(), [true; 4]);

    mesh.store.set_trust_domains(domains(&[]));
    assert_eq!(trusted(), [true, true, false, true]);
    assert!(alias.check(&watch.now()).unwrap_err().to_string().contains("old-name"));
    mesh.store.set_trust_domains(domains(&["older-name", "old-name"]));
    assert_eq!(trusted(), [true; 4]);

    mesh.ca.replace(&new, &new.pem);
    assert_eq!(trusted(), [false, true, true, true]);
    let why = old_root.check(&watch.now()).unwrap_err();
    assert!(why.to_string().contains("no root of this mesh"), "{why}");
    // A tunnel may outlive the certificate it began with.
    tokio::time::advance(Duration::from_secs(2 * 86400)).await;
    assert_eq!(trusted(), [false, true, true, true]);
}

#[tokio::test]
async fn a_name_is_looked_for_among_the_first_sixteen_only() {
    let root = Root::new("root");
    let uris: Vec<String> = (0..1000).map(|n| format!("https://{n}.example")).collect();
    let mut uris: Vec<&str> = uris.iter().map(String::as_str).collect();
    uris.push("spiffe://cluster.local/ns/shop/sa/a");
    let key = key(&root, &uris, &[ClientAuth], tomorrow());
    let verdict = verify_peer(&key.cert, &TrustDomains::default(), SystemTime::now());
    assert_eq!(verdict, Err(PeerError::NoIdentity));
    let garbage = [CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff])];
    assert_eq!(verify_peer(&garbage, &TrustDomains::default(), SystemTime::now()), Err(PeerError::Malformed));
    assert_eq!(verify_peer(&[], &TrustDomains::default(), SystemTime::now()), Err(PeerError::NoCertificate));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_client_is_refused_also_with_a_ticket() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.certificate("a").await, mesh.certificate("b").await);
    connect(&a.client, &b.server).await.unwrap();
    let ends = connect(&a.client, &b.server).await.unwrap();
    assert_eq!(kinds(&ends).1, HandshakeKind::Resumed);

    let serial = a.serial.as_bytes().chunks(2).map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap());
    let list = mesh.root.revoke(&serial.collect::<Vec<_>>());
    let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
    let mut trust = mesh.store.trust();
    let bundle = TrustBundle::new(vec![mesh.root.der.clone()], &[list]).unwrap();
    mesh.ca.trust.send_replace(Arc::new(bundle));
    trust.changed().await.unwrap();
    let mut without_ticket = ClientConfig::clone(&a.client);
    without_ticket.resumption = Resumption::disabled();
    let error = connect(&Arc::new(without_ticket), &b.server).await.unwrap_err();
    assert_eq!(told(&error), "the peer's certificate is revoked", "before any configuration is made anew");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let b = mesh.certificate("b").await;
    let error = connect(&a.client, &b.server).await.unwrap_err();
    assert_eq!(told(&error), "the peer's certificate is revoked");
    let error: &rustls::Error = error.get_ref().unwrap().downcast_ref().unwrap();
    assert_eq!(TlsProblem(error).response_flags(), ResponseFlags::CertificateRevoked);
}
