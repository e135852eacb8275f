//! One object of any kind that Culvert reads.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::networking::{DestinationRule, ServiceEntry, VirtualService, WorkloadEntry};
use crate::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::{GRPCRoute, Gateway, HTTPRoute, ReferenceGrant, TCPRoute, TLSRoute};

macro_rules! kinds {
    ($($kind:ident { $versions:pat, namespaced: $namespaced:literal }),* $(,)?) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "a Kubernetes kind says what it is")]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// Its name, as in `kind:`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),* }
            }

            /// Whether its objects live in a namespace.
            pub fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced),* }
            }

            /// The kind of `apiVersion` and `kind`; every version that Kubernetes or Istio has served is read, since
            /// all of one kind have the same fields.
            pub fn of(api_version: &str, kind: &str) -> Option<Self> {
                match (kind, api_version) {
                    $((stringify!($kind), $versions) => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }

        /// An object.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "a Kubernetes kind says what it is")]
        pub enum Object { $($kind(Box<$kind>)),* }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),* }
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => &mut object.metadata),* }
            }

            fn parse(kind: Kind, value: Value, unknown: &mut Vec<UnknownField>) -> Result<Self, WrongType> {
                Ok(match kind { $(Kind::$kind => Self::$kind(parse(value, unknown)?)),* })
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*
    };
}

kinds! {
    Namespace { "v1", namespaced: false },
    Node { "v1", namespaced: false },
    ConfigMap { "v1", namespaced: true },
    Gateway { "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", namespaced: true },
    Pod { "v1", namespaced: true },
    Service { "v1", namespaced: true },
    EndpointSlice { "discovery.k8s.io/v1", namespaced: true },
    ServiceEntry {
        "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3", namespaced: true
    },
    WorkloadEntry {
        "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3", namespaced: true
    },
    AuthorizationPolicy { "security.istio.io/v1" | "security.istio.io/v1beta1", namespaced: true },
    PeerAuthentication { "security.istio.io/v1" | "security.istio.io/v1beta1", namespaced: true },
    RequestAuthentication { "security.istio.io/v1" | "security.istio.io/v1beta1", namespaced: true },
    VirtualService {
        "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3", namespaced: true
    },
    DestinationRule {
        "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3", namespaced: true
    },
    HTTPRoute { "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", namespaced: true },
    GRPCRoute { "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha2", namespaced: true },
    TCPRoute { "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha2", namespaced: true },
    TLSRoute {
        "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha3" | "gateway.networking.k8s.io/v1alpha2",
        namespaced: true
    },
    ReferenceGrant { "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", namespaced: true },
}

impl Kind {
    /// Whether only waypoints read it: it says how requests are routed, which nodes do not see.
    pub fn is_of_waypoints(self) -> bool {
        matches!(
            self,
            Self::VirtualService
                | Self::DestinationRule
                | Self::RequestAuthentication
                | Self::HTTPRoute
                | Self::GRPCRoute
                | Self::TCPRoute
                | Self::TLSRoute
                | Self::ReferenceGrant
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What names an object: one of its kind, in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// The object `name` of `kind` in `namespace`, which is empty for kinds that have none.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    /// `Pod shop/cart`, `Node n1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// A field that nothing reads: a spelling mistake, or newer than this version of Culvert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnknownField {
    /// Where: `spec.rules[0].from[0].sourc`.
    pub path: String,
}

/// Why a value is not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Not a mapping.
    #[error("an object starts with apiVersion, kind and metadata; this is {0}")]
    NotAnObject(&'static str),
    /// `apiVersion`, `kind` or `metadata.name` is not there, or not a string.
    #[error("{0} is missing or not a string")]
    Missing(&'static str),
    /// A kind that Culvert does not read.
    #[error("Culvert does not read {kind} of {api_version}: check the spelling of kind and apiVersion, or remove it")]
    UnknownKind {
        /// `apiVersion`, shortened.
        api_version: String,
        /// `kind`, shortened.
        kind: String,
    },
    /// A name that Kubernetes would refuse.
    #[error("{field} {value:?} is not a name: lower-case letters, digits, '-' and '.', at most 253")]
    BadName {
        /// `metadata.name` or `metadata.namespace`.
        field: &'static str,
        /// What was there, shortened.
        value: String,
    },
    /// A field holds what it cannot hold.
    #[error("{path}: {message}")]
    Field {
        /// Where: `spec.rules[0].from`.
        path: String,
        /// What is wrong.
        message: String,
    },
}

impl ObjectError {
    /// The field that is wrong: `spec.rules[0].from`; empty for the object as a whole.
    pub fn path(&self) -> &str {
        match self {
            Self::NotAnObject(_) => "",
            Self::Missing(field) | Self::BadName { field, .. } => field,
            Self::UnknownKind { .. } => "kind",
            Self::Field { path, .. } => path,
        }
    }
}

impl Object {
    /// Reads an object, and says which of its fields nothing reads.
    ///
    /// A namespaced object without a namespace is in `default`, as kubectl has it.
    ///
    /// # Errors
    /// When it is of no kind that Culvert reads, has no usable name, or a field is of the wrong type.
    pub fn from_value(value: Value) -> Result<(Self, Vec<UnknownField>), ObjectError> {
        let Value::Object(mut fields) = value else {
            return Err(ObjectError::NotAnObject(match value {
                Value::Null => "nothing",
                Value::Bool(_) => "a boolean",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                Value::Array(_) | Value::Object(_) => "a list",
            }));
        };
        // Taken out, so that any served version is read as the one that the type was written for.
        let mut take = |field| match fields.remove(field) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(ObjectError::Missing(field)),
        };
        let (api_version, kind) = (take("apiVersion")?, take("kind")?);
        let Some(kind) = Kind::of(&api_version, &kind) else {
            return Err(ObjectError::UnknownKind { api_version: shorten(&api_version), kind: shorten(&kind) });
        };

        let mut unknown = Vec::new();
        let mut object = Self::parse(kind, Value::Object(fields), &mut unknown)
            .map_err(|WrongType { path, message }| ObjectError::Field { path, message })?;

        let unread = || unknown.iter().map(|field| field.path.clone()).collect();
        match &mut object {
            Self::AuthorizationPolicy(policy) => policy.spec.unknown_fields = unread(),
            Self::RequestAuthentication(object) => object.spec.unknown_fields = unread(),
            _ => {}
        }
        let meta = object.metadata_mut();
        let name = meta.name.as_deref().ok_or(ObjectError::Missing("metadata.name"))?;
        check_name("metadata.name", name)?;
        if kind.is_namespaced() {
            check_name("metadata.namespace", meta.namespace.get_or_insert_with(|| "default".to_owned()))?;
        } else {
            meta.namespace = None;
        }
        Ok((object, unknown))
    }

    /// What names the object.
    pub fn reference(&self) -> ObjectRef {
        let meta = self.metadata();
        ObjectRef::new(
            self.kind(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

struct WrongType {
    path: String,
    message: String,
}

fn parse<T: DeserializeOwned>(value: Value, unknown: &mut Vec<UnknownField>) -> Result<Box<T>, WrongType> {
    let mut object = None;
    read(value, unknown, &mut |deserializer| {
        object = Some(erased_serde::deserialize::<T>(deserializer)?);
        Ok(())
    })?;
    object.map(Box::new).ok_or_else(|| WrongType { path: String::new(), message: "nothing was read".to_owned() })
}

/// Has `take` read `value`, and notes what it leaves unread, and where it fails. Not generic, and neither is what it
/// hands over: what notes all that would otherwise be compiled anew for every type that objects are made of.
fn read(
    value: Value,
    unknown: &mut Vec<UnknownField>,
    take: &mut dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error>,
) -> Result<(), WrongType> {
    let mut track = serde_path_to_error::Track::new();
    let typed = serde_path_to_error::Deserializer::new(value, &mut track);
    let mut report = |path: serde_ignored::Path<'_>| unknown.push(UnknownField { path: render(&path) });
    let noting = serde_ignored::Deserializer::new(typed, &mut report);
    take(&mut <dyn erased_serde::Deserializer<'_>>::erase(noting))
        .map_err(|error| WrongType { path: track.path().to_string(), message: shorten(&error.to_string()) })
}

fn render(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => match render(parent) {
            parent if parent.is_empty() => shorten(key),
            parent => format!("{parent}.{}", shorten(key)),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => render(parent),
    }
}

fn check_name(field: &'static str, name: &str) -> Result<(), ObjectError> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = name.as_bytes();
    match bytes.len() <= 253 && bytes.iter().all(|&b| known(b)) && ends(bytes.first()) && ends(bytes.last()) {
        true => Ok(()),
        false => Err(ObjectError::BadName { field, value: shorten(name) }),
    }
}

/// What is quoted from a file is bounded: messages are lines.
fn shorten(text: &str) -> String {
    const MAX: usize = 200;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
