//! What a cluster or a node lacks for Culvert. Facts are read in one place and judged in others, which ask nothing.

pub(crate) mod cluster;
pub(crate) mod machine;
mod nodes;
mod platform;

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Culvert cannot be installed, or will not work.
    Error,
    /// Something does not work until it is changed.
    Warning,
    /// Good to know.
    Note,
}

/// One thing, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What is meant: `node n1`, `Cilium`.
    pub(crate) about: String,
    pub(crate) problem: String,
    /// What to do; empty where nothing needs to be done.
    pub(crate) cure: String,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level, about: about.into(), problem: problem.into(), cure: cure.into() }
    }

    fn error(about: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(Level::Error, about, problem, cure)
    }

    fn warning(about: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, problem, cure)
    }

    fn note(about: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(Level::Note, about, problem, cure)
    }
}

/// The oldest Linux whose `sk_lookup` programs are told the interface that a connection came in by.
pub(crate) const KERNEL: (u32, u32) = (5, 17);

/// What a kernel's release, `6.1.0-18-amd64`, tells of whether it will do.
#[derive(Debug, PartialEq, Eq)]
enum Kernel {
    Enough,
    /// Red Hat's: the version is old, and much newer features are in it.
    Unknown,
    TooOld,
}

fn kernel(release: &str) -> Kernel {
    let mut numbers = release.split(['.', '-', '+']).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL => Kernel::Enough,
        (Some(5), Some(14)) if release.contains(".el9") => Kernel::Unknown,
        _ => Kernel::TooOld,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_release() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Kernel::Enough),
            ("5.17.0", Kernel::Enough),
            ("10.0+", Kernel::Enough),
            ("5.15.0-1053-gke", Kernel::TooOld),
            ("4.18.0-513.el8.x86_64", Kernel::TooOld),
            ("5.14.0-427.el9.x86_64", Kernel::Unknown),
            ("unknown", Kernel::TooOld),
        ] {
            assert_eq!(kernel(release), expected, "{release}");
        }
    }
}
