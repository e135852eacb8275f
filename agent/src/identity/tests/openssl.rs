//! Handshakes with OpenSSL, which shares no code with us.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::ca::testing::{Root, ScriptedCa, TempDir};
use crate::identity::{CertificateStore, StoreOptions, SystemClock, TlsProblem};

/// A server of the mesh on a port of its own, and what OpenSSL makes of it with `arguments`.
async fn s_client(arguments: &str) -> String {
    s_client_and_server(arguments).await.0
}

/// [`s_client`], and what the server says of a client that it refuses.
async fn s_client_and_server(arguments: &str) -> (String, Option<String>) {
    let root = Root::new("root");
    let store = CertificateStore::new(ScriptedCa::new(&root, Arc::new(SystemClock)), StoreOptions::default());
    let server = store.fetch(&Identity::new("cluster.local", "shop", "cart")).await.unwrap().server.clone();

    let files = TempDir::new();
    let tomorrow = SystemTime::now() + Duration::from_secs(86400);
    let uris = ["spiffe://cluster.local/ns/shop/sa/client"];
    let (certificate, key) = root.leaf(&uris, &[ClientAuth, ServerAuth], tomorrow);
    files.write("cert.pem", &certificate);
    files.write("key.pem", &key);
    files.write("root.pem", &root.pem);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        let (socket, _) = listener.accept().await.unwrap();
        match TlsAcceptor::from(server).accept(socket).await {
            Ok(mut stream) => {
                let _ = stream.write_all(b"welcome\n").await;
                let _ = stream.shutdown().await;
                None
            }
            Err(error) => {
                let error: &rustls::Error = error.get_ref()?.downcast_ref()?;
                Some(TlsProblem(error).to_string())
            }
        }
    };
    let client = openssl(files.path(), format!("s_client -connect {address} -CAfile root.pem {arguments}"));
    tokio::join!(client, serve)
}

async fn openssl(directory: &Path, arguments: String) -> String {
    let mut command = Command::new("timeout");
    command.args(["20", "openssl"]).args(arguments.split_whitespace()).current_dir(directory).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert_ne!(output.status.code(), Some(124), "openssl did not end");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

const CERTIFIED: &str = "-cert cert.pem -key key.pem -ign_eof";

#[tokio::test]
async fn a_certified_client_is_welcome() {
    let said = s_client(&format!("{CERTIFIED} -alpn h2")).await;
    assert!(said.contains("welcome"), "{said}");
    assert!(said.contains("TLS_AES_256_GCM_SHA384") && said.contains("ALPN protocol: h2"), "{said}");
    assert!(said.contains("Verification: OK"), "{said}");
}

#[tokio::test]
async fn alpn_may_be_left_out_but_not_wrong() {
    let said = s_client(CERTIFIED).await;
    assert!(said.contains("welcome") && said.contains("No ALPN negotiated"), "{said}");
    let said = s_client(&format!("{CERTIFIED} -alpn http/1.1")).await;
    assert!(!said.contains("welcome") && said.contains("no application protocol"), "{said}");
}

#[tokio::test]
async fn sni_is_ignored() {
    let said = s_client(&format!("{CERTIFIED} -servername something.else.example")).await;
    assert!(said.contains("welcome"), "{said}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (said, told) = s_client_and_server(&format!("{CERTIFIED} -tls1_2")).await;
    assert!(told.unwrap().starts_with("the peer's TLS is not what the mesh speaks, TLS 1.3"));
    assert!(!said.contains("welcome") && said.contains("protocol version"), "{said}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let (said, told) = s_client_and_server("-ign_eof").await;
    assert_eq!(told.unwrap(), "the peer presented no certificate: it is not of a mesh");
    assert!(!said.contains("welcome") && said.contains("certificate required"), "{said}");
}

#[tokio::test]
async fn classical_groups_and_aes_128_are_accepted_and_chacha_is_not() {
    for group in ["X25519", "P-256", "P-384"] {
        let said = s_client(&format!("{CERTIFIED} -groups {group}")).await;
        assert!(said.contains("welcome"), "{group}: {said}");
    }
    let said = s_client(&format!("{CERTIFIED} -ciphersuites TLS_AES_128_GCM_SHA256")).await;
    assert!(said.contains("welcome"), "{said}");
    let said = s_client(&format!("{CERTIFIED} -ciphersuites TLS_CHACHA20_POLY1305_SHA256")).await;
    assert!(!said.contains("welcome") && said.contains("handshake failure"), "{said}");
}

#[tokio::test]
async fn the_request_has_no_subject_and_a_critical_uri_name() {
    let identity = Identity::new("cluster.local", "shop", "cart");
    let prepared = crate::identity::certificate::Prepared::new(&identity).unwrap();
    let files = TempDir::new();
    files.write("csr.pem", &prepared.csr);
    let said = openssl(files.path(), "req -in csr.pem -noout -text -verify".to_owned()).await;
    assert!(said.contains("verify OK") && said.contains("prime256v1"), "{said}");
    assert!(said.contains("Subject: \n") || said.contains("Subject:\n"), "{said}");
    assert!(said.contains("X509v3 Subject Alternative Name: critical"), "{said}");
    assert!(said.contains("URI:spiffe://cluster.local/ns/shop/sa/cart"), "{said}");
}
