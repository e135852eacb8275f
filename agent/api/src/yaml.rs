//! The objects of a YAML file, and each mistake in it with its place and the cure.
//!
//! A file may hold several documents, and a document a List. What is wrong with one document does not touch the
//! others. The parser is bounded: size, depth, nodes and aliases all have limits.

mod node;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde_json::Value;
use serde_yaml::options::DuplicateKeyPolicy;
use serde_yaml::{DefaultMessageFormatter, MessageFormatter, Spanned};

use self::node::Node;
use crate::object::{Kind, Object, ObjectError, ObjectRef};

/// The most bytes of a file: Kubernetes takes no object over 1.5 MiB, so this is several.
pub const MAX_BYTES: usize = 8 << 20;
/// The most values in one document.
const MAX_NODES: usize = 500_000;
/// The most levels of one document.
const MAX_DEPTH: usize = 32;
/// The most values that aliases of one document stand for.
const MAX_ALIASED: usize = 20_000;
/// The most characters of a file that a message repeats.
const MAX_MESSAGE: usize = 600;
/// The most mistakes reported of one file.
const MAX_MISTAKES: usize = 100;

/// A place in a file, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// How bad it is.
    pub gravity: Gravity,
    /// What is wrong, and the cure; one line.
    pub message: String,
    /// The object that it is about, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
}

/// How bad a mistake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// A field that nothing reads. The object is taken.
    UnknownField,
    /// An object that Culvert does not read, or that is there twice. It is left out.
    LeftOut,
    /// The file, or a document of it, cannot be read: what was there before should be kept.
    Broken,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Its objects, in order, each with the place where it starts.
    pub objects: Vec<(Object, Place)>,
    /// What is wrong.
    pub mistakes: Vec<Mistake>,
}

impl Parsed {
    /// Whether a document could not be read.
    pub fn is_broken(&self) -> bool {
        is_broken(&self.mistakes)
    }
}

/// Reads the objects of a file.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut objects = Vec::new();
    let mistakes = for_each(bytes, |object, place| objects.push((object, place)));
    Parsed { objects, mistakes }
}

/// Reads the objects of a file one by one, in order, each with the place where it starts; says what is wrong. Never
/// holds more than one document of the file.
pub fn for_each(bytes: &[u8], mut each: impl FnMut(Object, Place)) -> Vec<Mistake> {
    let mut reader = Reader { seen: HashSet::new(), mistakes: Vec::new(), each: &mut each };
    reader.read(bytes);
    reader.mistakes
}

/// Whether a document of a file with these mistakes could not be read.
pub fn is_broken(mistakes: &[Mistake]) -> bool {
    mistakes.iter().any(|mistake| mistake.gravity == Gravity::Broken)
}

/// Reads a file.
struct Reader<'a> {
    seen: HashSet<ObjectRef>,
    mistakes: Vec<Mistake>,
    each: &'a mut dyn FnMut(Object, Place),
}

impl Reader<'_> {
    fn read(&mut self, bytes: &[u8]) {
        if bytes.len() > MAX_BYTES {
            let size = format!("{} bytes are more than the limit of {MAX_BYTES}: split the file", bytes.len());
            return self.report(Place { line: 1, column: 1 }, Gravity::Broken, size);
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() as u64 + 1;
                let message = "not UTF-8 text: this is no YAML file";
                return self.report(Place { line, column: 1 }, Gravity::Broken, message);
            }
        };
        for document in documents(text) {
            match document.read() {
                Ok(Some(node)) => document.objects(&node, self),
                Ok(None) => {}
                Err(mistake) => self.report(mistake.place, mistake.gravity, mistake.message),
            }
        }
    }

    fn report(&mut self, place: Place, gravity: Gravity, message: impl Into<String>) {
        self.report_of(None, place, gravity, message);
    }

    fn report_of(&mut self, object: Option<ObjectRef>, place: Place, gravity: Gravity, message: impl Into<String>) {
        let mistake = Mistake { place, gravity, message: one_line(&message.into()), object };
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(mistake);
        } else if gravity == Gravity::Broken && !is_broken(&self.mistakes) {
            // However many there are, that the file is broken is not to be lost among them.
            self.mistakes.truncate(MAX_MISTAKES - 1);
            self.mistakes.push(mistake);
        }
    }
}

/// Reads one YAML value.
///
/// # Errors
/// When it is not YAML, or over a limit.
pub fn value(text: &str) -> Result<Value, Mistake> {
    let document = Document { text, lines_before: 0 };
    if text.len() > MAX_BYTES {
        let message = format!("{} bytes are more than the limit of {MAX_BYTES}", text.len());
        return Err(Mistake { place: Place { line: 1, column: 1 }, gravity: Gravity::Broken, message, object: None });
    }
    Ok(document.read()?.map_or(Value::Null, |node| node.value.to_json()))
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    lines_before: u64,
}

/// Splits at the lines that start with `---`, which YAML forbids inside of a document, so that a document is read
/// whatever is wrong with those before it.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && offset > start {
            documents.push(Document { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (offset, number as u64);
        }
        offset += line.len();
    }
    documents.push(Document { text: &text[start..], lines_before: start_line });
    documents
}

impl Document<'_> {
    /// `None` for a document that holds nothing.
    fn read(&self) -> Result<Option<Spanned<Node>>, Mistake> {
        let is_empty = |line: &str| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
        };
        if self.text.lines().all(is_empty) {
            return Ok(None);
        }
        let options = serde_yaml::options! {
            budget: serde_yaml::budget! {
                max_depth: MAX_DEPTH,
                flow_nesting_limit: MAX_DEPTH,
                max_nodes: MAX_NODES,
                max_events: MAX_NODES * 2,
                max_documents: 2,
            },
            alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: MAX_ALIASED },
            duplicate_keys: DuplicateKeyPolicy::Error,
            // As in YAML 1.2: `no` and `on` are strings.
            strict_booleans: true,
            emit_comments: false,
        };
        match serde_yaml::from_str_with_options::<Spanned<Node>>(self.text, options) {
            Ok(Spanned { value: Node::Null, .. }) => Ok(None),
            Ok(node) => Ok(Some(node)),
            Err(error) => Err(self.syntax(error.without_snippet())),
        }
    }

    fn syntax(&self, error: &serde_yaml::Error) -> Mistake {
        let location = error.location();
        let line = location.map_or(1, |location| location.line().max(1));
        let place = Place { line: line + self.lines_before, column: location.map_or(1, |l| l.column().max(1)) };
        let message = DefaultMessageFormatter.format_message(error);
        let message = one_line(message.lines().next().unwrap_or_default());
        // What follows is advice for programmers.
        let message = match message.split_once(", set DuplicateKeyPolicy") {
            Some((what, _)) => format!("{what}: remove one of them"),
            None => message,
        };
        let text = self.text.lines().nth(usize::try_from(line - 1).unwrap_or(usize::MAX)).unwrap_or_default();
        let indentation = &text[..text.len() - text.trim_start().len()];
        let cure = if indentation.contains('\t') { ": indent with spaces, YAML does not allow tabs" } else { "" };
        Mistake { place, gravity: Gravity::Broken, message: format!("{message}{cure}"), object: None }
    }

    /// Hands the objects of this document to `reader`.
    fn objects(&self, node: &Spanned<Node>, reader: &mut Reader<'_>) {
        let field = |name| node.value.field(name).and_then(|node| node.value.as_str());
        let list = field("kind").and_then(|kind| kind.strip_suffix("List"));
        let Some(items) = node.value.field("items").filter(|_| list.is_some()) else {
            return self.object(node, node.value.to_json(), reader);
        };
        let Node::Sequence(items) = &items.value else {
            return reader.report(self.place(items), Gravity::Broken, "items is not a list");
        };
        for item in items {
            let mut value = item.value.to_json();
            // The items of a typed list, PodList say, need not say what they are.
            if let (Value::Object(fields), Some(kind)) = (&mut value, list.filter(|kind| !kind.is_empty())) {
                fields.entry("kind").or_insert_with(|| kind.into());
                if let Some(version) = field("apiVersion") {
                    fields.entry("apiVersion").or_insert_with(|| version.into());
                }
            }
            self.object(item, value, reader);
        }
    }

    fn object(&self, node: &Spanned<Node>, value: Value, reader: &mut Reader<'_>) {
        let (what, named) = (describe(&value), named(&value));
        match Object::from_value(value) {
            Ok((object, unknown)) => {
                let reference = object.reference();
                for field in unknown {
                    let message = format!("{reference}: unknown field {}: it has no effect", field.path);
                    reader.report_of(
                        Some(reference.clone()),
                        self.place(node.value.find(&field.path).unwrap_or(node)),
                        Gravity::UnknownField,
                        message,
                    );
                }
                let place = self.place(node);
                if reader.seen.insert(reference.clone()) {
                    (reader.each)(object, place);
                } else {
                    let message =
                        format!("{reference} is in this file already: the first one counts, remove the other");
                    reader.report(place, Gravity::LeftOut, message);
                }
            }
            Err(error) => {
                let gravity = match error {
                    ObjectError::UnknownKind { .. } => Gravity::LeftOut,
                    _ => Gravity::Broken,
                };
                let place = self.place(node.value.find(error.path()).unwrap_or(node));
                reader.report_of(named, place, gravity, format!("{what}{error}"));
            }
        }
    }

    fn place(&self, node: &Spanned<Node>) -> Place {
        let location = node.referenced;
        Place { line: location.line().max(1) + self.lines_before, column: location.column().max(1) }
    }
}

/// What may hold pieces of the file, as one line that says what is there: quotes as they are, the invisible escaped.
fn one_line(text: &str) -> String {
    let visible = |c: char| {
        let is_visible = matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1;
        let escaped = (!is_visible).then(|| c.escape_debug());
        escaped.into_iter().flatten().chain(is_visible.then_some(c))
    };
    text.chars().take(MAX_MESSAGE).flat_map(visible).collect()
}

/// The object that a value would be.
fn named(value: &Value) -> Option<ObjectRef> {
    let text = |value: &Value| value.as_str().filter(|text| text.len() <= 253).map(str::to_owned);
    let kind = Kind::of(&text(&value["apiVersion"])?, &text(&value["kind"])?)?;
    let namespace = match kind.is_namespaced() {
        true => text(&value["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned()),
        false => String::new(),
    };
    Some(ObjectRef::new(kind, namespace, text(&value["metadata"]["name"])?))
}

/// `Pod shop/cart: `, as far as it can be told.
fn describe(value: &Value) -> String {
    let text = |value: &Value| value.as_str().map(|text| text.chars().take(100).collect::<String>());
    let (Some(kind), Some(name)) = (text(&value["kind"]), text(&value["metadata"]["name"])) else {
        return String::new();
    };
    match text(&value["metadata"]["namespace"]) {
        Some(namespace) => format!("{kind} {namespace}/{name}: "),
        None => format!("{kind} {name}: "),
    }
}
