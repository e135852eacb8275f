//! Where a client keeps the tickets of its sessions.
