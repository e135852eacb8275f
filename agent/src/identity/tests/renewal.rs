//! Fetching, renewing, forgetting: by a clock that stands still until it is moved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use tokio::time::{Instant, sleep};

use crate::ca::testing::{Root, ScriptedCa};
use crate::identity::{CertificateStore, Clock, FetchError, StoreOptions, TokioClock};

const HOUR: Duration = Duration::from_secs(3600);

fn clock() -> Arc<dyn Clock> {
    Arc::new(TokioClock::starting_at(SystemTime::now()))
}

fn store(ca: &Arc<ScriptedCa>) -> CertificateStore {
    CertificateStore::new(ca.clone(), StoreOptions { clock: ca.clock.clone(), ..StoreOptions::default() })
}

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_valid_for_a_day_and_made_for_its_identity() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    let certificate = store.fetch(&cart()).await.unwrap();
    assert_eq!(*certificate.identity, cart());
    let life = certificate.remaining(ca.clock.now());
    assert!((HOUR * 24 - Duration::from_secs(2)..=HOUR * 24).contains(&life), "{life:?}");
}

#[tokio::test(start_paused = true)]
async fn many_callers_ask_the_authority_once() {
    let ca = ScriptedCa::gated(&Root::new("root"), clock(), 0);
    let store = store(&ca);
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.fetch(&cart()).await.unwrap().serial.clone() })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    ca.gate.add_permits(100);
    let mut serials = Vec::new();
    for caller in callers {
        serials.push(caller.await.unwrap());
    }
    serials.dedup();
    assert_eq!(serials.len(), 1);
    assert_eq!(ca.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_by_half_life_while_the_old_one_serves() {
    let ca = ScriptedCa::gated(&Root::new("root"), clock(), 1);
    let store = store(&ca);
    let first = store.fetch(&cart()).await.unwrap();
    ca.gate.forget_permits(1);
    sleep(HOUR * 10 + HOUR / 2).await;
    assert_eq!(ca.asked.load(Ordering::SeqCst), 1, "not before 45 % of its life");
    sleep(HOUR * 3 / 2).await;
    assert!(ca.asked.load(Ordering::SeqCst) >= 2, "at half-life at the latest");
    let handle = store.handle(&cart());
    assert_eq!(handle.current().unwrap().serial, first.serial, "the old one serves until the new one is there");
    ca.gate.add_permits(1);
    sleep(Duration::from_secs(200)).await;
    assert_ne!(handle.current().unwrap().serial, first.serial);
    assert_ne!(store.current(&cart()).unwrap().serial, first.serial);
}

#[tokio::test(start_paused = true)]
async fn identities_of_one_node_are_not_renewed_all_at_once() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    for n in 0..40 {
        store.fetch(&Identity::new("cluster.local", "shop", format!("sa-{n}"))).await.unwrap();
    }
    let mut moments = Vec::new();
    let begin = Instant::now();
    let mut asked = 40;
    while begin.elapsed() < HOUR * 13 {
        sleep(Duration::from_secs(60)).await;
        let now = ca.asked.load(Ordering::SeqCst);
        if now > asked {
            moments.push(now - asked);
        }
        asked = now;
    }
    assert_eq!(moments.iter().sum::<usize>(), 40);
    assert!(moments.len() > 15, "spread over {} minutes", moments.len());
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_up_to_150_seconds_and_keep_the_old_certificate() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    let first = store.fetch(&cart()).await.unwrap();
    ca.fail_next(20);
    while ca.asked.load(Ordering::SeqCst) == 1 {
        sleep(Duration::from_secs(10)).await;
    }
    let mut waits = Vec::new();
    let (mut last, mut asked) = (Instant::now(), 2);
    while asked < 16 {
        sleep(Duration::from_millis(100)).await;
        if ca.asked.load(Ordering::SeqCst) > asked {
            asked += 1;
            waits.push(last.elapsed());
            last = Instant::now();
        }
    }
    assert!(waits[5] > waits[3] && waits[7] > waits[5], "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(151)), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait > Duration::from_secs(112)), "{waits:?}");
    assert_eq!(store.current(&cart()).unwrap().serial, first.serial);
    assert_eq!(store.report()[0].state, "failing");
    sleep(HOUR).await;
    assert_ne!(store.current(&cart()).unwrap().serial, first.serial, "and recovers");
    assert_eq!(store.report()[0].state, "ready");
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_is_told_and_the_next_attempt_serves() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    ca.fail_next(1);
    let store = store(&ca);
    let error = store.fetch(&cart()).await.unwrap_err();
    assert!(matches!(error, FetchError::Authority { .. }), "{error}");
    assert!(error.to_string().contains("failure 0"), "{error}");
    sleep(Duration::from_secs(2)).await;
    store.fetch(&cart()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_not_renewed_and_its_waiters_are_told() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    store.fetch(&cart()).await.unwrap();
    store.forget(&cart());
    assert!(store.current(&cart()).is_none());
    sleep(HOUR * 48).await;
    assert_eq!(ca.asked.load(Ordering::SeqCst), 1);

    let ca = ScriptedCa::gated(&Root::new("root"), clock(), 0);
    let store = self::store(&ca);
    let waiter = tokio::spawn({
        let store = store.clone();
        async move { store.fetch(&cart()).await }
    });
    sleep(Duration::from_secs(1)).await;
    store.forget(&cart());
    assert!(matches!(waiter.await.unwrap(), Err(FetchError::Forgotten(_))));
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_never_answers_counts_as_failed() {
    let ca = ScriptedCa::gated(&Root::new("root"), clock(), 0);
    let store = store(&ca);
    let error = store.fetch(&cart()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 30 s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn new_roots_are_trusted_at_once_with_the_same_certificate() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let ca = ScriptedCa::new(&old, clock());
    let store = store(&ca);
    let first = store.fetch(&cart()).await.unwrap();
    ca.replace(&old, &format!("{}{}", old.pem, new.pem));
    sleep(Duration::from_millis(1)).await;
    let adopted = store.current(&cart()).unwrap();
    assert_eq!(adopted.serial, first.serial, "nobody is asked to sign");
    assert!(!Arc::ptr_eq(&adopted.server, &first.server) && !Arc::ptr_eq(&adopted.client, &first.client));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_whose_root_is_gone_is_replaced_at_once() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let ca = ScriptedCa::new(&old, clock());
    let store = store(&ca);
    let first = store.fetch(&cart()).await.unwrap();
    ca.replace(&new, &new.pem);
    sleep(Duration::from_secs(1)).await;
    assert_ne!(store.current(&cart()).unwrap().serial, first.serial);
}

#[tokio::test(start_paused = true)]
async fn no_session_outlives_its_root_though_nobody_signs_another_certificate() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let ca = ScriptedCa::gated(&old, clock(), 1);
    let store = store(&ca);
    let first = store.fetch(&cart()).await.unwrap();
    ca.gate.forget_permits(1);
    ca.replace(&new, &new.pem);
    sleep(Duration::from_millis(1)).await;
    let serving = store.current(&cart()).unwrap();
    assert_eq!(serving.serial, first.serial, "the old certificate serves until there is another");
    assert!(!Arc::ptr_eq(&serving.server, &first.server) && !Arc::ptr_eq(&serving.client, &first.client));
    assert!(Arc::ptr_eq(&serving.trust, &ca.trust.borrow()));
    assert!(ca.asked.load(Ordering::SeqCst) >= 2, "another one is asked for at once");
}

#[tokio::test(start_paused = true)]
async fn the_report_says_all_but_the_key() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    let certificate = store.fetch(&cart()).await.unwrap();
    let report = serde_json::to_value(store.report()).unwrap();
    assert_eq!(report[0]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(report[0]["state"], "ready");
    assert_eq!(report[0]["serial"], *certificate.serial);
    assert!(report[0]["expiresIn"].as_u64().unwrap() > 86000);
    let debug = format!("{certificate:?}{store:?}{report}");
    assert!(!debug.contains("PRIVATE"));
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_when_certificates_end_and_whether_renewal_fails() {
    let ca = ScriptedCa::new(&Root::new("root"), clock());
    let store = store(&ca);
    let telemetry = crate::telemetry::Telemetry::new(crate::telemetry::AccessLog::off());
    store.register_metrics(&telemetry);
    let certificate = store.fetch(&cart()).await.unwrap();
    ca.fail_next(1);
    store.fetch(&Identity::new("cluster.local", "shop", "other")).await.unwrap_err();
    let text = telemetry.encode().unwrap();
    let end = certificate.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    for line in [
        "culvert_certificates{state=\"ready\"} 1\n".to_owned(),
        "culvert_certificates{state=\"failing\"} 1\n".to_owned(),
        format!("culvert_certificate_not_after_seconds{{identity=\"{}\"}} {end}\n", cart()),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
}
