//! An HBONE client that is not ours.
