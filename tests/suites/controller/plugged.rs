//! What an operator plugs in as Secret `cacerts`.

use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

/// A root, and its key, both PEM.
pub(crate) fn root(name: &str) -> (String, String) {
    let (params, key) = (ca(name), KeyPair::generate().unwrap());
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params
}

/// An empty revocation list, made by openssl.
pub(crate) fn crl(root: &str, key: &str) -> String {
    let directory = std::env::temp_dir().join(format!("culvert-crl-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("ca.pem"), root).unwrap();
    std::fs::write(directory.join("ca.key"), key).unwrap();
    // Extensions make it a list of version 2, which is what webpki reads.
    let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=30\n\
                  crl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n";
    std::fs::write(directory.join("config"), config).unwrap();
    let script = ": > index; echo 01 > number; openssl ca -config config -gencrl -cert ca.pem -keyfile ca.key";
    let said = Command::new("sh").args(["-ec", script]).current_dir(&directory).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    std::fs::remove_dir_all(&directory).unwrap();
    String::from_utf8(said.stdout).unwrap()
}
