//! Normalizing a path twice is normalizing it once, and leaves nothing that a server could read as another path.

#![no_main]

use culvert_core::route::normalize::{PathNormalization, normalize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(path) = std::str::from_utf8(input) else { return };
    for mode in [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes] {
        let Ok(once) = normalize(mode, path) else { continue };
        if path.split('?').next() == Some("*") {
            continue;
        }
        assert_eq!(normalize(mode, &once).as_deref(), Ok(&*once), "{path:?}");
        let alone = once.split('?').next().unwrap_or_default();
        assert!(alone.starts_with('/') && !alone.contains('\\'), "{path:?} {once:?}");
        assert!(!alone.split('/').any(|segment| segment == "." || segment == ".."), "{path:?} {once:?}");
        assert!(mode == PathNormalization::Base || !alone.contains("//"), "{path:?} {once:?}");
        assert_eq!(path.split_once('?').map(|(_, query)| query), once.split_once('?').map(|(_, query)| query));
    }
});
