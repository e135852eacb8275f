//! The TLS configurations of a workload.
