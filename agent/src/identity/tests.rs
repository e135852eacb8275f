//! What is proven of certificates and handshakes.

mod handshake;
mod openssl;
mod renewal;
