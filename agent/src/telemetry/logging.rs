//! The log: its format and its level, also while running.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

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
#[error("{0:?} is no log level: {1}; use off, error, warn, info, debug or trace, or target:level,target:level")]
pub struct LevelError(String, String);

/// Changes the level of the log while running. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LogHandle(Arc<reload::Handle<EnvFilter, Registry>>);

/// Begins logging to the standard output at `level` (`info`, or `info,hbone:debug`), in `format`.
///
/// # Errors
/// When `level` cannot be read, or logging has already begun.
pub fn init(format: LogFormat, level: &str) -> Result<LogHandle, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let begun = match format {
        LogFormat::Text => registry.with(fmt::layer().with_ansi(false).with_writer(io::stdout)).try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(io::stdout)).try_init(),
    };
    begun.map_err(|e| LevelError(level.to_owned(), e.to_string()))?;
    Ok(LogHandle(Arc::new(handle)))
}

impl LogHandle {
    /// A handle that belongs to no log, for tests and tools.
    pub fn detached() -> Self {
        let (_, handle) = reload::Layer::new(EnvFilter::new("info"));
        Self(Arc::new(handle))
    }

    /// The levels in force.
    pub fn level(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_else(|_| "off".to_owned())
    }

    /// Sets the levels.
    ///
    /// # Errors
    /// When `level` cannot be read; the levels in force stay.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let filter = parse(level)?;
        self.0.reload(filter).map_err(|e| LevelError(level.to_owned(), e.to_string()))
    }
}

/// Accepts `target:level`, as Istio's tools write it, beside `target=level`.
fn parse(level: &str) -> Result<EnvFilter, LevelError> {
    let directives: Vec<String> = level.split(',').map(directive).collect();
    EnvFilter::builder().parse(directives.join(",")).map_err(|e| LevelError(level.to_owned(), e.to_string()))
}

fn directive(text: &str) -> String {
    let text = text.trim();
    match text.rsplit_once(':') {
        // `a::b` is a path, not a target and its level.
        Some((target, level)) if !target.ends_with(':') && !level.is_empty() => format!("{target}={level}"),
        _ => text.to_owned(),
    }
}
