//! The response flags of requests in access logs and metrics: why one did not go well, in Envoy's letters.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// Why a request did not go well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

/// The letters, in the order in which Envoy writes them.
const LETTERS: [(&str, Flags); 17] = [
    ("UH", Flags::NO_HEALTHY_UPSTREAM),
    ("UT", Flags::UPSTREAM_TIMEOUT),
    ("LR", Flags::LOCAL_RESET),
    ("UR", Flags::UPSTREAM_REMOTE_RESET),
    ("UF", Flags::UPSTREAM_CONNECTION_FAILURE),
    ("UC", Flags::UPSTREAM_CONNECTION_TERMINATION),
    ("UO", Flags::UPSTREAM_OVERFLOW),
    ("NR", Flags::NO_ROUTE),
    ("DI", Flags::DELAY_INJECTED),
    ("FI", Flags::FAULT_INJECTED),
    ("RL", Flags::RATE_LIMITED),
    ("UAEX", Flags::UNAUTHORIZED_EXTERNAL),
    ("DC", Flags::DOWNSTREAM_TERMINATION),
    ("URX", Flags::RETRIES_EXCEEDED),
    ("DPE", Flags::DOWNSTREAM_PROTOCOL_ERROR),
    ("UPE", Flags::UPSTREAM_PROTOCOL_ERROR),
    ("NC", Flags::NO_CLUSTER),
];

impl Flags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// No endpoint may be chosen.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// The endpoint took too long.
    pub const UPSTREAM_TIMEOUT: Self = Self(1 << 1);
    /// This proxy broke it off.
    pub const LOCAL_RESET: Self = Self(1 << 2);
    /// The endpoint reset the stream.
    pub const UPSTREAM_REMOTE_RESET: Self = Self(1 << 3);
    /// No connection to the endpoint was made.
    pub const UPSTREAM_CONNECTION_FAILURE: Self = Self(1 << 4);
    /// The endpoint ended the connection.
    pub const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 5);
    /// A limit of the service is reached.
    pub const UPSTREAM_OVERFLOW: Self = Self(1 << 6);
    /// No route is for it.
    pub const NO_ROUTE: Self = Self(1 << 7);
    /// It was delayed on purpose.
    pub const DELAY_INJECTED: Self = Self(1 << 8);
    /// It failed on purpose.
    pub const FAULT_INJECTED: Self = Self(1 << 9);
    /// There were too many.
    pub const RATE_LIMITED: Self = Self(1 << 10);
    /// An external authorizer refused it.
    pub const UNAUTHORIZED_EXTERNAL: Self = Self(1 << 11);
    /// The client went away.
    pub const DOWNSTREAM_TERMINATION: Self = Self(1 << 12);
    /// It was tried as often as it may be.
    pub const RETRIES_EXCEEDED: Self = Self(1 << 13);
    /// The client sent what is no HTTP.
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 14);
    /// The endpoint sent what is no HTTP.
    pub const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 15);
    /// Its route goes to a service that is not there.
    pub const NO_CLUSTER: Self = Self(1 << 16);

    /// The flag of these letters; none where nobody knows them.
    pub fn parse(letters: &str) -> Self {
        LETTERS.iter().find(|(known, _)| *known == letters).map_or(Self::NONE, |(_, flag)| *flag)
    }

    /// Whether all of `other` are among them.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("-");
        }
        let mut separator = "";
        for (letters, _) in LETTERS.iter().filter(|(_, flag)| self.contains(*flag)) {
            write!(f, "{separator}{letters}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_envoy_writes_them() {
        assert_eq!(Flags::NONE.to_string(), "-");
        let both = Flags::RETRIES_EXCEEDED | Flags::UPSTREAM_CONNECTION_FAILURE;
        assert_eq!(both.to_string(), "UF,URX");
        assert!(both.contains(Flags::RETRIES_EXCEEDED) && !both.contains(Flags::NO_ROUTE));
    }

    #[test]
    fn each_flag_has_letters_of_its_own() {
        for (letters, flag) in LETTERS {
            assert_eq!((Flags::parse(letters), &*flag.to_string()), (flag, letters));
        }
        assert_eq!(Flags::parse("XX"), Flags::NONE);
    }
}
