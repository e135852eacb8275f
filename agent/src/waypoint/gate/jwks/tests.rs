//! When keys are fetched, and who waits for them.

mod servers;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::time::advance;

use super::*;

pub(super) const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"one",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A place whose answers are said beforehand: the first so often as there are others behind it, the last for ever.
#[derive(Default)]
struct Scene {
    answers: Mutex<VecDeque<Result<(), Duration>>>,
    asked: AtomicUsize,
}

impl Fetch for Arc<Scene> {
    fn fetch(&self, _: KeySource, within: Duration) -> BoxFuture<'static, Result<KeySet, String>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
        Box::pin(async move {
            match answer {
                Some(Ok(())) => Ok(KeySet::parse(KEYS).unwrap()),
                Some(Err(after)) => {
                    tokio::time::sleep(after.min(within)).await;
                    Err("nobody there".to_owned())
                }
                None => Err("nothing to say".to_owned()),
            }
        })
    }
}

impl Scene {
    fn new(answers: impl IntoIterator<Item = Result<(), Duration>>) -> (Arc<Self>, Keys) {
        let scene = Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() });
        (scene.clone(), Keys::with(Arc::new(scene)))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const DOWN: Result<(), Duration> = Err(Duration::ZERO);
const WITHIN: Duration = Duration::from_secs(5);

fn source() -> KeySource {
    KeySource::Url("https://keys.example/jwks".into())
}

/// Lets every task that is ready run.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Lets time pass as it does: timers fire one by one.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn however_many_requests_want_keys_their_place_is_asked_once() {
    let (scene, keys) = Scene::new([Ok(())]);
    assert!(keys.known(&source()).is_none());
    let wanting: Vec<_> = (0..100)
        .map(|_| {
            let keys = keys.clone();
            tokio::spawn(async move { keys.want(&source(), WITHIN).await })
        })
        .collect();
    for want in wanting {
        assert!(want.await.unwrap().is_some());
    }
    assert_eq!(scene.asked(), 1);
    assert_eq!(keys.known(&source()), keys.want(&source(), WITHIN).await);
}

#[tokio::test(start_paused = true)]
async fn keys_in_use_are_fetched_again_and_nobody_waits_for_it() {
    let (scene, keys) = Scene::new([Ok(())]);
    keys.want(&source(), WITHIN).await.unwrap();
    for fetched in 1..4 {
        assert_eq!(scene.asked(), fetched);
        pass(REFRESH - Duration::from_secs(1)).await;
        assert_eq!(scene.asked(), fetched, "not before it is time");
        assert!(keys.known(&source()).is_some());
        pass(Duration::from_secs(1)).await;
        assert!(keys.known(&source()).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn keys_stay_while_their_place_fails_and_it_is_asked_again_soon() {
    let (scene, keys) = Scene::new([Ok(()), DOWN, DOWN, Ok(())]);
    keys.want(&source(), WITHIN).await.unwrap();
    pass(REFRESH).await;
    assert_eq!(scene.asked(), 2);
    assert!(keys.known(&source()).is_some());
    pass(BACK_OFF[0]).await;
    assert_eq!(scene.asked(), 3);
    pass(BACK_OFF[0] * 2).await;
    assert_eq!(scene.asked(), 4);
    pass(BACK_OFF[1]).await;
    assert_eq!(scene.asked(), 4, "it has answered");
    assert!(keys.known(&source()).is_some());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_place_that_has_failed_and_it_is_asked_less_and_less_often() {
    let (scene, keys) = Scene::new([DOWN]);
    let began = Instant::now();
    for _ in 0..50 {
        assert!(keys.want(&source(), WITHIN).await.is_none());
    }
    assert_eq!((scene.asked(), began.elapsed()), (1, Duration::ZERO));
    pass(Duration::from_secs(600)).await;
    // After 1, 2, 4, 8, 16, 32 seconds, and then every minute.
    assert!((14..18).contains(&scene.asked()), "{}", scene.asked());
    *scene.answers.lock().unwrap() = [Ok(())].into();
    pass(BACK_OFF[1]).await;
    assert!(keys.known(&source()).is_some());
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_is_told_and_the_keys_are_there_for_the_next() {
    let (_, keys) = Scene::new([Err(Duration::from_secs(3)), Ok(())]);
    let began = Instant::now();
    assert!(keys.want(&source(), Duration::from_secs(1)).await.is_none());
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    pass(Duration::from_secs(5)).await;
    assert!(keys.known(&source()).is_some());
}

#[tokio::test(start_paused = true)]
async fn keys_that_have_not_signed_a_token_are_asked_for_again_but_seldom() {
    let (scene, keys) = Scene::new([Ok(())]);
    keys.want(&source(), WITHIN).await.unwrap();
    for _ in 0..50 {
        assert!(keys.renew(&source(), WITHIN).await.is_some());
    }
    assert_eq!(scene.asked(), 1, "they have just come");
    pass(RENEW).await;
    let renewing: Vec<_> = (0..50)
        .map(|_| {
            let keys = keys.clone();
            tokio::spawn(async move { keys.renew(&source(), WITHIN).await })
        })
        .collect();
    for renew in renewing {
        assert!(renew.await.unwrap().is_some());
    }
    assert_eq!(scene.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn keys_that_nobody_wants_any_more_are_forgotten() {
    let (scene, keys) = Scene::new([Ok(())]);
    keys.want(&source(), WITHIN).await.unwrap();
    pass(REFRESH * (IDLE + 2)).await;
    assert!(keys.0.places.load().is_empty());
    let asked = scene.asked();
    pass(REFRESH * 10).await;
    assert_eq!(scene.asked(), asked);
    assert!(keys.want(&source(), WITHIN).await.is_some(), "they can be had again");
}

#[tokio::test(start_paused = true)]
async fn places_are_bounded() {
    let (scene, keys) = Scene::new([Ok(())]);
    for n in 0..MAX_PLACES + 10 {
        let found = keys.want(&KeySource::Url(format!("https://{n}.example").into()), WITHIN).await;
        assert_eq!(found.is_some(), n < MAX_PLACES);
    }
    assert_eq!(scene.asked(), MAX_PLACES);
    advance(Duration::ZERO).await;
}
