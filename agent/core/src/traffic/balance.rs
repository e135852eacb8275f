//! Which endpoint a request goes to.
//!
//! What depends on the mesh alone is worked out once, in [`Balancer::new`]; what depends on how endpoints do is asked
//! for each request, of whoever keeps it.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use super::hash::Table;
use super::locality::priorities;
use super::policy::{Algorithm, HashTable, LoadBalancer, Subset, TrafficPolicy, Warmup};
use crate::mesh::Snapshot;
use crate::route::retry::HOST_SELECTION_ATTEMPTS;
use crate::service::{LoadBalancing, Service};
use crate::workload::Workload;

/// How many endpoints that are well a priority may lack before others get some of its requests: Envoy's
/// overprovisioning factor.
const OVERPROVISIONING: f64 = 1.4;

/// The endpoints of a service, or of a part of it, ready to be chosen from.
#[derive(Clone, Debug)]
pub struct Balancer {
    settings: Arc<LoadBalancer>,
    /// The nearest first.
    levels: Vec<Level>,
}

/// An endpoint that may be chosen.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its port.
    pub port: u16,
    /// Its share, relative to its siblings'.
    pub weight: u32,
    /// Its place among those of [`Balancer::candidates`], for whoever keeps something beside them.
    pub index: usize,
}

/// How an endpoint does, as whoever sends requests to it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Requests in flight.
    pub active: u32,
    /// Whether it is left out (outlier detection).
    pub ejected: bool,
    /// Whether this request has been tried there.
    pub tried: bool,
    /// For how long it has been taking requests; `None` for long enough.
    pub age: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Level {
    shares: Vec<Share>,
}

/// Endpoints of one locality, or of all.
#[derive(Clone, Debug)]
struct Share {
    weight: u32,
    candidates: Vec<Candidate>,
    /// The sum of the weights up to and with each.
    sums: Vec<u64>,
    equal: bool,
    table: Option<Table>,
}

/// What one choice depends on.
#[derive(Debug)]
pub struct Choice<'r, R> {
    /// The hash of the request; `None` if it has none.
    pub hash: Option<u64>,
    /// How many choices there have been, for `ROUND_ROBIN`.
    pub turn: u64,
    /// Whether ejections do not count: because nobody is ejected, which saves looking at everybody, or too many are.
    pub ignore_ejections: bool,
    /// Chance.
    pub rng: &'r mut R,
}

impl Balancer {
    /// The endpoints of `port` of `service`, or of a part of it, as `client` sees them.
    pub fn new(
        snapshot: &Snapshot,
        service: &Service,
        port: u16,
        subset: Option<&Subset>,
        policy: &TrafficPolicy,
        client: &Workload,
    ) -> Self {
        let port = service.port(port);
        let mut candidates: Vec<(Arc<Workload>, u16)> = Vec::new();
        for endpoint in snapshot.endpoints(&service.key) {
            let workload = &endpoint.workload;
            let usable = endpoint.ready || service.load_balancing.allow_unhealthy;
            let near = workload.network == client.network || workload.network.is_empty();
            if !usable || !near || subset.is_some_and(|subset| !subset.selects(workload)) {
                continue;
            }
            let Some(target) = port.and_then(|port| endpoint.port(port)) else { continue };
            candidates.push((workload.clone(), target));
        }
        Self::of(candidates, &service.load_balancing, policy, client)
    }

    /// These endpoints, each with its port, as `client` sees them.
    pub fn of(
        endpoints: impl IntoIterator<Item = (Arc<Workload>, u16)>,
        balancing: &LoadBalancing,
        policy: &TrafficPolicy,
        client: &Workload,
    ) -> Self {
        let settings = policy.load_balancer.clone().unwrap_or_default();
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        let workloads: Vec<_> = endpoints.iter().map(|(workload, _)| workload).collect();
        let locality = settings.locality.as_ref();
        let levels = priorities(&workloads, client, locality, policy.outliers.is_some(), balancing);
        let mut indexes = 0..;
        let mut share = |weight, members: Vec<usize>| {
            let candidates = members.into_iter().zip(&mut indexes).map(|(at, index)| {
                let (workload, port) = &endpoints[at];
                Candidate { workload: workload.clone(), port: *port, weight: workload.capacity.max(1), index }
            });
            Share::new(weight, candidates.collect(), &settings.algorithm)
        };
        let levels = levels.into_iter().map(|shares| Level {
            shares: shares.into_iter().map(|(weight, members)| share(weight, members)).collect(),
        });
        let levels = levels.collect();
        Self { levels, settings }
    }

    /// Every endpoint that may be chosen, the nearest first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.levels.iter().flat_map(|level| &level.shares).flat_map(|share| &share.candidates)
    }

    /// How one is chosen.
    pub fn settings(&self) -> &LoadBalancer {
        &self.settings
    }

    /// Chooses an endpoint; `None` if there is none that may be.
    ///
    /// This looks at a few endpoints; where there are several priorities or shares, and some are ejected, at each.
    pub fn choose<R: rand::Rng>(
        &self,
        choice: &mut Choice<'_, R>,
        state: impl Fn(&Candidate) -> State,
    ) -> Option<&Candidate> {
        let ignore_ejections = choice.ignore_ejections;
        let state = |candidate: &Candidate| {
            let state = state(candidate);
            State { ejected: state.ejected && !ignore_ejections, ..state }
        };
        let availabilities: Vec<f64> = match &*self.levels {
            [_] | [] => Vec::new(),
            levels if ignore_ejections => vec![1.0; levels.len()],
            levels => levels.iter().map(|level| level.availability(&state)).collect(),
        };
        // A hash decides everything, so that the same key comes to the same endpoint.
        let mut draw = |salt: u64| match choice.hash {
            Some(hash) => unit(hash ^ salt),
            None => choice.rng.random::<f64>(),
        };
        let level = match &*self.levels {
            [] => return None,
            [only] => only,
            levels => &levels[by_availability(&availabilities, draw(0x9e37_79b9_7f4a_7c15))?],
        };
        let share = match &*level.shares {
            [only] => only,
            shares => {
                let availability = |share: &Share| if ignore_ejections { 1.0 } else { share.availability(&state) };
                let of = |share: &Share| f64::from(share.weight) * availability(share);
                let weights: Vec<f64> = shares.iter().map(of).collect();
                let total: f64 = weights.iter().sum();
                if total <= 0.0 {
                    return None;
                }
                let mut at = draw(0xd1b5_4a32_d192_ed03) * total;
                let found = weights.iter().position(|weight| {
                    at -= weight;
                    at < 0.0
                });
                // Of floats that do not quite add up, the last that has a weight.
                &shares[found.or_else(|| weights.iter().rposition(|weight| *weight > 0.0))?]
            }
        };
        share.choose(&self.settings, choice, &state)
    }
}

/// The level for a draw from 0 to 1: each takes as much as it can, the first first.
fn by_availability(availabilities: &[f64], draw: f64) -> Option<usize> {
    let total = availabilities.iter().sum::<f64>().min(1.0);
    let mut left = draw * total;
    let found = availabilities.iter().position(|availability| {
        left -= availability;
        left < 0.0
    });
    found.or_else(|| availabilities.iter().rposition(|availability| *availability > 0.0))
}

fn unit(hash: u64) -> f64 {
    (super::hash::hash(&hash.to_le_bytes()) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Level {
    fn availability(&self, state: &impl Fn(&Candidate) -> State) -> f64 {
        let count = self.shares.iter().map(|share| share.candidates.len()).sum::<usize>();
        let well: usize = self.shares.iter().map(|share| share.well(state)).sum();
        (well as f64 / count.max(1) as f64 * OVERPROVISIONING).min(1.0)
    }
}

impl Share {
    fn new(weight: u32, candidates: Vec<Candidate>, algorithm: &Algorithm) -> Self {
        let sums: Vec<u64> = candidates
            .iter()
            .scan(0, |sum, candidate| {
                *sum += u64::from(candidate.weight);
                Some(*sum)
            })
            .collect();
        let table = match algorithm {
            Algorithm::Hash(_, kind) => {
                let hosts: Vec<_> = candidates
                    .iter()
                    .map(|candidate| (candidate.workload.uid.0.as_bytes(), candidate.weight))
                    .collect();
                Some(match kind {
                    HashTable::Ring(points) => Table::ring(&hosts, *points),
                    HashTable::Maglev(size) => Table::maglev(&hosts, *size),
                })
            }
            _ => None,
        };
        let equal = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        Self { weight, candidates, sums, equal, table }
    }

    fn well(&self, state: &impl Fn(&Candidate) -> State) -> usize {
        self.candidates.iter().filter(|candidate| !state(candidate).ejected).count()
    }

    fn availability(&self, state: &impl Fn(&Candidate) -> State) -> f64 {
        (self.well(state) as f64 / self.candidates.len().max(1) as f64 * OVERPROVISIONING).min(1.0)
    }

    /// The candidate at `at`, of the sum of all weights.
    fn at(&self, at: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= at).min(self.candidates.len() - 1)
    }

    fn any(&self, rng: &mut impl rand::Rng) -> usize {
        match (self.equal, self.sums.last()) {
            (false, Some(total)) => self.at(rng.random_range(0..*total)),
            _ => rng.random_range(0..self.candidates.len()),
        }
    }

    fn choose<R: rand::Rng>(
        &self,
        settings: &LoadBalancer,
        choice: &mut Choice<'_, R>,
        state: &impl Fn(&Candidate) -> State,
    ) -> Option<&Candidate> {
        if self.candidates.is_empty() {
            return None;
        }
        if let (Some(table), Some(hash)) = (&self.table, choice.hash) {
            let found = table.find(hash, |index| !state(&self.candidates[index]).ejected);
            return found.map(|index| &self.candidates[index]);
        }
        let warm = |state: &State, rng: &mut R| is_warm(settings.warmup.as_ref(), state, rng);
        let mut second_best = None;
        for attempt in 0..HOST_SELECTION_ATTEMPTS.max(5) * 2 {
            let index = match &settings.algorithm {
                Algorithm::RoundRobin => self.turn(choice.turn.wrapping_add(u64::from(attempt))),
                _ => self.any(choice.rng),
            };
            let first = state(&self.candidates[index]);
            if first.ejected {
                continue;
            }
            if first.tried || !warm(&first, choice.rng) {
                second_best = second_best.or((!first.tried).then_some(index));
                continue;
            }
            if settings.algorithm != Algorithm::LeastRequest || self.candidates.len() == 1 {
                return Some(&self.candidates[index]);
            }
            // The other of the two is another one, unless chance has it that there is none that may be.
            let other = self.any(choice.rng);
            let second = state(&self.candidates[other]);
            let better = !second.ejected && !second.tried && second.active < first.active && warm(&second, choice.rng);
            return Some(&self.candidates[if better { other } else { index }]);
        }
        if let Some(index) = second_best {
            return Some(&self.candidates[index]);
        }
        // Most are ejected or tried: whoever is left, from a random place on; one that was tried is better than none.
        let start = choice.rng.random_range(0..self.candidates.len());
        let (before, after) = self.candidates.split_at(start);
        let well = || after.iter().chain(before).filter(|candidate| !state(candidate).ejected);
        well().find(|candidate| !state(candidate).tried).or_else(|| well().next())
    }

    /// Whose turn it is: each in order, or, with weights, spread as evenly as they go (a Weyl sequence).
    fn turn(&self, turn: u64) -> usize {
        match (self.equal, self.sums.last()) {
            (false, Some(total)) => {
                let fraction = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                self.at(((u128::from(fraction) * u128::from(*total)) >> 64) as u64)
            }
            _ => (turn % self.candidates.len() as u64) as usize,
        }
    }
}

/// Whether an endpoint that warms up takes this request.
fn is_warm(warmup: Option<&Warmup>, state: &State, rng: &mut impl rand::Rng) -> bool {
    match (warmup, state.age) {
        (Some(warmup), Some(age)) => rng.random::<f64>() < warmup.factor(age),
        _ => true,
    }
}
