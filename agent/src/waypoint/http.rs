//! HTTP of clients: a server on each stream that carries it, and what becomes of each request.

pub mod reply;
