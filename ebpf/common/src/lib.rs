//! Map layouts and verdicts shared by Culvert's eBPF programs and its agent.
//!
//! Nothing here talks to the kernel: the programs read what they need from their context and ask [`verdict`].

#![cfg_attr(not(test), no_std)]

/// The mark of connections that are to be led to `lo`, in the pod's network namespace.
pub const STEERING_MARK: u32 = 0xc417;
