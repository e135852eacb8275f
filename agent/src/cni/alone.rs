//! What becomes of a pod when no agent answers: a pod of the mesh must not start, since it would start in clear; any
//! other may. Whose it is, the API server says, or else what the agent wrote down; what nobody knows does not start.

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_api::k8s_openapi::api::core::v1::{Namespace, Pod};
use culvert_core::enrolment::{EnrolmentRules, PodTraits, Why, eligibility};
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::netconf::{CniError, NetConf, code};
use super::protocol::Attachment;
use super::state::MeshCache;
use crate::cluster::{Cluster, root_cause};

/// How long the API server has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What the API server knows of a pod.
struct Facts {
    /// `None` for a pod that it does not have: a static one, say.
    pod: Option<Pod>,
    namespace: Option<Namespace>,
}

/// Whether the pod may start although no agent answers, which is what `silence` says.
///
/// # Errors
/// It may not; or nobody knows.
pub(super) fn decide(conf: &NetConf, attachment: &Attachment, silence: &str) -> Result<Why, CniError> {
    if conf.exclude_namespaces.contains(attachment.namespace.as_str()) {
        return Ok(Why::ExcludedNamespace);
    }
    let cache = MeshCache::load(&conf.state_dir);
    let rules = cache.as_ref().map(|cache| cache.rules.clone()).or_else(|| conf.rules());
    if rules.as_ref().unwrap_or(&EnrolmentRules::default()).excludes(&attachment.namespace) {
        return Ok(Why::ExcludedNamespace);
    }
    match ask(conf, attachment) {
        Ok(facts) => by_facts(rules.as_ref(), attachment, &facts, silence),
        Err(unknown) => by_cache(cache.as_ref(), attachment, silence, &unknown),
    }
}

fn by_facts(
    rules: Option<&EnrolmentRules>,
    attachment: &Attachment,
    facts: &Facts,
    silence: &str,
) -> Result<Why, CniError> {
    let Attachment { namespace, name, .. } = attachment;
    // Not by the usual labels: others may have been chosen.
    let Some(rules) = rules else {
        return by_cache(None, attachment, silence, "nobody has told the plugin which labels ask for the mesh");
    };
    let namespace_labels = facts.namespace.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref());
    let meta = facts.pod.as_ref().map(|pod| &pod.metadata);
    let annotations = meta.and_then(|meta| meta.annotations.as_ref());
    let labels = meta.and_then(|meta| meta.labels.as_ref());
    eligibility(rules, namespace, &namespace_labels, &labels, PodTraits::read(&annotations, false)).err().ok_or_else(
        || {
            CniError::new(
                code::TRY_AGAIN,
                format!(
                    "pod {namespace}/{name} belongs to the mesh, and {silence}: it would start in clear. It is tried \
                     again; see that the DaemonSet culvert-node runs on this node"
                ),
            )
        },
    )
}

fn by_cache(cache: Option<&MeshCache>, attachment: &Attachment, silence: &str, unknown: &str) -> Result<Why, CniError> {
    let Attachment { namespace, name, .. } = attachment;
    let refused = |why: &str| {
        CniError::new(
            code::TRY_AGAIN,
            format!(
                "{silence}, {unknown}, and {why}: pod {namespace}/{name} might start in clear. It is tried again; see \
                 that the DaemonSet culvert-node runs on this node"
            ),
        )
    };
    let Some(cache) = cache else { return Err(refused("no agent has written down which namespaces are in the mesh")) };
    let Some(labels) = cache.namespaces.get(namespace) else {
        return Err(refused("the namespace is not one that the agent knew"));
    };
    if cache.pods.contains(&format!("{namespace}/{name}")) {
        return Err(refused("the pod was in the mesh when the agent last ran"));
    }
    if cache.mixed.contains(namespace) {
        return Err(refused("other pods of its namespace were in the mesh by their own labels, which it may have too"));
    }
    let nobody: BTreeMap<String, String> = BTreeMap::new();
    match eligibility(&cache.rules, namespace, labels, &nobody, PodTraits::default()) {
        Err(why) => Ok(why),
        Ok(_) => Err(refused("the namespace was in the mesh when the agent last ran")),
    }
}

/// Asks the API server, with the plugin's own credentials.
fn ask(conf: &NetConf, attachment: &Attachment) -> Result<Facts, String> {
    let path = conf.kubeconfig.as_ref().ok_or("there are no credentials to ask the API server with")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the API server cannot be asked: {error}"))?;
    let asked = runtime.block_on(async {
        tokio::time::timeout(ANSWER, async {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let credentials = Kubeconfig::read_from(path).map_err(|error| root_cause(&error))?;
            let config = kube::Config::from_custom_kubeconfig(credentials, &KubeConfigOptions::default()).await;
            let cluster =
                Cluster::with(config.map_err(|error| root_cause(&error))?).map_err(|error| error.to_string())?;
            let pods: Api<Pod> = Api::namespaced(cluster.client(), &attachment.namespace);
            let namespaces: Api<Namespace> = Api::all(cluster.client());
            let asked = tokio::try_join!(pods.get_opt(&attachment.name), namespaces.get_opt(&attachment.namespace));
            asked.map(|(pod, namespace)| Facts { pod, namespace }).map_err(|error| root_cause(&error))
        })
        .await
    });
    match asked {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(error)) => Err(format!("the API server cannot be asked ({error})")),
        Err(_) => Err(format!("the API server does not answer within {} s", ANSWER.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: &str = "no agent answers";

    fn attachment(namespace: &str, name: &str) -> Attachment {
        Attachment {
            container_id: "c".to_owned(),
            netns: None,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            addresses: Vec::new(),
        }
    }

    fn labels(mode: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("istio.io/dataplane-mode".to_owned(), mode.to_owned())])
    }

    #[test]
    fn without_an_api_server_only_namespaces_known_to_be_outside_start() {
        let namespaces = BTreeMap::from([
            ("shop".to_owned(), labels("ambient")),
            ("out".to_owned(), BTreeMap::new()),
            ("kube-system".to_owned(), labels("ambient")),
            ("mixed".to_owned(), BTreeMap::new()),
        ]);
        let pods = ["out/labelled".to_owned()].into();
        let cache = MeshCache { namespaces, pods, mixed: ["mixed".to_owned()].into(), ..MeshCache::default() };
        let decide = |namespace: &str, name: &str| {
            by_cache(Some(&cache), &attachment(namespace, name), SILENCE, "the API server is away")
        };
        assert_eq!(decide("out", "a").unwrap(), Why::NotLabelled);
        assert_eq!(decide("kube-system", "a").unwrap(), Why::ExcludedNamespace);
        for (namespace, name, says) in [
            ("shop", "a", "was in the mesh"),
            ("unknown", "a", "not one that the agent knew"),
            ("out", "labelled", "the pod was in the mesh"),
            ("mixed", "another", "by their own labels"),
        ] {
            let error = decide(namespace, name).unwrap_err();
            assert!(error.msg.contains(says) && error.msg.contains("culvert-node"), "{error}");
            assert_eq!(error.code, code::TRY_AGAIN);
        }
        assert!(by_cache(None, &attachment("out", "a"), SILENCE, "x").is_err());
    }

    #[test]
    fn the_api_servers_labels_decide() {
        let decide = |pod: Option<BTreeMap<String, String>>, namespace: Option<BTreeMap<String, String>>| {
            let mut facts = Facts {
                pod: pod.as_ref().map(|_| Pod::default()),
                namespace: namespace.as_ref().map(|_| Namespace::default()),
            };
            if let Some(found) = &mut facts.pod {
                found.metadata.labels = pod;
            }
            if let Some(found) = &mut facts.namespace {
                found.metadata.labels = namespace;
            }
            by_facts(Some(&EnrolmentRules::default()), &attachment("shop", "a"), &facts, SILENCE)
        };
        assert_eq!(decide(Some(BTreeMap::new()), Some(BTreeMap::new())), Ok(Why::NotLabelled));
        assert_eq!(decide(Some(labels("none")), Some(labels("ambient"))), Ok(Why::OptedOut));
        assert!(decide(Some(BTreeMap::new()), Some(labels("ambient"))).is_err());
        assert!(decide(Some(labels("ambient")), Some(BTreeMap::new())).is_err());
        assert!(decide(None, Some(labels("ambient"))).is_err(), "a static pod of the namespace");
    }

    #[test]
    fn without_a_cache_the_selectors_of_the_configuration_decide_and_never_the_usual_ones() {
        let selectors = r#"[{"namespaceSelector":{"matchLabels":{"mesh":"yes"}}}]"#;
        let conf = format!(r#"{{"excludeNamespaces":["infra"],"enablementSelectors":{selectors}}}"#);
        let rules = NetConf::read(conf.as_bytes()).unwrap().rules();
        let decide = |rules: Option<&EnrolmentRules>, label: (&str, &str)| {
            let mut namespace = Namespace::default();
            namespace.metadata.labels = Some(BTreeMap::from([(label.0.to_owned(), label.1.to_owned())]));
            let facts = Facts { pod: Some(Pod::default()), namespace: Some(namespace) };
            by_facts(rules, &attachment("shop", "a"), &facts, SILENCE)
        };
        assert_eq!(decide(rules.as_ref(), ("mesh", "no")), Ok(Why::NotLabelled));
        assert_eq!(decide(rules.as_ref(), ("mesh", "yes")).unwrap_err().code, code::TRY_AGAIN);
        assert!(rules.is_some_and(|rules| rules.excludes("infra")));

        let older = NetConf::read(&br#"{"excludeNamespaces":["infra"]}"#[..]).unwrap().rules();
        let error = decide(older.as_ref(), ("mesh", "yes")).unwrap_err();
        assert!(error.code == code::TRY_AGAIN && error.msg.contains("which labels"), "{error}");
    }

    #[test]
    fn what_the_agent_writes_into_the_configuration_are_its_rules() {
        let selector = r#"[{"podSelector":{"matchLabels":{"mesh":"yes"}}}]"#;
        let rules = EnrolmentRules {
            exclude_namespaces: ["infra".into()].into(),
            enablement_selectors: serde_json::from_str(selector).unwrap(),
        };
        let paths = super::super::Paths {
            cni_bin_dir: "/b".into(),
            cni_conf_dir: "/c".into(),
            cni_socket: "/s".into(),
            state_dir: "/d".into(),
        };
        let entry = super::super::entry(&paths, &rules);
        assert_eq!(NetConf::read(entry.as_bytes()).unwrap().rules(), Some(rules));
    }

    #[test]
    fn an_excluded_namespace_starts_though_nothing_is_there_to_ask() {
        let conf = r#"{"cniVersion":"1.0.0","stateDir":"/nowhere","excludeNamespaces":["infra"]}"#;
        let conf = NetConf::read(conf.as_bytes()).unwrap();
        assert_eq!(decide(&conf, &attachment("infra", "a"), SILENCE), Ok(Why::ExcludedNamespace));
        assert_eq!(decide(&conf, &attachment("kube-system", "a"), SILENCE), Ok(Why::ExcludedNamespace));
        let error = decide(&conf, &attachment("shop", "a"), SILENCE).unwrap_err();
        assert!(error.msg.contains("no credentials") && !error.msg.contains('\n'), "{error}");
    }
}
