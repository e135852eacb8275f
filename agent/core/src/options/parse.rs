//! To come.

use super::MeshOptions;
use crate::translate::Finding;

/// To come.
pub fn parse(_text: &str) -> (MeshOptions, Vec<Finding>) {
    (MeshOptions::default(), Vec::new())
}
