//! Whatever a file holds is read within its bounds, what is wrong is said in clean lines, and the mesh takes the rest in
//! and lets it go again.

#![no_main]

use std::collections::HashSet;
use std::fmt::Display;

use culvert_api::yaml;
use culvert_core::mesh::{Change, Mesh};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let parsed = yaml::parse(input);
    assert!(parsed.mistakes.len() <= 100);
    for mistake in &parsed.mistakes {
        assert!(mistake.place.line >= 1 && mistake.place.column >= 1, "{mistake:?}");
        assert_clean(mistake);
    }
    let mut references = HashSet::new();
    for (object, place) in &parsed.objects {
        assert!(place.line >= 1 && references.insert(object.reference()));
    }
    let mut mesh = Mesh::new();
    for finding in mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object))) {
        assert_clean(&finding);
    }
    mesh.apply(references.into_iter().map(Change::Remove));
    let after = mesh.snapshot();
    let left = after.workloads().len() + after.services().len() + after.authorization_policies().len();
    assert_eq!((left, after.findings().count()), (0, 0), "something outlives its object");
});

fn assert_clean(line: &impl Display) {
    let text = line.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 8 << 10, "{} bytes in one line", text.len());
}
