//! Which custom resources are there. The CustomResourceDefinitions are watched, their metadata alone: so one that is
//! installed later is picked up at once, and nothing is asked for meanwhile.

use std::collections::HashMap;

use serde::Deserialize;
use tokio::sync::watch;

use super::sink::{Closed, Piece};
use super::split::Cut;

/// The path of the definitions, and what they are called in the status.
pub(super) const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?";
pub(super) const NAME: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// What is known of a custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Nothing yet.
    Unknown,
    /// Nothing, since the definitions may not be read.
    Unreadable,
    /// It is not there.
    Absent,
    /// It is there, in this form: another one may be served in other versions.
    Present { generation: i64 },
}

/// Keeps track of the definitions that matter.
#[derive(Debug)]
pub(super) struct Definitions {
    wanted: HashMap<String, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    presence: watch::Sender<Presence>,
    is_in_list: bool,
}

impl Definitions {
    /// Of the definitions with these names.
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let wanted = |name| (name, Wanted { presence: watch::channel(Presence::Unknown).0, is_in_list: false });
        Self { wanted: names.into_iter().map(wanted).collect() }
    }

    /// What is known of `name`, now and later.
    pub(super) fn presence(&self, name: &str) -> Option<watch::Receiver<Presence>> {
        Some(self.wanted.get(name)?.presence.subscribe())
    }

    /// They may not be read. What is known already stays.
    pub(super) fn refused(&self) {
        for wanted in self.wanted.values().filter(|wanted| *wanted.presence.borrow() == Presence::Unknown) {
            change(&wanted.presence, Presence::Unreadable);
        }
    }

    pub(super) fn take(&mut self, piece: Piece) -> Result<(), Closed> {
        match piece {
            Piece::Begin => self.wanted.values_mut().for_each(|wanted| wanted.is_in_list = false),
            Piece::Objects(objects) => {
                for definition in objects.iter().filter_map(parse::<Definition>) {
                    self.set(&definition.metadata, true);
                }
            }
            Piece::Events(events) => {
                for event in events.iter().filter_map(parse::<Event>) {
                    self.set(&event.object.metadata, event.r#type != "DELETED");
                }
            }
            Piece::End => {
                for wanted in self.wanted.values_mut().filter(|wanted| !wanted.is_in_list) {
                    change(&wanted.presence, Presence::Absent);
                }
            }
        }
        if self.wanted.values().all(|wanted| wanted.presence.is_closed()) { Err(Closed) } else { Ok(()) }
    }

    fn set(&mut self, metadata: &Metadata, is_there: bool) {
        let Some(wanted) = self.wanted.get_mut(&metadata.name) else { return };
        wanted.is_in_list = is_there;
        let presence = if is_there { Presence::Present { generation: metadata.generation } } else { Presence::Absent };
        change(&wanted.presence, presence);
    }
}

fn change(presence: &watch::Sender<Presence>, new: Presence) {
    presence.send_if_modified(|presence| {
        let is_new = *presence != new;
        *presence = new;
        is_new
    });
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Definition,
}

#[derive(Deserialize)]
struct Definition {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    generation: i64,
}

/// Definitions come from the API server itself, which checks them: one that cannot be read is none of ours.
fn parse<T: for<'de> Deserialize<'de>>(cut: &Cut) -> Option<T> {
    match cut {
        Cut::Object(json) => serde_json::from_slice(json).ok(),
        Cut::TooLarge(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Vec<Cut> {
        vec![Cut::Object(json.as_bytes().to_vec())]
    }

    #[test]
    fn a_definition_is_absent_once_the_list_is_complete_without_it() {
        let mut definitions = Definitions::new(["a.x.io".to_owned(), "b.x.io".to_owned()]);
        let presence = |definitions: &Definitions, name| definitions.presence(name).unwrap().borrow().clone();
        let _watched = (definitions.presence("a.x.io"), definitions.presence("b.x.io"));
        definitions.take(Piece::Begin).unwrap();
        definitions.take(Piece::Objects(object(r#"{"metadata":{"name":"a.x.io","generation":3}}"#))).unwrap();
        assert_eq!(presence(&definitions, "a.x.io"), Presence::Present { generation: 3 });
        assert_eq!(presence(&definitions, "b.x.io"), Presence::Unknown);
        definitions.take(Piece::End).unwrap();
        assert_eq!(presence(&definitions, "b.x.io"), Presence::Absent);

        let added = r#"{"type":"ADDED","object":{"metadata":{"name":"b.x.io","generation":1}}}"#;
        definitions.take(Piece::Events(object(added))).unwrap();
        assert_eq!(presence(&definitions, "b.x.io"), Presence::Present { generation: 1 });
        let deleted = r#"{"type":"DELETED","object":{"metadata":{"name":"a.x.io"}}}"#;
        definitions.take(Piece::Events(object(deleted))).unwrap();
        assert_eq!(presence(&definitions, "a.x.io"), Presence::Absent);
        definitions.take(Piece::Begin).unwrap();
        definitions.take(Piece::End).unwrap();
        assert_eq!(presence(&definitions, "b.x.io"), Presence::Absent);
    }
}
