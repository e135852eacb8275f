//! What is proven of the CA service and its client: both are real and speak over TLS; the API server is imitated.

mod client;
mod refusals;
mod rotation;
mod server;
