//! One object of a resource taken in: read, compared with what is known, and made into a change.

use culvert_api::{Kind, Object, ObjectError, ObjectRef, UnknownField, trim};
use culvert_core::mesh::Change;
use culvert_core::translate::Finding;
use serde_json::Value;

use super::Known;
use crate::source::kube::entries::digest;
use crate::source::kube::journal::Journal;
use crate::source::kube::split::Cut;
use crate::source::kube::status::Board;

/// The type of the event of an object that is gone.
const DELETED: &str = "DELETED";
const TOO_LARGE: &str = "larger than any object may be";
/// Kinds of which every field is kept, and so those that nothing reads can be told; AuthorizationPolicy, whose unknown
/// fields have a meaning, tells of them where it is translated.
const IS_WHOLE: [Kind; 3] = [Kind::PeerAuthentication, Kind::ServiceEntry, Kind::WorkloadEntry];
/// How many such fields of an object are told.
const MAX_UNKNOWN: usize = 16;
/// How many of a resource's objects that were taken away are told from new ones: more than go while an answer is on its
/// way.
const MAX_DELETED: usize = 1024;

/// What is needed to take in an object.
pub(super) struct Context<'a> {
    pub(super) resource: &'a mut Known,
    pub(super) board: &'a Board,
    pub(super) journal: Option<&'a mut Journal>,
    pub(super) changes: &'a mut Vec<Change>,
}

impl Context<'_> {
    pub(super) fn listed(&mut self, object: &Cut) {
        let result = match object {
            Cut::Object(json) => match trim::trim(self.resource.kind, json) {
                Ok(value) => self.upsert(value),
                Err(error) => Err(self.unreadable(&trim::identify(json), not_json(&error))),
            },
            Cut::TooLarge(head) => Err(self.unreadable(&trim::identify(head), TOO_LARGE.to_owned())),
        };
        if let Err(unreadable) = result {
            self.reject(&unreadable);
        }
    }

    pub(super) fn event(&mut self, event: &Cut) {
        let result = match event {
            Cut::Object(json) => match trim::trim_event(self.resource.kind, json) {
                Ok((kind, value)) if kind == DELETED => {
                    self.delete(&value);
                    Ok(())
                }
                Ok((_, value)) => self.upsert(value),
                Err(error) => self.unreadable_event(json, not_json(&error)),
            },
            Cut::TooLarge(head) => self.unreadable_event(head, TOO_LARGE.to_owned()),
        };
        if let Err(unreadable) = result {
            self.reject(&unreadable);
        }
    }

    /// That an object is gone can be read where the object cannot.
    fn unreadable_event(&mut self, json: &[u8], message: String) -> Result<(), Unreadable> {
        let (kind, value) = trim::identify_event(json);
        if kind.as_deref() == Some(DELETED) {
            self.delete(&value);
            return Ok(());
        }
        Err(self.unreadable(&value, message))
    }

    pub(super) fn end(&mut self) {
        let gone = self.resource.entries.end();
        for key in gone.objects {
            self.remove(&key);
        }
        for key in gone.rejected {
            self.accept(&key);
        }
        if !self.resource.is_listed {
            self.resource.is_listed = true;
            self.resource.is_complete = true;
            self.board.complete(&self.resource.name);
            if let Some(journal) = &mut self.journal {
                journal.complete(&self.resource.name);
            }
        }
    }

    pub(super) fn upsert(&mut self, mut value: Value) -> Result<(), Unreadable> {
        let key = key(&value, self.resource.kind);
        let Value::Object(fields) = &mut value else {
            return Err(Unreadable { key, field: String::new(), message: "not an object".to_owned() });
        };
        // The same whatever version it was served in, and for those items of a list that do not say what they are.
        fields.insert("apiVersion".to_owned(), self.resource.api_version.clone().into());
        fields.insert("kind".to_owned(), self.resource.kind.as_str().into());
        let json = serde_json::to_vec(&value).map_err(|error| self.unreadable(&value, not_json(&error)))?;
        let digest = digest(&json);
        if let Some(key) = &key
            && self.resource.entries.is_as_it_was(key, digest)
        {
            return Ok(());
        }
        let (object, unknown) = Object::from_value(value).map_err(|error| refused(key, &error))?;
        let reference = object.reference();
        let key = key_of(&reference);
        for field in &unknown {
            tracing::debug!("{reference}: {}: nothing reads this field", field.path);
        }
        let place = self.journal.as_mut().map(|journal| journal.put(&self.resource.name, &key, &json));
        if self.resource.entries.put(&key, digest, place.unwrap_or_default()) {
            self.accept(&key);
        }
        self.changes.push(Change::Upsert(object));
        // What nothing reads of a policy is said where the policy is read.
        if IS_WHOLE.contains(&reference.kind) {
            let warning = |field: &UnknownField| {
                Finding::warning(reference.clone(), field.path.clone(), "nothing reads this field: it has no effect")
            };
            let list = unknown.iter().take(MAX_UNKNOWN).map(warning).collect();
            self.changes.push(Change::Report(reference.clone(), list));
        }
        Ok(())
    }

    fn delete(&mut self, value: &Value) {
        let Some(key) = key(value, self.resource.kind) else { return };
        if matches!(self.resource.kind, Kind::Pod | Kind::Namespace)
            && let Some(uid) = uid(value)
        {
            let deleted = &mut self.resource.deleted;
            deleted.truncate(MAX_DELETED - 1);
            deleted.push_front(uid.into());
        }
        let (was_there, was_rejected) = self.resource.entries.remove(&key);
        if was_rejected {
            self.accept(&key);
        }
        if was_there {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(journal) = &mut self.journal {
            journal.remove(&self.resource.name, key);
        }
        self.changes.push(Change::Remove(self.reference(key)));
    }

    pub(super) fn reject(&mut self, unreadable: &Unreadable) {
        let Unreadable { key, field, message } = unreadable;
        let Some(key) = key else {
            self.resource.entries.reject_nameless();
            let object = format!("{} (one without a usable name)", self.resource.name);
            let line = format!("{message}: it is left out, and until that is corrected no list takes any other away");
            return self.board.reject(object, line);
        };
        let becomes = if self.resource.entries.reject(key) { "it stays as it was" } else { "it is left out" };
        let message = format!("{message}: {becomes} until that is corrected");
        let line = if field.is_empty() { message.clone() } else { format!("{field}: {message}") };
        self.board.reject(self.describe(key), line);
        let reference = self.reference(key);
        let finding = Finding::error(reference.clone(), field.clone(), message);
        self.changes.push(Change::Report(reference, vec![finding]));
    }

    /// An object can be read again, or is gone.
    fn accept(&mut self, key: &str) {
        self.board.accept(&self.describe(key));
        self.changes.push(Change::Report(self.reference(key), Vec::new()));
    }

    fn reference(&self, key: &str) -> ObjectRef {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        ObjectRef::new(self.resource.kind, namespace, name)
    }

    fn describe(&self, key: &str) -> String {
        format!("{} {key}", self.resource.kind)
    }

    /// The object that can be told to be `value`.
    fn unreadable(&self, value: &Value, message: String) -> Unreadable {
        Unreadable { key: key(value, self.resource.kind), field: String::new(), message }
    }
}

/// `namespace/name`, or `name`; `None` where it has no usable name.
pub(super) fn key(value: &Value, kind: Kind) -> Option<String> {
    let metadata = value.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).filter(|text| text.len() <= 253);
    let name = text("name")?;
    Some(if kind.is_namespaced() { format!("{}/{name}", text("namespace")?) } else { name.to_owned() })
}

pub(super) fn uid(value: &Value) -> Option<&str> {
    value.get("metadata")?.get("uid")?.as_str().filter(|uid| uid.len() <= 64)
}

fn key_of(object: &ObjectRef) -> String {
    if object.kind.is_namespaced() { format!("{}/{}", object.namespace, object.name) } else { object.name.to_string() }
}

fn refused(key: Option<String>, error: &ObjectError) -> Unreadable {
    let field = match error {
        ObjectError::Field { path, .. } => path.clone(),
        _ => String::new(),
    };
    let message = match error {
        ObjectError::Field { message, .. } => message.clone(),
        other => other.to_string(),
    };
    Unreadable { key, field, message }
}

fn not_json(error: &serde_json::Error) -> String {
    format!("cannot be parsed: {error}")
}

/// An object that cannot be read.
pub(super) struct Unreadable {
    key: Option<String>,
    field: String,
    message: String,
}
