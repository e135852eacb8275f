//! An authority in a Secret, and the steps in which a generated root is replaced. No I/O, no clock.
//!
//! Which step a Secret is in is told by what it holds: nothing has to be remembered elsewhere.
//!
//! | step | `ca-cert.pem` | `root-cert.pem` | `next-ca-cert.pem` |
//! |---|---|---|---|
//! | at rest | A | A | |
//! | the new root spreads | A | A, B | B |
//! | it signs; what A signed is still valid | B | A, B | |
//! | at rest | B | B | |

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::GENERATED;
use crate::ca::{CA_CERT, CA_CRL, CA_KEY, CERT_CHAIN, CaError, Material, Origin, ROOT_CERT, certificate_pem};

/// The root that is going to sign, while it spreads.
const NEXT_CERT: &str = "next-ca-cert.pem";
const NEXT_KEY: &str = "next-ca-key.pem";
/// When the root that signs began to, in seconds since 1970: from then on nothing new is signed by the one before.
const SIGNING_SINCE: &str = "culvert.dev/signing-since";
/// Set by people who want another root now; taken away when the exchange begins.
pub(super) const ROTATE: &str = "culvert.dev/rotate-root";

/// A root is replaced when less than this share of its life is left (Istio's
/// `CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE`).
const GRACE: f64 = 0.2;

/// What is to be done about a generated root next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::controller) enum Step {
    /// Make another one and let it spread.
    Begin,
    /// It has spread: sign with it.
    Promote,
    /// Nothing that the old one signed is valid any more: drop it.
    Retire,
}

/// The authority in `secret`.
///
/// # Errors
/// When one of its files is missing.
pub(super) fn material(origin: Origin, secret: &Secret) -> Result<Material, CaError> {
    let file = |name: &str| {
        let missing = || CaError::File {
            place: origin.place(name),
            problem: "is missing".to_owned(),
            cure: "give the Secret the keys ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem",
        };
        get(secret, name).map(<[u8]>::to_vec).ok_or_else(missing)
    };
    Ok(Material {
        ca_cert: file(CA_CERT)?,
        ca_key: file(CA_KEY)?,
        cert_chain: file(CERT_CHAIN)?,
        root_cert: file(ROOT_CERT)?,
        ca_crl: get(secret, CA_CRL).map(<[u8]>::to_vec),
        origin,
    })
}

/// A Secret with a root of its own.
///
/// # Errors
/// When no key can be made.
pub(in crate::controller) fn generate(now: SystemTime) -> Result<Secret, String> {
    let (certificate, key) = crate::ca::new_root(now).map_err(|e| e.to_string())?;
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(GENERATED.to_owned()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "culvert".to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    for file in [CA_CERT, CERT_CHAIN, ROOT_CERT] {
        set(&mut secret, file, certificate.clone());
    }
    set(&mut secret, CA_KEY, key);
    Ok(secret)
}

/// What is to be done about `secret` at `now`, where its roots have been everywhere for `spread`.
pub(super) fn next_step(secret: &Secret, now: SystemTime, spread: Option<Duration>, wanted: Duration) -> Option<Step> {
    if get(secret, NEXT_CERT).is_some() {
        return spread.is_some_and(|spread| spread >= wanted).then_some(Step::Promote);
    }
    let signing = certificates(secret, CA_CERT).into_iter().next()?;
    let others: Vec<_> = certificates(secret, ROOT_CERT).into_iter().filter(|root| *root != signing).collect();
    if !others.is_empty() {
        let since = annotation(secret, SIGNING_SINCE).and_then(|text| text.parse().ok()).map(from_seconds);
        let longest = super::super::issuer::MAX_TTL;
        let all_ended = others.iter().all(|root| not_after(root).is_some_and(|end| end < now));
        // By wall clock, as the certificates are judged themselves; a day more, for clocks that are off.
        let unused = since.is_some_and(|since| now > since + longest + Duration::from_secs(24 * 60 * 60));
        return (all_ended || unused).then_some(Step::Retire);
    }
    let is_asked = annotation(secret, ROTATE).is_some();
    (is_asked || is_near_its_end(&signing, now)).then_some(Step::Begin)
}

/// `secret` after `step`.
///
/// # Errors
/// When no key can be made, or the Secret does not hold what the step needs.
pub(in crate::controller) fn take(step: Step, secret: &Secret, now: SystemTime) -> Result<Secret, String> {
    let mut after = secret.clone();
    let text = |file: &str| {
        let text = get(secret, file).map(|text| String::from_utf8_lossy(text).into_owned());
        text.ok_or_else(|| format!("{GENERATED}: {file} is missing"))
    };
    match step {
        Step::Begin => {
            let (certificate, key) = crate::ca::new_root(now).map_err(|e| e.to_string())?;
            set(&mut after, ROOT_CERT, format!("{}{certificate}", with_newline(text(ROOT_CERT)?)));
            set(&mut after, NEXT_CERT, certificate);
            set(&mut after, NEXT_KEY, key);
            if let Some(annotations) = &mut after.metadata.annotations {
                annotations.remove(ROTATE);
            }
        }
        Step::Promote => {
            set(&mut after, CA_CERT, text(NEXT_CERT)?);
            set(&mut after, CERT_CHAIN, text(NEXT_CERT)?);
            set(&mut after, CA_KEY, text(NEXT_KEY)?);
            if let Some(data) = &mut after.data {
                data.remove(NEXT_CERT);
                data.remove(NEXT_KEY);
            }
            let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let annotations = after.metadata.annotations.get_or_insert_default();
            annotations.insert(SIGNING_SINCE.to_owned(), seconds.to_string());
        }
        Step::Retire => {
            let signing = certificates(secret, CA_CERT).into_iter().next().ok_or("there is no signing certificate")?;
            set(&mut after, ROOT_CERT, certificate_pem(&signing));
        }
    }
    Ok(after)
}

/// When `certificate` ends.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(from_seconds(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0)))
}

fn is_near_its_end(certificate: &CertificateDer<'_>, now: SystemTime) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let seconds = |time: i64| from_seconds(u64::try_from(time).unwrap_or(0));
    let (begin, end) =
        (seconds(parsed.validity().not_before.timestamp()), seconds(parsed.validity().not_after.timestamp()));
    let life = end.duration_since(begin).unwrap_or_default();
    end.duration_since(now).unwrap_or_default() < life.mul_f64(GRACE)
}

fn from_seconds(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn with_newline(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn certificates(secret: &Secret, file: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(get(secret, file).unwrap_or_default()).filter_map(Result::ok).collect()
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn get<'a>(secret: &'a Secret, file: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(file).map(|bytes| bytes.0.as_slice())
}

fn set(secret: &mut Secret, file: &str, text: String) {
    secret.data.get_or_insert_default().insert(file.to_owned(), ByteString(text.into_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;

    const DAY: Duration = Duration::from_secs(86400);
    const WANTED: Duration = Duration::from_secs(3600);

    fn authority(secret: &Secret, now: SystemTime) -> Authority {
        let origin = Origin::Secret { namespace: "culvert-system".to_owned(), name: GENERATED.to_owned() };
        Authority::new(&material(origin, secret).unwrap(), now).unwrap()
    }

    fn roots(secret: &Secret) -> Vec<CertificateDer<'static>> {
        certificates(secret, ROOT_CERT)
    }

    #[test]
    fn a_root_is_exchanged_step_by_step_and_each_step_signs() {
        let start = SystemTime::now();
        let old = generate(start).unwrap();
        assert_eq!(next_step(&old, start, None, WANTED), None);
        assert_eq!(next_step(&old, start + DAY * 2900, None, WANTED), None, "20 % and a little are left");
        let late = start + DAY * 2930;
        assert_eq!(next_step(&old, late, None, WANTED), Some(Step::Begin));

        let spreading = take(Step::Begin, &old, late).unwrap();
        assert_eq!(roots(&spreading).len(), 2);
        assert_eq!(get(&spreading, CA_KEY), get(&old, CA_KEY), "the old one still signs");
        assert_eq!(authority(&spreading, late).trust().roots().len(), 2);
        for spread in [None, Some(Duration::ZERO), Some(WANTED - Duration::from_secs(1))] {
            assert_eq!(next_step(&spreading, late, spread, WANTED), None, "not everyone has it yet");
        }
        assert_eq!(next_step(&spreading, late, Some(WANTED), WANTED), Some(Step::Promote));

        let promoted = take(Step::Promote, &spreading, late).unwrap();
        assert_ne!(get(&promoted, CA_KEY), get(&old, CA_KEY));
        assert_eq!(roots(&promoted), roots(&spreading), "what the old one signed is still trusted");
        assert!(get(&promoted, NEXT_KEY).is_none() && get(&promoted, NEXT_CERT).is_none());
        authority(&promoted, late);
        assert_eq!(next_step(&promoted, late + DAY * 90, Some(WANTED), WANTED), None, "for as long as it can be valid");
        assert_eq!(next_step(&promoted, late + DAY * 92, Some(WANTED), WANTED), Some(Step::Retire));

        let retired = take(Step::Retire, &promoted, late + DAY * 92).unwrap();
        assert_eq!(roots(&retired), certificates(&promoted, CA_CERT));
        authority(&retired, late);
        assert_eq!(next_step(&retired, late + DAY * 92, Some(WANTED), WANTED), None);
    }

    #[test]
    fn another_root_can_be_asked_for_once() {
        let now = SystemTime::now();
        let mut secret = generate(now).unwrap();
        secret.metadata.annotations.get_or_insert_default().insert(ROTATE.to_owned(), "now".to_owned());
        assert_eq!(next_step(&secret, now, None, WANTED), Some(Step::Begin));
        let begun = take(Step::Begin, &secret, now).unwrap();
        assert_eq!(annotation(&begun, ROTATE), None);
        let promoted = take(Step::Promote, &begun, now).unwrap();
        assert_eq!(next_step(&promoted, now, Some(WANTED), WANTED), None);
    }

    #[test]
    fn an_old_root_that_has_ended_is_dropped_without_waiting() {
        let now = SystemTime::now();
        let old = generate(now - DAY * 3651).unwrap();
        let begun = take(Step::Begin, &old, now).unwrap();
        let promoted = take(Step::Promote, &begun, now).unwrap();
        assert_eq!(next_step(&promoted, now, None, WANTED), Some(Step::Retire));
    }

    #[test]
    fn a_secret_without_a_file_is_named_with_it() {
        let mut secret = generate(SystemTime::now()).unwrap();
        secret.data.as_mut().unwrap().remove(CA_KEY);
        let origin = Origin::Secret { namespace: "culvert-system".to_owned(), name: "cacerts".to_owned() };
        let error = material(origin, &secret).unwrap_err().to_string();
        assert!(error.starts_with("Secret culvert-system/cacerts: ca-key.pem: is missing; give the Secret"), "{error}");
        assert_eq!(next_step(&Secret::default(), SystemTime::now(), None, WANTED), None);
    }
}
