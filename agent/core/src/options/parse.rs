//! Reading the options.

use culvert_api::ObjectRef;

use super::MeshOptions;
use crate::translate::Finding;

/// To come.
pub fn parse(_text: &str, _object: &ObjectRef, _findings: &mut Vec<Finding>) -> Option<MeshOptions> {
    Some(MeshOptions::default())
}
