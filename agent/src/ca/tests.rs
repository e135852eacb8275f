//! What is proven of the directory authority.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};

use super::testing::{Root, TempDir};
use super::*;

fn now() -> SystemTime {
    SystemTime::now()
}

fn request() -> SigningRequest {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    SigningRequest { csr, identity: Identity::new("cluster.local", "shop", "cart"), ttl: Duration::from_secs(3600) }
}

fn algorithms() -> rustls::crypto::WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

/// The line that opening `directory` fails with.
fn complaint(directory: &Path) -> String {
    files::load(directory, now()).expect_err("loads").to_string()
}

#[tokio::test]
async fn an_empty_directory_is_given_an_authority_that_works() {
    let directory = TempDir::new();
    let inner = directory.path().join("to/be/made");
    let ca = DirectoryCa::open(&inner).unwrap();
    let signed = ca.sign(request()).await.unwrap();
    let trust = ca.trust().borrow().clone();
    assert_eq!(trust.roots().len(), 1);
    assert_eq!(signed.chain.len(), 1, "the root is not sent in handshakes");
    for usage in [Usage::Client, Usage::Server] {
        trust.verify(&signed.chain[0], &[], usage, unix_time(now()), &algorithms()).unwrap();
    }
    let mode = |file: &str| std::fs::metadata(inner.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca-key.pem"), 0o600);
    let again = DirectoryCa::open(&inner).unwrap();
    assert!(again.trust().borrow().is_same_as(&trust), "a second start uses what is there");
}

#[test]
fn agents_that_start_at_once_end_with_one_authority() {
    let directory = TempDir::new();
    let path = directory.path();
    let created = std::thread::scope(|scope| {
        let start = |_| {
            scope.spawn(|| {
                let created = create::create_if_empty(path, now()).unwrap();
                (created, files::load(path, now()).unwrap().trust().roots().to_vec())
            })
        };
        let agents: Vec<_> = (0..8).map(start).collect();
        agents.into_iter().map(|agent| agent.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(created.iter().filter(|(created, _)| *created).count(), 1);
    assert!(created.iter().all(|(_, roots)| *roots == created[0].1));
}

#[test]
fn a_creation_that_was_cut_short_is_finished_or_begun_again() {
    let directory = TempDir::new();
    create::create_if_empty(directory.path(), now()).unwrap();
    let key = directory.read("ca-key.pem");
    // Killed between two moves.
    let staging = directory.path().join(".culvert-ca.complete");
    std::fs::create_dir(&staging).unwrap();
    for file in ["ca-key.pem", "root-cert.pem"] {
        std::fs::rename(directory.path().join(file), staging.join(file)).unwrap();
    }
    assert!(create::create_if_empty(directory.path(), now()).unwrap());
    assert_eq!(directory.read("ca-key.pem"), key);
    files::load(directory.path(), now()).unwrap();

    // Killed while writing.
    let directory = TempDir::new();
    std::fs::create_dir(directory.path().join(".culvert-ca.incomplete")).unwrap();
    directory.write(".culvert-ca.incomplete/ca-key.pem", "half a k");
    assert!(create::create_if_empty(directory.path(), now()).unwrap());
    files::load(directory.path(), now()).unwrap();
}

#[test]
fn an_authority_is_not_created_among_other_things() {
    let directory = TempDir::new();
    directory.write("letters.txt", "");
    let error = create::create_if_empty(directory.path(), now()).unwrap_err().to_string();
    assert!(error.contains("letters.txt") && error.contains("give an empty directory"), "{error}");
    assert!(!directory.path().join("ca-key.pem").exists());
}

#[test]
fn an_intermediate_authority_sends_the_way_to_its_root() {
    let root = Root::new("root");
    let middle = root.intermediate("middle");
    let signing = middle.intermediate("signing");
    let directory = TempDir::new();
    let chain = format!("{}{}{}", signing.pem, middle.pem, root.pem);
    signing.install(&directory, &chain, &root.pem);
    let loaded = files::load(directory.path(), now()).unwrap();
    let signed = loaded.sign(&request(), now()).unwrap();
    assert_eq!(signed.chain[1..], [signing.der.clone(), middle.der.clone()]);
    loaded
        .trust()
        .verify(&signed.chain[0], &signed.chain[1..], Usage::Client, unix_time(now()), &algorithms())
        .unwrap();
}

#[test]
fn keys_as_openssl_writes_them_are_read() {
    let run = |directory: &TempDir, script: &str| {
        let status = Command::new("sh").arg("-ec").arg(script).current_dir(directory.path()).output().unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    };
    for make_key in [
        "openssl genrsa -traditional 2048 > ca-key.pem",
        "openssl genrsa 4096 > ca-key.pem",
        "openssl ecparam -name prime256v1 -genkey > ca-key.pem",
        "openssl ecparam -name secp384r1 -genkey -noout > ca-key.pem",
    ] {
        let directory = TempDir::new();
        run(
            &directory,
            &format!(
                "{make_key}
                openssl req -x509 -new -key ca-key.pem -days 30 -subj '/O=Istio/CN=Root CA' \
                    -addext keyUsage=critical,keyCertSign,cRLSign -out ca-cert.pem
                cp ca-cert.pem root-cert.pem; : > cert-chain.pem"
            ),
        );
        files::load(directory.path(), now()).unwrap_or_else(|e| panic!("{make_key}: {e}"));
    }
}

#[test]
fn an_authority_may_have_any_name() {
    for subject in ["/DC=com/DC=example/OU=a/OU=b/CN=x", "/CN=a+OU=b", "/", "/O=Gr\u{fc}\u{df}e/L=K\u{f6}ln"] {
        let directory = TempDir::new();
        let script = format!(
            "openssl ecparam -name prime256v1 -genkey -noout > ca-key.pem
            openssl req -x509 -new -utf8 -multivalue-rdn -key ca-key.pem -days 30 -subj '{subject}' -out ca-cert.pem
            cp ca-cert.pem root-cert.pem; : > cert-chain.pem"
        );
        let made = Command::new("sh").arg("-ec").arg(script).current_dir(directory.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let loaded = files::load(directory.path(), now()).unwrap_or_else(|e| panic!("{subject}: {e}"));
        let leaf = loaded.sign(&request(), now()).unwrap().chain.remove(0);
        std::fs::write(directory.path().join("leaf.der"), leaf).unwrap();
        let verify =
            "openssl x509 -inform der -in leaf.der -out leaf.pem; openssl verify -CAfile root-cert.pem leaf.pem";
        let said = Command::new("sh").arg("-ec").arg(verify).current_dir(directory.path()).output().unwrap();
        assert!(said.status.success(), "{subject}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn whatever_is_wrong_is_one_line_with_the_file_and_the_cure() {
    let root = Root::new("root");
    let other = Root::new("other");
    let day = now() + Duration::from_secs(86400);
    let (leaf, leaf_key) = root.leaf(&["spiffe://td/ns/a/sa/b"], &[ExtendedKeyUsagePurpose::ServerAuth], day);
    type Spoil<'a> = &'a dyn Fn(&TempDir);
    let cases: &[(&str, Spoil<'_>)] = &[
        ("ca-cert.pem: No such file", &|d| std::fs::remove_file(d.path().join("ca-cert.pem")).unwrap()),
        ("ca-key.pem: No such file", &|d| std::fs::remove_file(d.path().join("ca-key.pem")).unwrap()),
        ("cert-chain.pem: No such file", &|d| std::fs::remove_file(d.path().join("cert-chain.pem")).unwrap()),
        ("root-cert.pem: No such file", &|d| std::fs::remove_file(d.path().join("root-cert.pem")).unwrap()),
        ("root-cert.pem: holds no certificate", &|d| d.write("root-cert.pem", "")),
        ("root-cert.pem: certificate 1 cannot be parsed", &|d| {
            d.write("root-cert.pem", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n")
        }),
        ("ca-key.pem: holds no private key", &|d| d.write("ca-key.pem", "\u{0}\u{1}binary")),
        ("ca-key.pem: holds no private key", &|d| d.write("ca-key.pem", &root.pem)),
        ("ca-key.pem: is not the key of ca-cert.pem", &|d| d.write("ca-key.pem", &other.key_pem())),
        ("ca-cert.pem: holds 2 certificates", &|d| d.write("ca-cert.pem", &format!("{}{}", root.pem, other.pem))),
        ("ca-cert.pem: is not a CA certificate", &|d| {
            d.write("ca-cert.pem", &leaf);
            d.write("ca-key.pem", &leaf_key);
        }),
        ("root-cert.pem: what ca-key.pem signs does not lead to a root", &|d| d.write("root-cert.pem", &other.pem)),
        ("ca-crl.pem: holds no revocation list", &|d| d.write("ca-crl.pem", "")),
        ("ca-crl.pem: list 1 cannot be parsed", &|d| {
            d.write("ca-crl.pem", "-----BEGIN X509 CRL-----\naGVsbG8=\n-----END X509 CRL-----\n")
        }),
        ("root-cert.pem: is larger than 16 MiB", &|d| d.write("root-cert.pem", &"x".repeat(17 << 20))),
    ];
    for (expected, spoil) in cases {
        let directory = TempDir::new();
        root.install(&directory, "", &root.pem);
        files::load(directory.path(), now()).unwrap();
        spoil(&directory);
        let complaint = complaint(directory.path());
        assert!(complaint.contains(expected), "{complaint}");
        assert!(complaint.starts_with("--ca-dir: ") && complaint.contains("; "), "names flag and cure: {complaint}");
        assert!(!complaint.contains('\n') && !complaint.contains("PRIVATE"), "{complaint}");
    }
}

#[test]
fn an_authority_never_signs_beyond_its_own_end() {
    let directory = TempDir::new();
    create::create_if_empty(directory.path(), now()).unwrap();
    let loaded = files::load(directory.path(), now()).unwrap();
    let end = now() + Duration::from_secs(3650 * 86400);
    let signed = loaded.sign(&request(), end - Duration::from_secs(60)).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap();
    assert!(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after) <= end, "asked for an hour, given a minute");
    let refused = loaded.sign(&request(), end + Duration::from_secs(60)).unwrap_err().to_string();
    assert!(refused.contains("ca-cert.pem: has expired"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn changed_files_take_effect_and_broken_ones_do_not() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let directory = TempDir::new();
    old.install(&directory, "", &old.pem);
    let ca = DirectoryCa::open(directory.path()).unwrap();
    let mut trust = ca.trust();
    trust.borrow_and_update();

    directory.write("root-cert.pem", &format!("{}{}", old.pem, new.pem));
    trust.changed().await.unwrap();
    assert_eq!(trust.borrow_and_update().roots().len(), 2);

    directory.write("root-cert.pem", "gone wrong");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!trust.has_changed().unwrap(), "a broken file changes nothing");
    let signed = ca.sign(request()).await.unwrap();
    trust.borrow().verify(&signed.chain[0], &[], Usage::Client, unix_time(now()), &algorithms()).unwrap();

    new.install(&directory, "", &new.pem);
    trust.changed().await.unwrap();
    let signed = ca.sign(request()).await.unwrap();
    trust.borrow().verify(&signed.chain[0], &[], Usage::Client, unix_time(now()), &algorithms()).unwrap();
    assert_eq!(trust.borrow().roots(), std::slice::from_ref(&new.der));
}

#[test]
fn a_revoked_certificate_is_refused() {
    let root = Root::new("root");
    let directory = TempDir::new();
    root.install(&directory, "", &root.pem);
    let signed = files::load(directory.path(), now()).unwrap().sign(&request(), now()).unwrap();
    let spared = files::load(directory.path(), now()).unwrap().sign(&request(), now()).unwrap();
    let serial = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap().1.raw_serial().to_vec();
    directory.write("ca-crl.pem", &root.revoke(&serial));

    let trust = files::load(directory.path(), now()).unwrap().trust().clone();
    let verify = |signed| trust.verify(leaf(signed), &[], Usage::Client, unix_time(now()), &algorithms());
    assert_eq!(verify(&signed), Err(webpki::Error::CertRevoked));
    assert_eq!(verify(&spared), Ok(()));
}

fn leaf(signed: &SignedCertificate) -> &CertificateDer<'static> {
    &signed.chain[0]
}
