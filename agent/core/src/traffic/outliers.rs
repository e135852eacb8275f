//! Endpoints that fail are left out for a while: Envoy's outlier detection as Istio sets it up, as a state machine to
//! which every time is told.
//!
//! Three counters run for each endpoint: errors in a row, gateway errors in a row, and failures of this side in a row.
//! One that reaches its limit ejects the endpoint, for the base time multiplied by how often that has happened; each
//! sweep lets those back in whose time is up, and forgives one of the others' earlier ejections.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// The longest that an endpoint is left out, unless the base time is longer (Envoy's `max_ejection_time`).
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// When endpoints are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSettings {
    /// Errors in a row; 0 for never.
    pub consecutive_errors: u32,
    /// 502, 503 and 504 in a row; 0 for never.
    pub consecutive_gateway_errors: u32,
    /// Failures of this side in a row; 0 for never, and only counted with `split_local`.
    pub consecutive_local_failures: u32,
    /// Whether failures of this side are counted apart; otherwise they are gateway errors.
    pub split_local: bool,
    /// How often ejected endpoints are looked at.
    pub interval: Duration,
    /// How long the first ejection lasts.
    pub base_ejection: Duration,
    /// How many may be ejected at a time, in percent; one may always be, unless it is 0.
    pub max_ejection_percent: u32,
    /// Below this share of endpoints that are well, in percent, all of them are used.
    pub min_health_percent: u32,
    /// The statuses that are errors; `None` for 500 to 599.
    pub error_statuses: Option<Vec<u16>>,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_failures: 5,
            split_local: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
            error_statuses: None,
        }
    }
}

/// How a request to an endpoint, or a connection, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of this status.
    Status(u16),
    /// A connection was made, or carried bytes to its end.
    Connected,
    /// This side could not connect, lost the connection, or waited too long.
    LocalFailure,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// Errors in a row.
    Errors,
    /// Gateway errors in a row.
    GatewayErrors,
    /// Failures of this side in a row.
    LocalFailures,
}

/// The endpoints of a service, and which of them are left out.
#[derive(Clone, Debug)]
pub struct Detector<K> {
    settings: OutlierSettings,
    hosts: HashMap<K, Host>,
    ejected: usize,
    last_sweep: Duration,
}

#[derive(Clone, Debug, Default)]
struct Host {
    errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    /// Since when it is left out.
    ejected_at: Option<Duration>,
    /// By what the base time is multiplied.
    multiplier: u32,
}

impl<K: Hash + Eq + Clone> Detector<K> {
    /// No endpoints yet, at `now`: times count from any moment that stays the same.
    pub fn new(settings: OutlierSettings, now: Duration) -> Self {
        Self { settings, hosts: HashMap::new(), ejected: 0, last_sweep: now }
    }

    /// When endpoints are left out.
    pub fn settings(&self) -> &OutlierSettings {
        &self.settings
    }

    /// Tells which endpoints there are: what was counted of others is forgotten.
    pub fn set_hosts<'k>(&mut self, hosts: impl IntoIterator<Item = &'k K>)
    where
        K: 'k,
    {
        let mut old = std::mem::take(&mut self.hosts);
        for key in hosts {
            let host = old.remove(key).unwrap_or_default();
            self.hosts.insert(key.clone(), host);
        }
        self.ejected = self.hosts.values().filter(|host| host.ejected_at.is_some()).count();
    }

    /// Counts how something ended, and says whether the endpoint is ejected for it.
    pub fn record(&mut self, key: &K, outcome: Outcome, now: Duration) -> Option<Ejection> {
        let settings = &self.settings;
        let host = self.hosts.get_mut(key)?;
        let is_error = |status: u16| match &settings.error_statuses {
            Some(statuses) => statuses.contains(&status),
            None => (500..=599).contains(&status),
        };
        match outcome {
            Outcome::LocalFailure if settings.split_local => {
                host.local_failures = host.local_failures.saturating_add(1)
            }
            Outcome::LocalFailure => {
                host.errors = host.errors.saturating_add(1);
                host.gateway_errors = host.gateway_errors.saturating_add(1);
            }
            Outcome::Connected => {
                host.local_failures = 0;
                if !settings.split_local {
                    (host.errors, host.gateway_errors) = (0, 0);
                }
            }
            Outcome::Status(status) => {
                host.local_failures = 0;
                host.errors = if is_error(status) { host.errors.saturating_add(1) } else { 0 };
                let gateway = matches!(status, 502..=504);
                host.gateway_errors = if gateway { host.gateway_errors.saturating_add(1) } else { 0 };
            }
        }
        if host.ejected_at.is_some() {
            return None;
        }
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let why = if reached(host.errors, settings.consecutive_errors) {
            Ejection::Errors
        } else if reached(host.gateway_errors, settings.consecutive_gateway_errors) {
            Ejection::GatewayErrors
        } else if settings.split_local && reached(host.local_failures, settings.consecutive_local_failures) {
            Ejection::LocalFailures
        } else {
            return None;
        };
        self.eject(key, now).then_some(why)
    }

    fn eject(&mut self, key: &K, now: Duration) -> bool {
        let most = self.hosts.len() * self.settings.max_ejection_percent.min(100) as usize / 100;
        let most = if self.settings.max_ejection_percent == 0 { 0 } else { most.max(1) };
        let Some(host) = self.hosts.get_mut(key).filter(|_| self.ejected < most) else { return false };
        host.ejected_at = Some(now);
        host.multiplier = host.multiplier.saturating_add(1);
        self.ejected += 1;
        true
    }

    /// Lets back in whose time is up, if it is time to look; says who. Others are forgiven one of their ejections.
    pub fn sweep(&mut self, now: Duration) -> Vec<K> {
        if now.saturating_sub(self.last_sweep) < self.settings.interval {
            return Vec::new();
        }
        self.last_sweep = now;
        let longest = MAX_EJECTION.max(self.settings.base_ejection);
        let mut back = Vec::new();
        for (key, host) in &mut self.hosts {
            match host.ejected_at {
                Some(since) => {
                    let term = self.settings.base_ejection.saturating_mul(host.multiplier).min(longest);
                    if now.saturating_sub(since) >= term {
                        // It starts over, but for how often it has been ejected.
                        *host = Host { multiplier: host.multiplier, ..Host::default() };
                        back.push(key.clone());
                    }
                }
                None => host.multiplier = host.multiplier.saturating_sub(1),
            }
        }
        self.ejected -= back.len();
        back
    }

    /// How many are left out.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Whether a sweep would find nothing to do, whenever it came: nobody is left out, nor has an ejection that is not
    /// forgiven.
    pub fn is_quiet(&self) -> bool {
        self.hosts.values().all(|host| host.ejected_at.is_none() && host.multiplier == 0)
    }

    /// When the next sweep is due.
    pub fn next_sweep(&self) -> Duration {
        self.last_sweep.saturating_add(self.settings.interval)
    }

    /// Whether an endpoint is left out.
    pub fn is_ejected(&self, key: &K) -> bool {
        self.hosts.get(key).is_some_and(|host| host.ejected_at.is_some())
    }

    /// Whether so many are left out that it counts no longer (`minHealthPercent`).
    pub fn is_overruled(&self) -> bool {
        let well = self.hosts.len() - self.ejected;
        well * 100 < self.hosts.len() * self.settings.min_health_percent.min(100) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn detector(hosts: u32, settings: OutlierSettings) -> Detector<u32> {
        let mut detector = Detector::new(settings, at(0));
        detector.set_hosts(&(0..hosts).collect::<Vec<_>>());
        detector
    }

    /// How many of `outcome` in a row eject an endpoint, of up to 20.
    fn ejected_after(settings: OutlierSettings, outcome: Outcome) -> Option<(u32, Ejection)> {
        let mut detector = detector(10, settings);
        (1..=20).find_map(|count| Some((count, detector.record(&0, outcome, at(0))?)))
    }

    #[test]
    fn each_counter_ejects_at_its_limit() {
        let default = OutlierSettings::default();
        let gateway = OutlierSettings { consecutive_errors: 0, consecutive_gateway_errors: 3, ..default.clone() };
        let split = OutlierSettings { split_local: true, consecutive_local_failures: 2, ..default.clone() };
        let statuses = OutlierSettings { error_statuses: Some(vec![429]), ..default.clone() };
        let off = OutlierSettings { consecutive_errors: 0, ..default.clone() };
        use Outcome::{LocalFailure, Status};
        for (fact, settings, outcome, expected) in [
            ("five errors", &default, Status(500), Some((5, Ejection::Errors))),
            ("a gateway error is an error", &default, Status(503), Some((5, Ejection::Errors))),
            ("a client's mistake is none", &default, Status(404), None),
            ("a failed connection is one", &default, LocalFailure, Some((5, Ejection::Errors))),
            ("gateway errors have their own limit", &gateway, Status(503), Some((3, Ejection::GatewayErrors))),
            ("a 500 is no gateway error", &gateway, Status(500), None),
            ("a failed connection is a gateway error", &gateway, LocalFailure, Some((3, Ejection::GatewayErrors))),
            ("apart, failures of this side have their own", &split, LocalFailure, Some((2, Ejection::LocalFailures))),
            ("and errors theirs", &split, Status(500), Some((5, Ejection::Errors))),
            ("other statuses may be errors", &statuses, Status(429), Some((5, Ejection::Errors))),
            ("and 500 none", &statuses, Status(500), None),
            ("0 is never", &off, Status(500), None),
        ] {
            assert_eq!(ejected_after(settings.clone(), outcome), expected, "{fact}");
        }
    }

    #[test]
    fn only_errors_in_a_row_count() {
        let mut detector = detector(10, OutlierSettings::default());
        for _ in 0..10 {
            for _ in 0..4 {
                assert_eq!(detector.record(&0, Outcome::Status(500), at(0)), None);
            }
            assert_eq!(detector.record(&0, Outcome::Status(200), at(0)), None);
        }
    }

    fn fail(detector: &mut Detector<u32>, host: u32, now: Duration) -> bool {
        (0..5).any(|_| detector.record(&host, Outcome::Status(500), now).is_some())
    }

    #[test]
    fn each_ejection_lasts_longer_and_is_forgiven_in_time() {
        let mut detector = detector(1, OutlierSettings::default());
        assert!(fail(&mut detector, 0, at(0)) && detector.is_ejected(&0));
        assert_eq!((detector.sweep(at(29)), detector.is_ejected(&0)), (vec![], true));
        assert_eq!(detector.next_sweep(), at(39));
        assert_eq!((detector.sweep(at(39)), detector.is_ejected(&0)), (vec![0], false));
        assert!(fail(&mut detector, 0, at(40)));
        assert_eq!(detector.sweep(at(90)), [] as [u32; 0]);
        assert_eq!(detector.sweep(at(100)), [0]);
        // Two quiet sweeps, and it is as if nothing had been.
        assert!(detector.sweep(at(110)).is_empty() && !detector.is_quiet());
        assert!(detector.sweep(at(120)).is_empty() && detector.is_quiet());
        assert!(fail(&mut detector, 0, at(121)));
        assert_eq!(detector.sweep(at(151)), [0]);
    }

    #[test]
    fn as_many_are_ejected_as_may_be_and_one_always() {
        for (hosts, percent, expected) in [(10, 10, 1), (3, 10, 1), (10, 50, 5), (10, 100, 10), (10, 0, 0)] {
            let mut detector =
                detector(hosts, OutlierSettings { max_ejection_percent: percent, ..OutlierSettings::default() });
            let ejected = (0..hosts).filter(|host| fail(&mut detector, *host, at(0))).count();
            assert_eq!(ejected, expected, "{hosts} {percent}");
        }
    }

    #[test]
    fn with_too_few_well_all_of_them_are_used() {
        let settings =
            OutlierSettings { max_ejection_percent: 100, min_health_percent: 50, ..OutlierSettings::default() };
        let mut detector = detector(4, settings);
        for (host, overruled) in [(0, false), (1, false), (2, true)] {
            fail(&mut detector, host, at(0));
            assert_eq!(detector.is_overruled(), overruled, "{host}");
        }
    }

    #[test]
    fn an_endpoint_that_is_gone_makes_room_for_others_and_comes_back_new() {
        let mut detector = detector(2, OutlierSettings::default());
        assert!(fail(&mut detector, 0, at(0)) && !fail(&mut detector, 1, at(0)));
        detector.set_hosts(&[1]);
        assert_eq!(detector.record(&0, Outcome::Status(500), at(0)), None);
        assert_eq!(detector.record(&1, Outcome::Status(500), at(0)), Some(Ejection::Errors));
        detector.set_hosts(&[0, 1]);
        assert!(!detector.is_ejected(&0) && detector.is_ejected(&1));
    }

    proptest! {
        /// Whatever happens, never more are ejected than may be, and everyone comes back.
        #[test]
        fn ejections_keep_within_their_share_and_end(
            hosts in 1_u32..20,
            percent in 0_u32..=100,
            events in proptest::collection::vec((0_u32..20, 0_u16..3, 0_u64..20), 0..200),
        ) {
            let settings = OutlierSettings { max_ejection_percent: percent, consecutive_errors: 1, ..OutlierSettings::default() };
            let mut detector = detector(hosts, settings);
            let mut now = at(0);
            for (host, what, wait) in events {
                now += at(wait);
                let outcome = match what {
                    0 => Outcome::Status(200),
                    1 => Outcome::Status(503),
                    _ => Outcome::LocalFailure,
                };
                detector.record(&(host % hosts), outcome, now);
                detector.sweep(now);
                let ejected = (0..hosts).filter(|host| detector.is_ejected(host)).count();
                let most = (hosts as usize * percent as usize / 100).max(usize::from(percent > 0));
                prop_assert!(ejected <= most);
            }
            detector.sweep(now + at(10_000));
            prop_assert!((0..hosts).all(|host| !detector.is_ejected(&host)));
        }
    }
}
