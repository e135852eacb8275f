//! What goes wrong on purpose, and shares of requests.

use std::time::Duration;

/// A share of requests, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Every request.
    pub const ALL: Self = Self(1_000_000);

    /// `percent` of them; `None` if that is not between 0 and 100. Less than 0.0001 percent is none.
    pub fn percent(percent: f64) -> Option<Self> {
        // The range excludes what has no number.
        (0.0..=100.0).contains(&percent).then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// `numerator` of each `denominator`; `None` if that is more than all of them.
    pub fn fraction(numerator: u32, denominator: u32) -> Option<Self> {
        if denominator == 0 || numerator > denominator {
            return None;
        }
        u32::try_from(u64::from(numerator) * 1_000_000 / u64::from(denominator)).ok().map(Self)
    }

    /// In percent.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// Whether a request is among them.
    pub fn draw(self, rng: &mut impl rand::Rng) -> bool {
        match self {
            Self(0) => false,
            Self::ALL => true,
            Self(share) => rng.random_range(0..1_000_000) < share,
        }
    }
}

/// What goes wrong on purpose: each is drawn on its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// A delay.
    pub delay: Option<(Share, Duration)>,
    /// An error.
    pub abort: Option<(Share, Abort)>,
}

/// An answer in place of the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC, with 200 of HTTP.
    Grpc(u8),
}

/// The status of gRPC of this name, or number (grpc `doc/statuscodes.md`).
pub(crate) fn grpc_status(name: &str) -> Option<u8> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let position = NAMES.iter().position(|known| *known == name || (*known == "CANCELLED" && name == "CANCELED"));
    let number = || name.parse::<usize>().ok().filter(|number| *number < NAMES.len());
    position.or_else(number).and_then(|status| u8::try_from(status).ok())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn as_many_are_drawn_as_were_asked_for() {
        let mut rng = SmallRng::seed_from_u64(7);
        for percent in [0.0, 0.5, 10.0, 50.0, 100.0] {
            let share = Share::percent(percent).unwrap();
            let drawn = (0..100_000).filter(|_| share.draw(&mut rng)).count();
            let expected = percent * 1_000.0;
            assert!((drawn as f64 - expected).abs() <= expected * 0.2 + 1.0, "{percent}: {drawn}");
        }
        assert_eq!(Share::fraction(1, 3).map(|share| share.as_percent() as u32), Some(33));
    }

    #[test]
    fn what_is_no_share_is_none() {
        for percent in [-1.0, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Share::percent(percent), None);
        }
        assert_eq!((Share::fraction(1, 0), Share::fraction(2, 1)), (None, None));
    }

    #[test]
    fn grpc_statuses_have_names_and_numbers() {
        for (name, status) in
            [("UNAVAILABLE", Some(14)), ("CANCELED", Some(1)), ("16", Some(16)), ("17", None), ("NO", None)]
        {
            assert_eq!(grpc_status(name), status, "{name}");
        }
    }
}
