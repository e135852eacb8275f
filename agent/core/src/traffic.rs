//! How a service is spoken to once it is known where a request goes: what DestinationRules say.
//!
//! | module | what it is for |
//! |---|---|
//! | [`policy`] | what a DestinationRule says, and which part of it is for a port; limits; TLS |
//! | [`balance`] | which endpoint a request goes to |
//! | [`hash`] | the same endpoint for the same key: rings, Maglev's tables, cookies |
//! | [`outliers`] | which endpoints are left out for a while |

pub mod balance;
pub mod hash;
mod locality;
pub mod outliers;
pub mod policy;
#[cfg(test)]
mod tests;
