//! A running `culvert` of any role, and its endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::deadline::eventually;
use crate::http::{self, Response};
use crate::process::{Place, Process};

/// The default of `culvert` for its admin endpoint; those for metrics and readiness are 20 and 21 above it.
pub(crate) const PORT: u16 = 15000;
pub(crate) const METRICS: u16 = 20;
pub(crate) const READINESS: u16 = 21;
const ANSWER: Duration = Duration::from_secs(5);

/// A process of `culvert`; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    process: Process,
    log_file: Option<PathBuf>,
    place: Place,
    port: u16,
}

impl Daemon {
    /// Starts `command` in `place`, where its admin endpoint has this port. Its log goes to a file if there is one.
    pub(crate) fn spawn(
        name: &str,
        command: Command,
        place: Place,
        port: u16,
        log_file: Option<PathBuf>,
    ) -> Result<Self> {
        let process = match &log_file {
            Some(file) => Process::spawn_writing_to(name, command, file)?,
            None => Process::spawn(name, command)?,
        };
        Ok(Self { name: name.to_owned(), process, log_file, place, port })
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let ready = eventually(limit, &format!("{} to be ready", self.name), || {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(Err(status));
            }
            let answer = self.place.run(|| http::get(loopback(self.port + READINESS), "/healthz/ready", ANSWER));
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200)).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("{} ended before it was ready, {status}: {}", self.name, self.log()),
            Err(error) => Err(error.context(format!("the log of {}:\n{}", self.name, self.log()))),
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        match &self.log_file {
            Some(file) => std::fs::read_to_string(file).unwrap_or_default(),
            None => self.process.output(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `GET` of the admin interface.
    pub fn admin(&self, path: &str) -> Result<Response> {
        self.place.run(|| http::get(loopback(self.port), path, ANSWER))?
    }

    /// `POST` to the admin interface.
    pub fn admin_post(&self, path: &str) -> Result<Response> {
        self.place.run(|| http::request("POST", loopback(self.port), path, ANSWER))?
    }

    /// The metrics page.
    pub fn metrics(&self) -> Result<String> {
        Ok(self.place.run(|| http::get(loopback(self.port + METRICS), "/metrics", ANSWER))??.body)
    }

    /// The sum of a metric over the series that carry all of these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }

    /// Waits for a line of its log.
    pub fn wait_for_line(&mut self, limit: Duration, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        self.process.wait_for_line(limit, what, is_it)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }
}

/// A binary of this build: beside the program that is running, or one directory up from a test.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell which program this is")?;
    let found = this.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: cargo build -p {name}"))
}

/// The sum of a metric's series that carry all of these labels, in the Prometheus text format.
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let series = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let labels = format!(",{labels},");
        let has = |label: &String| labels.contains(&format!(",{label},"));
        wanted.iter().all(has).then(|| value.split(' ').next()?.parse::<f64>().ok())?
    });
    series.fold(0.0, |sum, value| sum + value)
}

pub(crate) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_labels() {
        let page = "# TYPE opened counter\nopened_total{a=\"1\",b=\"x\"} 2\nopened_total{a=\"1\",b=\"y, z\"} 3\n\
                    opened_total{a=\"2\",b=\"x\"} 5\nup 1\nopened_total_more 9\n";
        assert_eq!(sum(page, "opened_total", &[]), 10.0);
        assert_eq!(sum(page, "opened_total", &[("a", "1")]), 5.0);
        assert_eq!(sum(page, "opened_total", &[("a", "1"), ("b", "y, z")]), 3.0);
        assert_eq!(sum(page, "up", &[]), 1.0);
    }
}
