//! What the resources say, made into changes of objects.

mod intake;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use culvert_api::{Kind, Object, trim};
use culvert_core::mesh::Change;
use serde_json::Value;

use self::intake::{Context, key, uid};
use super::ahead::Found;
use super::entries::{Entries, Entry};
use super::journal::{Contents, Journal, Place};
use super::resource::Resource;
use super::sink::Piece;
use super::status::Board;

/// Knows which objects there are, and tells what has changed.
pub(super) struct Assembler {
    resources: Vec<Known>,
    board: Arc<Board>,
    journal: Option<Journal>,
}

struct Known {
    kind: Kind,
    api_version: String,
    name: Arc<str>,
    entries: Entries,
    /// The UIDs of those that the watch took away last, of kinds that are asked for.
    deleted: VecDeque<Box<str>>,
    /// Whether this agent has listed them.
    is_listed: bool,
    /// Whether all of them are known: from this agent, or from an earlier one.
    is_complete: bool,
}

impl Assembler {
    /// Of `resources`, in this order, with what an earlier agent knew.
    pub(super) fn new(
        resources: &[Resource],
        board: Arc<Board>,
        journal: Option<Journal>,
        mut remembered: Option<Contents>,
    ) -> Self {
        let known = |resource: &Resource| {
            let name = resource.name();
            let contents = remembered.as_mut();
            let is_complete = contents.as_ref().is_some_and(|contents| contents.complete.contains(&name));
            let objects = contents.and_then(|contents| contents.objects.remove(&name)).unwrap_or_default();
            if is_complete {
                board.remembered(&name);
            }
            board.set_objects(&name, objects.len());
            Known {
                kind: resource.kind,
                api_version: resource.api_version(),
                name: name.into(),
                entries: Entries::remembered(objects),
                deleted: VecDeque::new(),
                is_listed: false,
                is_complete,
            }
        };
        let resources = resources.iter().map(known).collect();
        Self { resources, board, journal }
    }

    /// Whether this agent has listed everything.
    pub(super) fn is_listed(&self) -> bool {
        self.resources.iter().all(|resource| resource.is_listed)
    }

    /// Whether everything is known, from this agent or from an earlier one.
    pub(super) fn is_complete(&self) -> bool {
        self.resources.iter().all(|resource| resource.is_complete)
    }

    /// Where the objects of an earlier agent are, in the order of the file.
    pub(super) fn remembered(&mut self) -> Vec<(usize, Box<str>, Place)> {
        let all = self.resources.iter_mut().enumerate().flat_map(|(at, resource)| {
            resource.entries.iter_mut().map(move |(key, entry)| (at, key.into(), entry.place))
        });
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(.., place)| *place);
        all
    }

    /// Reads objects of an earlier agent. One that cannot be read any more is forgotten: it will be listed.
    pub(super) fn recall(&mut self, objects: &[(usize, Box<str>, Place)], changes: &mut Vec<Change>) {
        let Some(journal) = &self.journal else { return };
        for (at, key, place) in objects {
            let json = journal.read(*place).ok();
            let value = json.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
            match value.and_then(|value| Object::from_value(value).ok()) {
                Some((object, _)) => changes.push(Change::Upsert(object)),
                None => {
                    self.resources[*at].entries.remove(key);
                    // Then this resource has to be listed.
                    self.resources[*at].is_complete = false;
                }
            }
        }
    }

    /// Takes in what resource `at` says.
    pub(super) fn take(&mut self, at: usize, piece: Piece, changes: &mut Vec<Change>) {
        let Some(resource) = self.resources.get_mut(at) else { return };
        let mut context = Context { resource, board: &self.board, journal: self.journal.as_mut(), changes };
        match piece {
            Piece::Begin => context.resource.entries.begin(),
            Piece::Objects(objects) => objects.iter().for_each(|object| context.listed(object)),
            Piece::Events(events) => events.iter().for_each(|event| context.event(event)),
            Piece::End => context.end(),
        }
        self.board.set_objects(&resource.name, resource.entries.len());
    }

    /// Takes in an object that the watch has not brought yet. What it has brought, or taken away, it knows better: the
    /// answer that holds the object may be older.
    pub(super) fn take_ahead(&mut self, found: &Found, changes: &mut Vec<Change>) {
        let Some(resource) = self.resources.iter_mut().find(|resource| resource.kind == found.kind) else { return };
        let Ok(value) = trim::trim(found.kind, &found.json) else { return };
        let is_known = key(&value, found.kind).is_none_or(|key| resource.entries.has(&key));
        let is_gone = uid(&value).is_some_and(|uid| resource.deleted.iter().any(|deleted| **deleted == *uid));
        if is_known || is_gone {
            return;
        }
        let mut context = Context { resource, board: &self.board, journal: self.journal.as_mut(), changes };
        if let Err(unreadable) = context.upsert(value) {
            context.reject(&unreadable);
        }
        self.board.set_objects(&resource.name, resource.entries.len());
    }

    /// Whether there is something to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_dirty)
    }

    /// Writes what has changed to disk.
    pub(super) fn save(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        journal.flush();
        let objects = self.resources.iter_mut().flat_map(|resource| resource.entries.iter_mut());
        let live: u64 = objects.map(|(key, entry)| entry.place.size() + key.len() as u64).sum();
        if !journal.is_bloated(live) {
            return;
        }
        let complete: Vec<String> =
            self.resources.iter().filter(|r| r.is_complete).map(|resource| resource.name.to_string()).collect();
        let objects = self.resources.iter_mut().flat_map(|resource| {
            let name = resource.name.clone();
            resource.entries.iter_mut().map(move |(key, Entry { place, .. })| (name.to_string(), key, place))
        });
        journal.rewrite(complete.into_iter(), objects);
    }

    /// Notes on disk that everything is as it was.
    pub(super) fn confirm(&self) {
        if let Some(journal) = &self.journal
            && self.board.is_whole()
        {
            journal.touch();
        }
    }
}
