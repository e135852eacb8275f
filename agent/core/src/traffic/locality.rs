//! Which endpoints are nearer: priorities, and shares of localities.

use std::sync::Arc;

use culvert_api::names::label;

use super::policy::Locality;
use crate::service::{LoadBalancing, LocalityMode, LocalityScope};
use crate::workload::{Locality as Place, Workload};

/// Endpoints that are equally near, in shares.
pub(super) type Shares = Vec<(u32, Vec<usize>)>;

/// Sorts `workloads` into priorities, the nearest first, by their positions; none is empty.
///
/// Without outlier detection nobody is ever found to be failing, and a failover does nothing, as in Istio: then there
/// is one priority.
pub(super) fn priorities(
    workloads: &[&Arc<Workload>],
    client: &Workload,
    setting: Option<&Locality>,
    detects_outliers: bool,
    balancing: &LoadBalancing,
) -> Vec<Shares> {
    let all = || vec![vec![(1, (0..workloads.len()).collect())]];
    let by = |priority: &dyn Fn(&Workload) -> Option<usize>| {
        let mut levels: Vec<Vec<usize>> = Vec::new();
        for (at, workload) in workloads.iter().enumerate() {
            let Some(priority) = priority(workload) else { continue };
            if levels.len() <= priority {
                levels.resize(priority + 1, Vec::new());
            }
            levels[priority].push(at);
        }
        levels.into_iter().filter(|level| !level.is_empty()).map(|level| vec![(1, level)]).collect()
    };
    let mut levels = match setting {
        Some(Locality::Disabled) => all(),
        Some(Locality::Distribute(rules)) => match rules.iter().find(|(from, _)| covers(from, &client.locality)) {
            Some((_, to)) => vec![shares(workloads, to)],
            None => all(),
        },
        Some(Locality::Failover(regions)) if detects_outliers => {
            by(&|workload| Some(distance(&client.locality, &workload.locality, regions)))
        }
        Some(Locality::Priority(labels)) if detects_outliers => by(&|workload| {
            let matching = labels.iter().take_while(|(key, value)| {
                let theirs = label_of(workload, key);
                match value {
                    Some(value) => theirs == Some(value),
                    None => theirs.is_some() && theirs == label_of(client, key),
                }
            });
            Some(labels.len() - matching.count())
        }),
        Some(Locality::Failover(_) | Locality::Priority(_)) => all(),
        None => match balancing.mode {
            LocalityMode::Any if detects_outliers => {
                by(&|workload| Some(distance(&client.locality, &workload.locality, &[])))
            }
            LocalityMode::Any => all(),
            mode => by(&|workload| {
                let missing = balancing.scopes.len() - matching(balancing.scopes, client, workload);
                (mode == LocalityMode::Failover || missing == 0).then_some(missing)
            }),
        },
    };
    levels.retain(|shares| shares.iter().any(|(weight, members)| *weight > 0 && !members.is_empty()));
    levels
}

/// Each endpoint in the first of `to` that covers it; those that none covers get nothing.
fn shares(workloads: &[&Arc<Workload>], to: &[(Box<str>, u32)]) -> Shares {
    let mut shares: Shares = to.iter().map(|(_, weight)| (*weight, Vec::new())).collect();
    for (at, workload) in workloads.iter().enumerate() {
        let best = to.iter().enumerate().filter(|(_, (pattern, _))| covers(pattern, &workload.locality));
        // The narrowest counts: `eu/eu-1` before `eu/*`.
        if let Some((share, _)) = best.max_by_key(|(_, (pattern, _))| pattern.trim_end_matches('*').len()) {
            shares[share].1.push(at);
        }
    }
    shares.retain(|(weight, members)| *weight > 0 && !members.is_empty());
    shares
}

/// How far `there` is from `here`; beyond the region, those that stand in for it are nearer than others.
fn distance(here: &Place, there: &Place, failover: &[(Box<str>, Box<str>)]) -> usize {
    let stands_in = |(from, to): &(Box<str>, Box<str>)| **from == *here.region && **to == *there.region;
    match () {
        () if here.region != there.region && failover.iter().any(stands_in) => 3,
        () if here.region != there.region => 4,
        () if here.zone != there.zone => 2,
        () if here.subzone != there.subzone => 1,
        () => 0,
    }
}

/// Whether `pattern` (`region/zone/subzone`, or less, or `*` from somewhere on) is for `place`.
pub(super) fn covers(pattern: &str, place: &Place) -> bool {
    let mut parts = [&*place.region, &*place.zone, &*place.subzone].into_iter();
    for wanted in pattern.split('/') {
        match (wanted, parts.next()) {
            ("*", _) => return true,
            (wanted, Some(part)) if wanted == part => {}
            _ => return false,
        }
    }
    true
}

fn label_of<'w>(workload: &'w Workload, key: &str) -> Option<&'w str> {
    let place = &workload.locality;
    let derived: Option<&str> = match key {
        label::REGION => Some(&place.region),
        label::ZONE => Some(&place.zone),
        label::SUBZONE => Some(&place.subzone),
        label::NETWORK => Some(&workload.network),
        "topology.istio.io/cluster" => Some(&workload.cluster),
        "kubernetes.io/hostname" => Some(&workload.node),
        _ => None,
    };
    let own = workload.labels.get(key).map(|value| &**value);
    own.or(derived.filter(|value| !value.is_empty()))
}

fn matching(scopes: &[LocalityScope], client: &Workload, workload: &Workload) -> usize {
    let (ours, theirs) = (&client.locality, &workload.locality);
    let same = |scope: &&LocalityScope| match scope {
        LocalityScope::Network => client.network == workload.network,
        LocalityScope::Region => ours.region == theirs.region,
        LocalityScope::Zone => ours.zone == theirs.zone,
        LocalityScope::Subzone => ours.subzone == theirs.subzone,
        LocalityScope::Node => client.node == workload.node && !client.node.is_empty(),
    };
    scopes.iter().take_while(same).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_what_is_below_it() {
        let place = Place { region: "eu".into(), zone: "eu-1".into(), subzone: "rack".into() };
        for (pattern, expected) in [
            ("eu", true),
            ("eu/*", true),
            ("eu/eu-1", true),
            ("eu/eu-1/*", true),
            ("eu/eu-1/rack", true),
            ("*", true),
            ("eu/eu-2", false),
            ("us/*", false),
            ("eu/eu-1/rack/more", false),
            ("", false),
        ] {
            assert_eq!(covers(pattern, &place), expected, "{pattern}");
        }
    }
}
