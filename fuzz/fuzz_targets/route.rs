//! Any VirtualService routes any request, and says why: what cannot be read is told in clean lines, and a destination is
//! one that the rule names.
//!
//! The first line is the request, `METHOD PATH NAME=VALUE…`; the rest is the `spec` in YAML.

#![no_main]

use std::sync::LazyLock;

use culvert_api::{Object, yaml};
use culvert_core::mesh::{Change, Mesh};
use culvert_core::simulate::{HttpRequest, Request, simulate};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (request, spec) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(spec) = yaml::value(spec) else { return };
    let metadata = json!({"name": "cart", "namespace": "shop"});
    let object =
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata, "spec": spec});
    let Ok((object, _)) = Object::from_value(object) else { return };
    let mut mesh = Mesh::new();
    mesh.apply(MESH.iter().cloned().chain([object]).map(Change::Upsert));
    let snapshot = mesh.snapshot();
    for (_, finding) in snapshot.findings() {
        assert!(!finding.message.is_empty() && !finding.message.contains(char::is_control), "{finding:?}");
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let headers =
        words.filter_map(|word| word.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let request = Request {
        from: "shop/front".to_owned(),
        to: "cart:80".to_owned(),
        plaintext: false,
        http: Some(HttpRequest { method: method.to_owned(), path: path.to_owned(), headers: headers.collect() }),
    };
    let Ok(report) = simulate(&snapshot, &request) else { return };
    let Some(route) = &report.route else { return };
    assert!(!route.reason.is_empty());
    assert_eq!(route.rule.is_some(), route.resource.is_some());
    if let Some(redirect) = &route.redirect {
        assert!(!redirect.location.contains(['\r', '\n', ' ']), "{redirect:?}");
    }
    if let Some(path) = route.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        assert!(path.starts_with('/'), "{path:?}");
    }
});

static MESH: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let text = include_str!("../mesh.yaml");
    yaml::parse(text.as_bytes()).objects.into_iter().map(|(object, _)| object).collect()
});
