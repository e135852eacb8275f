//! How often a request is tried, and when (Envoy's router).

use std::time::Duration;

use culvert_core::route::retry::{Attempt, RetryPolicy};
use http::{HeaderMap, Response};

use super::failure::Failure;
use super::reply::GRPC_STATUS;
use crate::telemetry::Flags;
use crate::waypoint::body::Body;

/// What the tries of one request are made with.
pub(super) trait Tries: Send {
    /// Makes a try; `number` counts from 1.
    fn once(&mut self, number: u32) -> impl Future<Output = Result<Response<Body>, Failure>> + Send;

    /// Takes a place for one more.
    fn admit(&mut self) -> Result<(), NoRetry>;
}

/// Why there is no further try, though the policy asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRetry {
    /// The request is gone, or its body is.
    Lost,
    /// There are as many retries as there may be at a time.
    Overflow,
}

/// What came of it.
pub(super) struct Tried {
    /// How the last try ended.
    pub(super) outcome: Result<Response<Body>, Failure>,
    /// How many there were.
    pub(super) attempts: u32,
    /// Why there was no other.
    pub(super) flags: Flags,
}

/// Tries until the policy is content, or forbids it.
pub(super) async fn run(tries: &mut impl Tries, policy: &RetryPolicy) -> Tried {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let outcome = tries.once(attempts).await;
        let ended = match &outcome {
            Ok(response) => Some(attempt_of(response)),
            Err(failure) => failure.attempt,
        };
        let flags = match ended {
            Some(ended) if policy.attempts > 0 && policy.on.matches(ended) => {
                match tries_again(tries, policy, attempts) {
                    Ok(wait) => {
                        // The answer that nobody gets is dropped first: its connection is free meanwhile.
                        drop(outcome);
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    Err(flags) => flags,
                }
            }
            _ => Flags::NONE,
        };
        return Tried { outcome, attempts, flags };
    }
}

fn tries_again(tries: &mut impl Tries, policy: &RetryPolicy, attempts: u32) -> Result<Duration, Flags> {
    if attempts > policy.attempts {
        return Err(Flags::RETRIES_EXCEEDED);
    }
    match tries.admit() {
        Ok(()) => Ok(policy.wait(attempts, &mut rand::rng())),
        Err(NoRetry::Overflow) => Err(Flags::UPSTREAM_OVERFLOW),
        Err(NoRetry::Lost) => Err(Flags::NONE),
    }
}

fn attempt_of(response: &Response<Body>) -> Attempt {
    Attempt::Response {
        status: response.status().as_u16(),
        grpc_status: grpc_status(response.headers()).and_then(|status| u8::try_from(status).ok()),
        rate_limited: response.headers().contains_key("x-envoy-ratelimited"),
    }
}

/// `grpc-status`, if it is there and is one.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use culvert_core::route::retry::RetryOn;
    use tokio::time::Instant;

    use super::*;

    /// Tries that end like this, one after the other.
    struct Script {
        outcomes: VecDeque<Result<u16, Attempt>>,
        admits: VecDeque<Result<(), NoRetry>>,
        begun: Vec<Duration>,
        start: Instant,
    }

    impl Tries for Script {
        async fn once(&mut self, _: u32) -> Result<Response<Body>, Failure> {
            self.begun.push(self.start.elapsed());
            match self.outcomes.pop_front().unwrap() {
                Ok(status) => Ok(Response::builder().status(status).body(Body::empty()).unwrap()),
                Err(attempt) => Err(Failure::after(attempt)),
            }
        }

        fn admit(&mut self) -> Result<(), NoRetry> {
            self.admits.pop_front().unwrap_or(Ok(()))
        }
    }

    async fn play(
        policy: &RetryPolicy,
        outcomes: impl IntoIterator<Item = Result<u16, Attempt>>,
        admits: impl IntoIterator<Item = Result<(), NoRetry>>,
    ) -> (Option<u16>, u32, Flags, Vec<Duration>) {
        let (outcomes, admits) = (outcomes.into_iter().collect(), admits.into_iter().collect());
        let mut script = Script { outcomes, admits, begun: Vec::new(), start: Instant::now() };
        let tried = run(&mut script, policy).await;
        (tried.outcome.ok().map(|response| response.status().as_u16()), tried.attempts, tried.flags, script.begun)
    }

    fn on(on: &str, attempts: u32) -> RetryPolicy {
        RetryPolicy { attempts, on: RetryOn::parse(on).0, ..RetryPolicy::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_tried_again_until_it_goes_well() {
        let (status, attempts, flags, _) =
            play(&on("5xx", 3), [Ok(503), Err(Attempt::ConnectFailure), Ok(200)], []).await;
        assert_eq!((status, attempts, flags), (Some(200), 3, Flags::NONE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_policy_does_not_name_is_not_tried_again() {
        let (status, attempts, flags, _) = play(&RetryPolicy::default(), [Ok(503)], []).await;
        assert_eq!((status, attempts, flags), (Some(503), 1, Flags::NONE));
        let (status, attempts, flags, _) = play(&on("5xx", 0), [Ok(503)], []).await;
        assert_eq!((status, attempts, flags), (Some(503), 1, Flags::NONE), "of no retries none is missed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_is_the_clients_and_says_that_there_were_no_more_tries() {
        let (status, attempts, flags, _) = play(&on("5xx", 2), [Ok(500), Ok(502), Ok(503)], []).await;
        assert_eq!((status, attempts, flags), (Some(503), 3, Flags::RETRIES_EXCEEDED));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_place_for_a_retry_the_first_answer_counts() {
        for (why, expected) in [(NoRetry::Overflow, Flags::UPSTREAM_OVERFLOW), (NoRetry::Lost, Flags::NONE)] {
            let (status, attempts, flags, _) = play(&on("5xx", 2), [Ok(500), Ok(200)], [Err(why)]).await;
            assert_eq!((status, attempts, flags), (Some(500), 1, expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_is_within_its_bound() {
        for _ in 0..50 {
            let outcomes = [Ok(500), Ok(500), Ok(500), Ok(500), Ok(200)];
            let begun = play(&on("5xx", 4), outcomes, []).await.3;
            let waits: Vec<_> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
            // A timer may be late by its resolution.
            for (wait, most) in waits.iter().zip([25, 75, 175, 250]) {
                assert!(*wait <= Duration::from_millis(most + 1), "{waits:?}");
            }
        }
    }
}
