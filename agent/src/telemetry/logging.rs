//! The log: its format and its level, also while running.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::line::Line;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" | "plain" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("LOG_FORMAT: {other:?} is not a format; use text or json")),
        }
    }
}

/// What is wrong with the levels that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// They cannot be read.
    #[error("{0:?} is no log level; use off, error, warn, info, debug or trace, or target:level,target:level")]
    Unreadable(String),
    /// They cannot be set.
    #[error("the log level cannot be set: {0}")]
    Unsettable(String),
}

/// Changes the level of the log while running. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LogHandle(Arc<reload::Handle<EnvFilter, Registry>>);

/// Begins logging to the standard output at `level` (`info`, or `info,access:off`), in `format`.
///
/// # Errors
/// When `level` cannot be read, or logging has already begun.
pub fn init(format: LogFormat, level: &str) -> Result<LogHandle, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = tracing_subscriber::fmt::layer().event_format(Lines(format)).with_writer(io::stdout);
    let lines = lines.with_filter(filter_fn(|metadata| !is_said_elsewhere(metadata)));
    let begun = tracing_subscriber::registry().with(filter).with(lines).try_init();
    begun.map_err(|e| LevelError::Unsettable(e.to_string()))?;
    Ok(LogHandle(Arc::new(handle)))
}

impl LogHandle {
    /// A handle of a log that nobody sees, at level `info`: for tests.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let (filter, handle) = reload::Layer::new(EnvFilter::new("info"));
        // The handle works for as long as its layer lives.
        std::mem::forget(filter);
        Self(Arc::new(handle))
    }

    /// The levels in force.
    pub fn level(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_else(|_| "off".to_owned())
    }

    /// Sets the levels: one for everything, or `target:level` pairs, which are added to those in force.
    ///
    /// # Errors
    /// When `level` cannot be read; the levels in force stay.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let asked = parse(level)?;
        let sets_everything = level.split(',').any(|part| part.parse::<tracing::level_filters::LevelFilter>().is_ok());
        let filter = if sets_everything { asked } else { parse(&format!("{},{level}", self.level()))? };
        self.0.reload(filter).map_err(|e| LevelError::Unsettable(e.to_string()))
    }
}

/// Whether an event is another's account of what the agent tells itself: the Kubernetes client calls every failed request
/// an error, also each attempt while the API server is away, which its callers tell once; and an answer that is no JSON,
/// as for API groups that are not installed, a warning.
fn is_said_elsewhere(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::WARN && metadata.target().starts_with("kube_client")
}

/// Reads levels; `target:level`, as Istio's tools write it, is the same as `target=level`.
fn parse(level: &str) -> Result<EnvFilter, LevelError> {
    let unreadable = || LevelError::Unreadable(level.chars().take(128).collect());
    let directives: Vec<String> = level.split(',').map(|part| directive(part.trim())).collect();
    // The parser takes any lone word for a target at trace level: a misspelt level would flood the log.
    let is_explicit = |directive: &String| {
        directive.contains('=') || directive.parse::<tracing::level_filters::LevelFilter>().is_ok()
    };
    if !directives.iter().all(is_explicit) {
        return Err(unreadable());
    }
    EnvFilter::builder().parse(directives.join(",")).map_err(|_| unreadable())
}

fn directive(text: &str) -> String {
    match text.rsplit_once(':') {
        // `a::b` is a path, not a target and its level.
        Some((target, level)) if !target.ends_with(':') && !level.is_empty() => format!("{target}={level}"),
        _ => text.to_owned(),
    }
}

/// Formats events as [`Line`]s. Spans are not used.
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = Message(String::new());
        event.record(&mut message);
        let metadata = event.metadata();
        let mut text = String::new();
        let now = SystemTime::now();
        let mut line = Line::new(&mut text, self.0, now, *metadata.level(), metadata.target(), &message.0);
        event.record(&mut Fields(&mut line));
        line.end();
        writer.write_str(&text)
    }
}

const MESSAGE: &str = "message";

/// Picks the message out of an event's fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.0 = format!("{value:?}");
        }
    }
}

/// Adds the other fields to a line.
struct Fields<'a, 'b>(&'a mut Line<'b>);

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE {
            self.0.text(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.number(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.number(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.number(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != MESSAGE {
            self.0.word(field.name(), format_args!("{value:?}"));
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// What is logged while `act` runs, and the handle of the level.
    pub(in crate::telemetry) fn logged(format: LogFormat, level: &str, act: impl FnOnce(&LogHandle)) -> String {
        let (filter, handle) = reload::Layer::new(parse(level).unwrap());
        let written = super::super::tests::Written::default();
        let to = written.clone();
        let lines = tracing_subscriber::fmt::layer().event_format(Lines(format)).with_writer(move || to.clone());
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        tracing::subscriber::with_default(subscriber, || act(&LogHandle(Arc::new(handle))));
        written.text()
    }
}
