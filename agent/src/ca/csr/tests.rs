use std::process::Command;

use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::ca::testing::TempDir;

fn csr(names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A CSR that openssl makes with the key that `make_key` writes to key.pem.
fn of_openssl(make_key: &str) -> String {
    let directory = TempDir::new();
    let script = format!("{make_key}; openssl req -new -key key.pem -subj /CN=x -out csr.pem");
    let made = Command::new("sh").arg("-ec").arg(script).current_dir(directory.path()).output().unwrap();
    assert!(made.status.success(), "{make_key}: {}", String::from_utf8_lossy(&made.stderr));
    directory.read("csr.pem")
}

#[test]
fn one_uri_or_none_is_read() {
    assert_eq!(CertificateRequest::parse(&csr(vec![])).unwrap().uri, None);
    let one = csr(vec![uri("spiffe://td/ns/a/sa/b")]);
    assert_eq!(CertificateRequest::parse(&one).unwrap().uri.as_deref(), Some("spiffe://td/ns/a/sa/b"));
}

#[test]
fn several_names_and_other_kinds_of_names_are_refused() {
    let dns = || SanType::DnsName("kubernetes.default.svc".try_into().unwrap());
    for (names, what) in [
        (vec![uri("spiffe://td/ns/a/sa/b"), uri("spiffe://td/ns/kube-system/sa/admin")], "2 names"),
        (vec![uri("spiffe://td/ns/a/sa/b"), dns()], "2 names"),
        (vec![dns()], "a DNS name"),
        (vec![SanType::IpAddress([10, 0, 0, 1].into())], "a IP name"),
        (vec![SanType::Rfc822Name("a@b.c".try_into().unwrap())], "a mail name"),
    ] {
        assert_eq!(CertificateRequest::parse(&csr(names)).unwrap_err(), CsrProblem::Names(what.to_owned()));
    }
}

#[test]
fn the_keys_that_peers_take_are_certified_as_what_they_are() {
    for (make_key, algorithm) in [
        ("openssl ecparam -name prime256v1 -genkey -noout > key.pem", &rcgen::PKCS_ECDSA_P256_SHA256),
        // Signed with SHA-256, as openssl does unless told otherwise.
        ("openssl ecparam -name secp384r1 -genkey -noout > key.pem", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("openssl genpkey -algorithm ed25519 -out key.pem", &rcgen::PKCS_ED25519),
        ("openssl genrsa 2048 > key.pem", &rcgen::PKCS_RSA_SHA256),
    ] {
        let request = CertificateRequest::parse(&of_openssl(make_key)).unwrap_or_else(|e| panic!("{make_key}: {e}"));
        assert_eq!(PublicKeyData::algorithm(&request.key), algorithm, "{make_key}");
    }
}

#[test]
fn other_keys_are_refused_by_name() {
    for (make_key, what) in [
        ("openssl genrsa 1024 > key.pem", "an RSA key of 1024 bits"),
        ("openssl ecparam -name secp521r1 -genkey -noout > key.pem", "another curve"),
        ("openssl ecparam -name secp256k1 -genkey -noout > key.pem", "another curve"),
        ("openssl genpkey -algorithm ed448 -out key.pem", "a key of another type"),
        ("openssl dsaparam -genkey 2048 > key.pem", "a key of another type"),
    ] {
        let problem = CertificateRequest::parse(&of_openssl(make_key)).unwrap_err().to_string();
        assert!(problem.contains(what), "{make_key}: {problem}");
    }
}

#[test]
fn a_csr_that_its_key_did_not_sign_is_refused() {
    let pem = csr(vec![uri("spiffe://td/ns/a/sa/b")]);
    let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let name = der.windows(7).position(|bytes| bytes == b"ns/a/sa").unwrap();
    der[name + 3] = b'c';
    let changed = openssl_pem(&der);
    assert_eq!(CertificateRequest::parse(&changed).unwrap_err(), CsrProblem::Signature);
}

#[test]
fn what_is_no_csr_is_refused() {
    let good = csr(vec![]);
    let long = "x".repeat(MAX_CSR + 1);
    for (text, problem) in [
        ("", CsrProblem::NotPem),
        ("-----BEGIN CERTIFICATE REQUEST-----", CsrProblem::NotPem),
        ("-----BEGIN CERTIFICATE REQUEST-----\n!!\n-----END CERTIFICATE REQUEST-----\n", CsrProblem::NotPem),
        ("-----BEGIN CERTIFICATE REQUEST-----\naGVsbG8=\n-----END CERTIFICATE REQUEST-----\n", CsrProblem::Malformed),
        (&format!("{good}{good}"), CsrProblem::NotPem),
        (&long, CsrProblem::TooLong(MAX_CSR + 1)),
    ] {
        assert_eq!(CertificateRequest::parse(text).unwrap_err(), problem);
    }
    // Every byte of a good one turned over, one at a time: refused or read, never a panic.
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    for at in 0..der.len() {
        let mut broken = der.clone();
        broken[at] ^= 0xff;
        assert!(CertificateRequest::parse(&openssl_pem(&broken)).is_err(), "byte {at}");
    }
}

fn openssl_pem(der: &[u8]) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut base64 = Command::new("base64").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    base64.stdin.take().unwrap().write_all(der).unwrap();
    let text = String::from_utf8(base64.wait_with_output().unwrap().stdout).unwrap();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n")
}
