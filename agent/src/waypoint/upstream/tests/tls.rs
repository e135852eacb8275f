//! TLS as DestinationRules have it, against rustls' own server.

use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::files::testing::TempDir;

/// A server of HTTP over TLS, and the directory of the files that prove it.
struct Secured {
    directory: TempDir,
    at: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// The server name that was asked for, and whether the client showed a certificate.
type Seen = (Option<String>, bool);

impl Secured {
    /// Its certificate names `uri`.
    async fn start(uri: &str) -> Self {
        let root = Root::new("outside");
        let until = std::time::SystemTime::now() + Duration::from_secs(3600);
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let directory = TempDir::new();
        let (certificate, key) = root.leaf(&[uri], &usages, until);
        directory.write("root.pem", &root.pem);
        directory.write("other.pem", &Root::new("other").pem);
        let (own, own_key) = root.leaf(&["spiffe://outside/client"], &usages, until);
        directory.write("own.pem", &own);
        directory.write("own-key.pem", &own_key);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der.clone()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let seen_here = seen.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let Ok(io) = acceptor.accept(io).await else { continue };
                let session = io.get_ref().1;
                let shown = session.peer_certificates().is_some();
                seen_here.lock().unwrap().push((session.server_name().map(Into::into), shown));
                let answer = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"secured"))))
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), answer));
            }
        });
        Self { directory, at, seen }
    }

    /// What comes of a request with this `tls`, in which `DIR` is the directory.
    async fn ask(&self, tls: &str) -> Result<String, String> {
        let policy = format!("{{tls: {{{}}}}}", tls.replace("DIR", &self.directory.path().display().to_string()));
        let scene = Scene::new(&both(service("HTTP", &[self.at]), rule(&policy))).await;
        scene.get().await.map_err(|error| error.to_string())
    }
}

const NAME: &str = "spiffe://outside/server";

#[test]
fn a_server_has_to_prove_that_it_is_one_of_the_names() {
    run(async {
        let server = Secured::start(NAME).await;
        let root = "mode: SIMPLE, caCertificates: DIR/root.pem";
        for (tls, expected) in [
            (format!("{root}, subjectAltNames: ['{NAME}']"), Ok("secured")),
            (format!("{root}, subjectAltNames: ['spiffe://outside/another']"), Err("NotValidForName")),
            // By default it has to have the name of the host.
            (root.to_owned(), Err("NotValidForName")),
            (format!("mode: SIMPLE, caCertificates: DIR/other.pem, subjectAltNames: ['{NAME}']"), Err("UnknownIssuer")),
            ("mode: SIMPLE".to_owned(), Err("")),
            ("mode: SIMPLE, insecureSkipVerify: true".to_owned(), Ok("secured")),
            ("mode: SIMPLE, caCertificates: DIR/nowhere.pem".to_owned(), Err("tls.caCertificates")),
            ("mode: SIMPLE, credentialName: secret".to_owned(), Err("waypoints read no Secrets")),
        ] {
            match (server.ask(&tls).await, expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected, "{tls}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{tls}: {error}"),
                (found, _) => panic!("{tls}: {found:?}"),
            }
        }
    });
}

#[test]
fn the_servers_name_is_asked_for_and_a_certificate_shown_where_the_rule_says_so() {
    run(async {
        let server = Secured::start(NAME).await;
        let simple = format!("mode: SIMPLE, caCertificates: DIR/root.pem, subjectAltNames: ['{NAME}']");
        server.ask(&simple).await.unwrap();
        server.ask(&format!("{simple}, sni: other.example")).await.unwrap();
        let mutual = simple.replace("SIMPLE", "MUTUAL, clientCertificate: DIR/own.pem, privateKey: DIR/own-key.pem");
        server.ask(&mutual).await.unwrap();
        let seen = std::mem::take(&mut *server.seen.lock().unwrap());
        let host = |name: &str| Some(name.to_owned());
        assert_eq!(seen, [(host(HOST), false), (host("other.example"), false), (host(HOST), true)]);
    });
}

#[test]
fn files_of_tls_that_have_changed_are_read_again() {
    run_within(DAY, async {
        let server = Secured::start(NAME).await;
        let directory = server.directory.path().display().to_string();
        let root = std::fs::read_to_string(server.directory.path().join("root.pem")).unwrap();
        server.directory.write("ca.pem", "nothing yet");
        let policy = format!(
            "{{tls: {{mode: SIMPLE, caCertificates: {directory}/ca.pem, subjectAltNames: ['{NAME}']}}, \
             connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}}}"
        );
        let scene = Scene::new(&both(service("HTTP", &[server.at]), rule(&policy))).await;
        let error = scene.get().await.unwrap_err();
        assert!(error.to_string().contains("has no certificate"), "{error}");
        server.directory.write("ca.pem", &root);
        assert_eq!(scene.get().await.unwrap(), "secured");
        // What is written next cannot be used: what was there before still is.
        server.directory.write("ca.pem", "");
        later(10).await;
        assert_eq!(scene.get().await.unwrap(), "secured");
    });
}
