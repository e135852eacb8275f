//! Policies as `/config_dump` shows them: near to how they were written, with what was made of it.

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

use super::AuthorizationPolicy;
use super::rule::{Alternative, Clause, ClauseKind, Rule};

impl Serialize for AuthorizationPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("AuthorizationPolicy", 5)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("action", &self.action)?;
        fields.serialize_field("scope", &self.scope)?;
        fields.serialize_field("dryRun", &self.dry_run)?;
        fields.serialize_field("rules", &self.rules)?;
        fields.end()
    }
}

impl Serialize for Rule {
    /// `{"never": why}`, or the clauses by name: `{"from": [{"source.principals": [...]}], "when[0]": [...]}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        match self {
            Self::Never(why) => fields.serialize_entry("never", why)?,
            Self::Clauses(clauses) => {
                for clause in clauses {
                    fields.serialize_entry(&clause.kind.to_string(), &Alternatives(clause))?;
                }
            }
        }
        fields.end()
    }
}

struct Alternatives<'a>(&'a Clause);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.alternatives.iter().map(|alternative| Fields(self.0.kind, alternative)))
    }
}

struct Fields<'a>(ClauseKind, &'a Alternative);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(kind, alternative) = self;
        let mut fields = serializer.serialize_map(None)?;
        if let (ClauseKind::When(_), Some(condition)) = (kind, alternative.conditions.first()) {
            fields.serialize_entry("key", &*condition.attribute.key())?;
        }
        for condition in &alternative.conditions {
            fields.serialize_entry(condition.field(*kind), &condition.written)?;
        }
        if !alternative.unsupported.is_empty() {
            fields.serialize_entry("unsupported", &alternative.unsupported)?;
        }
        fields.end()
    }
}
