//! One line of the log, as ztunnel lays it out: tab-separated heading and `key=value` fields, or one JSON object.
//!
//! The log proper and the access log share it, so that one stream has one format.

use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::Level;

use super::logging::LogFormat;

/// Builds one line at the end of a string.
pub(super) struct Line<'a> {
    out: &'a mut String,
    format: LogFormat,
    first: bool,
}

impl<'a> Line<'a> {
    /// Begins a line. `target` is what the level is set by: `access`, or a module's path.
    pub(super) fn new(
        out: &'a mut String,
        format: LogFormat,
        time: SystemTime,
        level: Level,
        target: &str,
        message: &str,
    ) -> Self {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut line = Self { out, format, first: true };
        match format {
            LogFormat::Text => {
                line.timestamp(time);
                line.push(format_args!("\t{level}\t{target}\t"));
                line.out.extend(message.chars().flat_map(visible));
            }
            LogFormat::Json => {
                line.out.push_str("{\"level\":\"");
                line.out.push_str(level);
                line.out.push_str("\",\"time\":\"");
                line.timestamp(time);
                line.out.push_str("\",\"scope\":");
                line.json_string(target);
                line.out.push_str(",\"message\":");
                line.json_string(message);
            }
        }
        line
    }

    /// A field whose value is text: quoted.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.format {
            LogFormat::Text => self.push(format_args!("{value:?}")),
            LogFormat::Json => self.json_string(value),
        }
    }

    /// [`text`](Self::text), where there is one.
    pub(super) fn optional_text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.text(key, value);
        }
    }

    /// A field whose value prints as one word: an address, an identity. Quoted only should it not be one after all.
    pub(super) fn word(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        let start = self.out.len();
        self.push(format_args!("{value}"));
        let is_word = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '"' | '\\' | '=');
        let printed = self.out.get(start..).unwrap_or_default();
        if self.format == LogFormat::Json || printed.is_empty() || !printed.chars().all(is_word) {
            let printed = self.out.split_off(start);
            match self.format {
                LogFormat::Text => self.push(format_args!("{printed:?}")),
                LogFormat::Json => self.json_string(&printed),
            }
        }
    }

    /// A field whose value is a number or a truth value.
    pub(super) fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        self.push(format_args!("{value}"));
    }

    /// Ends the line.
    pub(super) fn end(self) {
        self.out.push_str(match self.format {
            LogFormat::Text => "\n",
            LogFormat::Json => "}\n",
        });
    }

    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Text => {
                self.out.push(if self.first { '\t' } else { ' ' });
                self.out.push_str(key);
                self.out.push('=');
            }
            LogFormat::Json => {
                self.out.push(',');
                self.json_string(key);
                self.out.push(':');
            }
        }
        self.first = false;
    }

    fn push(&mut self, arguments: fmt::Arguments<'_>) {
        // A `Display` that fails leaves what it wrote; a string takes everything.
        let _ = self.out.write_fmt(arguments);
    }

    fn json_string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                c if c.is_control() => self.push(format_args!("\\u{:04x}", u32::from(c))),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn timestamp(&mut self, time: SystemTime) {
        timestamp(self.out, time);
    }
}

/// RFC 3339 with microseconds, UTC.
pub(super) fn timestamp(out: &mut String, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    // A string takes everything.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
}

/// A message may carry what a peer or a file said: it must not look like two lines.
fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control();
    escaped.then(|| c.escape_default()).into_iter().flatten().chain((!escaped).then_some(c))
}

/// The Gregorian date `days` after 1970-01-01, counting years from March so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}
