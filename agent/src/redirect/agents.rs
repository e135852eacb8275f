//! The agents of this node. While one is replaced there are two: the sockets of both are exempt from the hooks, and one
//! of them, the last that took charge and still lives, takes pods in and lets them go.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::cgroup::{self, Own};
use super::pins::Pins;
use super::programs::Maps;
use super::steps::{absent_is_fine, map_error};

/// The turn of an agent that is not, or no longer, in charge.
const WAITING: u64 = 0;

/// This agent among those of the node.
#[derive(Debug)]
pub(super) struct Agents {
    /// Where cgroup v2 is mounted.
    mount: PathBuf,
    /// The id of this agent's cgroup.
    own: u64,
    cgroup: Own,
    /// Where the cgroups of other agents have been found.
    found: Mutex<HashMap<u64, PathBuf>>,
}

impl Agents {
    pub(super) fn new(mount: PathBuf, cgroup: Own) -> Self {
        Self { mount, own: cgroup.id, cgroup, found: Mutex::default() }
    }

    /// Exempts this agent's sockets from the hooks, and those of agents that are gone no longer.
    pub(super) fn enter(&self, maps: &mut Maps, pins: &Pins) -> io::Result<()> {
        let _alone = pins.lock(FlockArg::LockExclusive)?;
        self.forget_dead(maps)?;
        maps.agents.insert(self.own, WAITING, 0).map_err(map_error)
    }

    /// From here on pods are this agent's to take in and let go, and no longer another's.
    pub(super) fn take_charge(&self, maps: &mut Maps, pins: &Pins) -> io::Result<()> {
        let _alone = pins.lock(FlockArg::LockExclusive)?;
        self.forget_dead(maps)?;
        let last = turns(maps).into_iter().map(|(_, turn)| turn).max().unwrap_or_default();
        maps.agents.insert(self.own, last + 1, 0).map_err(map_error)
    }

    /// Leaves the pods to others, and stays exempt: what this agent still carries may finish.
    pub(super) fn give_up(&self, maps: &mut Maps) -> io::Result<()> {
        maps.agents.insert(self.own, WAITING, 0).map_err(map_error)
    }

    /// Exempt no longer, and out of the cgroup that the agent made for that.
    pub(super) fn leave(&self, maps: &mut Maps) {
        // A row that stays is the id of a cgroup that nobody is in.
        let _ = absent_is_fine(maps.agents.remove(&self.own));
        self.cgroup.leave();
    }

    /// Whether pods are this agent's.
    pub(super) fn is_in_charge(&self, maps: &Maps) -> bool {
        in_charge(&turns(maps), |agent| agent == self.own || self.is_alive(agent)) == Some(self.own)
    }

    /// If pods are this agent's, sees to it that nobody else takes charge meanwhile.
    pub(super) fn hold_charge(&self, maps: &Maps, pins: &Pins) -> io::Result<Option<Held>> {
        let held = pins.lock(FlockArg::LockShared)?;
        Ok(self.is_in_charge(maps).then_some(Held(held)))
    }

    /// Whether pods are some living agent's.
    pub(super) fn is_anyone_in_charge(&self, maps: &Maps) -> bool {
        in_charge(&turns(maps), |agent| agent == self.own || self.is_alive(agent)).is_some()
    }

    fn forget_dead(&self, maps: &mut Maps) -> io::Result<()> {
        for (agent, _) in turns(maps) {
            if agent != self.own && !self.is_alive(agent) {
                absent_is_fine(maps.agents.remove(&agent))?;
                self.found().remove(&agent);
            }
        }
        Ok(())
    }

    /// Whether a process is in the cgroup with this id. Ids are not used again (kernfs counts generations).
    fn is_alive(&self, agent: u64) -> bool {
        let known = self.found().get(&agent).cloned();
        let found = known.filter(|path| cgroup::id_of(path) == Some(agent)).or_else(|| find(&self.mount, agent));
        let Some(path) = found else { return false };
        let is_alive = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty());
        self.found().insert(agent, path);
        is_alive
    }

    fn found(&self) -> std::sync::MutexGuard<'_, HashMap<u64, PathBuf>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn turns(maps: &Maps) -> Vec<(u64, u64)> {
    maps.agents.iter().filter_map(Result::ok).collect()
}

/// The living agent that took charge last.
fn in_charge(turns: &[(u64, u64)], mut is_alive: impl FnMut(u64) -> bool) -> Option<u64> {
    let mut turns: Vec<_> = turns.iter().filter(|(_, turn)| *turn != WAITING).collect();
    turns.sort_by_key(|(_, turn)| std::cmp::Reverse(*turn));
    turns.into_iter().map(|(agent, _)| *agent).find(|agent| is_alive(*agent))
}

/// While it is there, charge stays where it is.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "unlocked when dropped")] Flock<File>);

/// The cgroup with this id.
fn find(mount: &Path, id: u64) -> Option<PathBuf> {
    let mut rest = vec![mount.to_path_buf()];
    while let Some(directory) = rest.pop() {
        if cgroup::id_of(&directory) == Some(id) {
            return Some(directory);
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        rest.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_living_agent_that_took_charge_has_it() {
        let turns = [(10, 1), (20, 3), (30, 2), (40, WAITING)];
        assert_eq!(in_charge(&turns, |_| true), Some(20));
        assert_eq!(in_charge(&turns, |agent| agent != 20), Some(30));
        assert_eq!(in_charge(&turns, |agent| agent == 10 || agent == 40), Some(10));
    }

    #[test]
    fn an_agent_that_waits_has_charge_of_nothing() {
        assert_eq!(in_charge(&[(40, WAITING)], |_| true), None);
        assert_eq!(in_charge(&[], |_| true), None);
    }
}
