//! Reading the options.

mod providers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::ObjectRef;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{AccessLogEncoding, MeshOptions, OutboundTrafficPolicy};
use crate::bypass::{self, MeshBypass};
use crate::policy::UnsupportedDeny;
use crate::route::normalize::PathNormalization;
use crate::translate::{Finding, Findings};

/// Fields of Istio's MeshConfig that say something about what Culvert does otherwise, or not at all.
const UNSUPPORTED: &[&str] = &[
    "caCertificates",
    "certificates",
    "configSources",
    "defaultConfig",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultProviders",
    "defaultServiceExportTo",
    "defaultTrafficPolicy",
    "defaultVirtualServiceExportTo",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "dnsRefreshRate",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "outboundClusterStatName",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "serviceEntryVisibility",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "tlsDefaults",
    "verifyCertificateAtClient",
];

/// Reads the options of `object`, and adds to `findings` what is wrong or has no effect. A field that cannot be read
/// has its default; `None` if nothing can be read.
pub fn parse(text: &str, object: &ObjectRef, findings: &mut Vec<Finding>) -> Option<MeshOptions> {
    let root = format!("data[{}]", super::KEY);
    let fields = match culvert_api::yaml::value(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(Value::Null) => Map::new(),
        Ok(_) => {
            findings.push(Finding::error(object.clone(), root, "not a mapping: the options stay as they were"));
            return None;
        }
        Err(mistake) => {
            let message = format!("{mistake}: the options stay as they were");
            findings.push(Finding::error(object.clone(), root, message));
            return None;
        }
    };
    let mut reader = Reader { object, findings, path: root, fields };
    let default = MeshOptions::default();

    let trust_domain = reader.name("trustDomain").unwrap_or(default.trust_domain);
    let trust_domain_aliases = reader.take::<Vec<Arc<str>>>("trustDomainAliases", "a list of names");
    let root_namespace = reader.name("rootNamespace").unwrap_or(default.root_namespace);
    let outbound = reader.mapping("outboundTrafficPolicy");
    let ext_authz = reader.take::<Vec<Value>>("extensionProviders", "a list of providers").unwrap_or_default();
    let ext_authz = providers::read(ext_authz, &mut reader);
    let connect_timeout = reader.duration("connectTimeout").unwrap_or(default.connect_timeout);
    let access_log_file = reader.take::<Arc<str>>("accessLogFile", "a path").filter(|file| !file.is_empty());
    let access_log_encoding =
        reader.choice("accessLogEncoding", &[("TEXT", AccessLogEncoding::Text), ("JSON", AccessLogEncoding::Json)]);
    if reader.fields.remove("accessLogFormat").is_some_and(|format| format != "") {
        reader.warn("accessLogFormat", "has no effect: the fields of the access log are fixed");
    }
    let normalization = reader.mapping("pathNormalization");
    let ours = reader.mapping("culvert");
    for field in UNSUPPORTED {
        if reader.fields.remove(*field).is_some() {
            reader.warn(field, "has no effect here");
        }
    }
    reader.finish();

    let mut reader = Reader { path: format!("{}.outboundTrafficPolicy", reader.path), fields: outbound, ..reader };
    let outbound_traffic_policy = reader.choice(
        "mode",
        &[("ALLOW_ANY", OutboundTrafficPolicy::AllowAny), ("REGISTRY_ONLY", OutboundTrafficPolicy::RegistryOnly)],
    );
    reader.finish();

    let path = format!("data[{}].pathNormalization", super::KEY);
    let mut reader = Reader { path, fields: normalization, ..reader };
    let path_normalization = reader.choice(
        "normalization",
        &[
            ("DEFAULT", PathNormalization::Base),
            ("NONE", PathNormalization::None),
            ("BASE", PathNormalization::Base),
            ("MERGE_SLASHES", PathNormalization::MergeSlashes),
            ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
        ],
    );
    reader.finish();

    let path = format!("data[{}].culvert", super::KEY);
    let mut reader = Reader { path, fields: ours, ..reader };
    let l4_unsupported_deny =
        reader.choice("l4-unsupported-deny", &[("deny", UnsupportedDeny::Deny), ("ignore", UnsupportedDeny::Ignore)]);
    let cluster_domain = reader.name("cluster-domain").unwrap_or(default.cluster_domain);
    let cluster = reader.name("cluster").unwrap_or(default.cluster);
    let network = reader.take::<Arc<str>>("network", "a name").unwrap_or(default.network);
    let dns_capture = reader.take::<bool>("dns-capture", "true or false").unwrap_or(default.dns_capture);
    let bypass = reader.mapping("outboundBypass");
    reader.finish();

    let path = format!("{}.outboundBypass", reader.path);
    let mut reader = Reader { path, fields: bypass, ..reader };
    let outbound_bypass = reader.bypass();
    reader.finish();

    Some(MeshOptions {
        trust_domain,
        trust_domain_aliases: trust_domain_aliases.unwrap_or_default(),
        root_namespace,
        outbound_traffic_policy: outbound_traffic_policy.unwrap_or_default(),
        ext_authz,
        connect_timeout,
        access_log_file,
        access_log_encoding: access_log_encoding.unwrap_or_default(),
        path_normalization: path_normalization.unwrap_or_default(),
        l4_unsupported_deny: l4_unsupported_deny.unwrap_or_default(),
        cluster_domain,
        cluster,
        network,
        dns_capture,
        outbound_bypass,
    })
}

struct Reader<'a> {
    object: &'a ObjectRef,
    findings: &'a mut Vec<Finding>,
    path: String,
    fields: Map<String, Value>,
}

impl Reader<'_> {
    fn take<T: DeserializeOwned>(&mut self, field: &str, what: &str) -> Option<T> {
        let value = self.fields.remove(field).filter(|value| !value.is_null())?;
        let read = serde_json::from_value(value).ok();
        if read.is_none() {
            self.error(field, format!("not {what}: the default holds"));
        }
        read
    }

    /// A name that becomes part of identities or host names.
    fn name(&mut self, field: &str) -> Option<Arc<str>> {
        let name = self.take::<Arc<str>>(field, "a name").filter(|name| !name.is_empty())?;
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if name.len() <= 253 && name.bytes().all(is_name) {
            return Some(name);
        }
        self.error(field, "letters, digits, '.', '-' and '_' only, at most 253: the default holds");
        None
    }

    fn choice<T: Copy>(&mut self, field: &str, choices: &[(&str, T)]) -> Option<T> {
        let name = self.take::<String>(field, "a name")?;
        let chosen = choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        if chosen.is_none() {
            let known: Vec<_> = choices.iter().map(|(known, _)| *known).collect();
            let name: String = name.chars().take(100).collect();
            self.error(field, format!("{name:?} is none of {}: the default holds", known.join(", ")));
        }
        chosen
    }

    /// A duration as protobuf writes it: `1.5s`, `500ms`, `1h`.
    fn duration(&mut self, field: &str) -> Option<Duration> {
        const UNITS: [(&str, f64); 6] =
            [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let text = self.take::<String>(field, "a duration, such as 10s")?;
        let seconds = UNITS.iter().find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
            Some(number * factor)
        });
        let duration = seconds
            .filter(|seconds| (1e-3..=86_400.0).contains(seconds))
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        if duration.is_none() {
            self.error(field, "not a duration between 1ms and 24h, such as 10s: the default holds");
        }
        duration
    }

    /// Lists of networks, ports and namespaces; a port may be a number or text.
    fn bypass(&mut self) -> MeshBypass {
        let mut texts = |field: &str, what: &str| {
            let values: Vec<Value> = self.take(field, what).unwrap_or_default();
            let text = |value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (format!("{}.{field}", self.path), values.into_iter().map(text).collect::<Vec<String>>())
        };
        let (cidrs, cidr_texts) = texts("cidrs", "a list of addresses and networks");
        let (ports, port_texts) = texts("ports", "a list of ports");
        let (names, name_texts) = texts("namespaces", "a list of namespaces");
        let mut findings = Findings { object: self.object.clone(), list: self.findings };
        let networks = bypass::networks(cidr_texts.iter().map(|text| text.trim()), &cidrs, &mut findings);
        let ports = bypass::ports(port_texts.iter().map(|text| text.trim()), &ports, &mut findings);
        let mut namespaces = BTreeSet::new();
        for text in name_texts.iter().take(bypass::MAX_RULES) {
            // As Kubernetes names namespaces (RFC 1123 labels).
            let is_label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if (1..=63).contains(&text.len()) && text.bytes().all(is_label) {
                namespaces.insert(text.as_str().into());
            } else {
                let text: String = text.chars().take(100).collect();
                findings.error(names.clone(), format!("{text:?} is no namespace: ignored, and captured"));
            }
        }
        if name_texts.len() > bypass::MAX_RULES {
            findings.error(names, format!("more than {}: the rest is ignored, and captured", bypass::MAX_RULES));
        }
        MeshBypass::new(networks, ports, namespaces)
    }

    fn mapping(&mut self, field: &str) -> Map<String, Value> {
        self.take(field, "a mapping").unwrap_or_default()
    }

    /// What nobody has asked for is unknown.
    fn finish(&mut self) {
        for field in std::mem::take(&mut self.fields).into_iter().map(|(field, _)| field).take(100) {
            let field: String = field.chars().take(100).collect();
            self.warn(&field, "unknown option: it has no effect");
        }
    }

    fn error(&mut self, field: &str, message: impl Into<String>) {
        self.findings.push(Finding::error(self.object.clone(), format!("{}.{field}", self.path), message));
    }

    fn warn(&mut self, field: &str, message: impl Into<String>) {
        self.findings.push(Finding::warning(self.object.clone(), format!("{}.{field}", self.path), message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<MeshOptions>, Vec<String>) {
        let mut findings = Vec::new();
        let options = parse(text, &crate::options::config_map("culvert"), &mut findings);
        (options, findings.into_iter().map(|finding| finding.field).collect())
    }

    #[test]
    fn istios_names_and_ours_are_read() {
        let (options, findings) = read(
            "trustDomain: td\ntrustDomainAliases: [old]\nrootNamespace: root\n\
             outboundTrafficPolicy: {mode: REGISTRY_ONLY}\nconnectTimeout: 1.5s\naccessLogFile: /dev/stdout\n\
             accessLogEncoding: JSON\npathNormalization: {normalization: MERGE_SLASHES}\nculvert: {l4-unsupported-deny: ignore, network: n, dns-capture: false}\n",
        );
        let options = options.unwrap();
        assert_eq!(findings, [""; 0]);
        assert_eq!((&*options.trust_domain, &*options.root_namespace, &*options.network), ("td", "root", "n"));
        assert_eq!(options.outbound_traffic_policy, OutboundTrafficPolicy::RegistryOnly);
        assert_eq!(options.connect_timeout, Duration::from_millis(1500));
        assert_eq!(options.access_log_encoding, AccessLogEncoding::Json);
        assert_eq!(options.l4_unsupported_deny, UnsupportedDeny::Ignore);
        assert_eq!(options.trust_domain_aliases, ["old".into()]);
        assert!(!options.dns_capture);
        assert_eq!(options.path_normalization, PathNormalization::MergeSlashes);
    }

    #[test]
    fn a_bad_value_has_the_default_and_is_reported() {
        for (text, field) in [
            ("trustDomain: [1]", "data[mesh].trustDomain"),
            ("trustDomain: a/b", "data[mesh].trustDomain"),
            ("connectTimeout: 0s", "data[mesh].connectTimeout"),
            ("connectTimeout: NaNs", "data[mesh].connectTimeout"),
            ("outboundTrafficPolicy: {mode: X}", "data[mesh].outboundTrafficPolicy.mode"),
            ("culvert: {l4-unsupported-deny: no}", "data[mesh].culvert.l4-unsupported-deny"),
            ("culvert: {dns-capture: 1}", "data[mesh].culvert.dns-capture"),
            ("pathNormalization: {normalization: SOME}", "data[mesh].pathNormalization.normalization"),
            ("culvert: 1", "data[mesh].culvert"),
        ] {
            let (options, findings) = read(text);
            assert_eq!((options, findings), (Some(MeshOptions::default()), vec![field.to_owned()]), "{text}");
        }
    }

    #[test]
    fn unknown_and_unsupported_options_are_reported() {
        let (_, findings) = read("trustDomian: x\nextensionProviders: [{name: x, zipkin: {}}]\nculvert: {a: 1}\n");
        assert_eq!(
            findings,
            ["data[mesh].extensionProviders[0].zipkin", "data[mesh].trustDomian", "data[mesh].culvert.a"]
        );
    }

    #[test]
    fn what_is_not_yaml_gives_no_options() {
        for text in ["a: [", "- a", "text"] {
            let (options, findings) = read(text);
            assert_eq!((options, findings.len()), (None, 1), "{text}");
        }
    }
}
