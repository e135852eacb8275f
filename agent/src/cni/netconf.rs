//! What the container runtime says, in environment and standard input, and how it is answered (CNI specification,
//! "Execution Protocol").

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use culvert_core::cni::member;
use culvert_core::enrolment::{EnablementSelector, EnrolmentRules};
use serde::Deserialize;
use serde_json::Value;

use super::protocol::Attachment;
use super::{SOCKET, STATE_DIR};

/// The versions of the specification that are spoken, the newest last.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The most that is read of standard input, in bytes.
pub(super) const MAX_INPUT: u64 = 1 << 20;
/// The most addresses of one pod.
const MAX_ADDRESSES: usize = 8;

/// An error as the specification has it: a code of its list, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub(super) struct CniError {
    pub(super) code: u32,
    pub(super) msg: String,
}

/// The codes of the specification.
pub(super) mod code {
    pub(in super::super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(in super::super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(in super::super) const IO: u32 = 5;
    pub(in super::super) const DECODE: u32 = 6;
    pub(in super::super) const INVALID_CONFIGURATION: u32 = 7;
    pub(in super::super) const TRY_AGAIN: u32 = 11;
    pub(in super::super) const NOT_AVAILABLE: u32 = 50;
    /// Ours: the pod cannot be in the mesh, and belongs there.
    pub(in super::super) const REFUSED: u32 = 100;
}

impl CniError {
    pub(super) fn new(code: u32, msg: impl Into<String>) -> Self {
        // Runtimes put it into one line of an Event.
        let msg: String = msg.into();
        let line: String = msg.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { code, msg: line.chars().take(1000).collect() }
    }

    /// The error's JSON.
    pub(super) fn to_json(&self, version: &str) -> String {
        let Self { code, msg } = self;
        serde_json::json!({ "cniVersion": version, "code": code, "msg": msg, "details": "" }).to_string()
    }
}

/// Our plugin's entry in the network configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NetConf {
    pub(super) cni_version: String,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// Where the agent keeps what the plugin needs when no agent runs.
    pub(super) state_dir: PathBuf,
    /// The plugin's own credentials for the API server.
    pub(super) kubeconfig: Option<PathBuf>,
    /// How long the agent may take over an ADD, in seconds.
    pub(super) timeout_seconds: u64,
    /// Pods of these namespaces start whatever happens.
    pub(super) exclude_namespaces: BTreeSet<Arc<str>>,
    /// Which labels ask for the mesh; `None` in the entry of an agent that did not write them there.
    enablement_selectors: Option<Vec<EnablementSelector>>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// The whole text.
    #[serde(skip)]
    text: String,
}

#[derive(Clone, Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

impl Default for NetConf {
    fn default() -> Self {
        Self {
            // What a configuration without one is, by the specification's oldest version.
            cni_version: "0.1.0".to_owned(),
            socket: SOCKET.into(),
            state_dir: STATE_DIR.into(),
            kubeconfig: None,
            timeout_seconds: 30,
            exclude_namespaces: BTreeSet::new(),
            enablement_selectors: None,
            prev_result: None,
            valid_attachments: None,
            text: String::new(),
        }
    }
}

impl NetConf {
    /// Reads standard input, so much of it as anyone could mean.
    pub(super) fn read(input: impl Read) -> Result<Self, CniError> {
        let mut bytes = Vec::new();
        let read = input.take(MAX_INPUT + 1).read_to_end(&mut bytes);
        read.map_err(|error| CniError::new(code::IO, format!("cannot read standard input: {error}")))?;
        if bytes.len() as u64 > MAX_INPUT {
            return Err(CniError::new(code::DECODE, "the network configuration is larger than 1 MiB"));
        }
        let decode = |error: &dyn std::fmt::Display| {
            CniError::new(code::DECODE, format!("the network configuration on standard input: {error}"))
        };
        let text = String::from_utf8(bytes).map_err(|error| decode(&error))?;
        let mut conf: Self = serde_json::from_str(&text).map_err(|error| decode(&error))?;
        conf.text = text;
        Ok(conf)
    }

    /// How pods are chosen, as far as the agent has written it here.
    pub(super) fn rules(&self) -> Option<EnrolmentRules> {
        let enablement_selectors = self.enablement_selectors.clone()?;
        Some(EnrolmentRules { exclude_namespaces: self.exclude_namespaces.clone(), enablement_selectors })
    }

    /// Refuses versions of the specification that are not spoken.
    pub(super) fn check_version(&self) -> Result<(), CniError> {
        if VERSIONS.contains(&self.cni_version.as_str()) {
            return Ok(());
        }
        let version: String = self.cni_version.chars().take(20).collect();
        let known = VERSIONS.join(", ");
        Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("cniVersion {version:?} is none of {known}: set one of them in the node's network configuration"),
        ))
    }

    /// The version in which to answer.
    pub(super) fn answer_version(&self) -> &str {
        if self.check_version().is_ok() { &self.cni_version } else { VERSIONS[VERSIONS.len() - 1] }
    }

    /// What the plugins before gave, as they wrote it.
    pub(super) fn previous_result(&self) -> Result<&str, CniError> {
        let text = self.prev_result.as_ref().and_then(|_| self.text.get(member(&self.text, "prevResult")?));
        text.ok_or_else(|| {
            CniError::new(
                code::INVALID_CONFIGURATION,
                "no prevResult: culvert-cni gives pods no network, it comes behind another plugin in `plugins`",
            )
        })
    }

    /// The addresses that the plugins before gave the pod.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let result = self.prev_result.as_ref();
        let interfaces = result.and_then(|result| result.get("interfaces")).and_then(Value::as_array);
        let ips = result.and_then(|result| result.get("ips")).and_then(Value::as_array);
        let inside = |ip: &&Value| {
            // Of an interface on the node's side: not the pod's.
            let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
            let interface = index.and_then(|index| interfaces?.get(index));
            let sandbox = interface.map(|interface| interface.get("sandbox").and_then(Value::as_str));
            sandbox.is_none_or(|sandbox| sandbox.is_some_and(|sandbox| !sandbox.is_empty()))
        };
        let address = |ip: &Value| {
            let text = ip.get("address")?.as_str()?;
            text.split('/').next()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
        };
        ips.into_iter().flatten().filter(inside).filter_map(address).take(MAX_ADDRESSES).collect()
    }

    /// The container IDs that are still in use, for GC. A list that is not there says nothing of any of them.
    pub(super) fn valid_containers(&self) -> Result<Vec<String>, CniError> {
        let valid = self.valid_attachments.as_ref().ok_or_else(|| {
            CniError::new(
                code::INVALID_CONFIGURATION,
                "no cni.dev/valid-attachments: GC needs the list of what is still in use, from a runtime that speaks \
                 cniVersion 1.1.0",
            )
        })?;
        Ok(valid.iter().map(|attachment| attachment.container_id.clone()).collect())
    }
}

/// The environment of one call.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment(BTreeMap<&'static str, String>);

impl Environment {
    const NAMES: [&'static str; 6] =
        ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

    /// The process's own, as `read` has it.
    pub(super) fn read(read: impl Fn(&str) -> Option<String>) -> Self {
        let named = Self::NAMES.into_iter().filter_map(|name| Some((name, read(name)?)));
        Self(named.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The value of a variable that has to be there.
    pub(super) fn required(&self, name: &'static str) -> Result<&str, CniError> {
        self.0.get(name).map(String::as_str).ok_or_else(|| {
            CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("{name} is not set: culvert-cni is a CNI plugin, which a container runtime calls"),
            )
        })
    }

    /// The attachment that this call is about; `None` where it is not a Kubernetes pod's.
    pub(super) fn attachment(&self, conf: &NetConf) -> Result<Option<Attachment>, CniError> {
        let invalid = |what: String| CniError::new(code::INVALID_ENVIRONMENT, what);
        let container_id = self.required("CNI_CONTAINERID")?;
        self.required("CNI_IFNAME")?;
        if !is_container_id(container_id) {
            let shown: String = container_id.chars().take(100).collect();
            return Err(invalid(format!(
                "CNI_CONTAINERID {shown:?} is not an ID: letters, digits, '_', '.' and '-', at most 128"
            )));
        }
        let args = self.0.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
        let arg = |key: &str| {
            let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned())
        };
        let (Some(namespace), Some(name)) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) else { return Ok(None) };
        let uid = arg("K8S_POD_UID");
        for (key, value) in
            [("K8S_POD_NAMESPACE", Some(&namespace)), ("K8S_POD_NAME", Some(&name)), ("K8S_POD_UID", uid.as_ref())]
        {
            if value.is_some_and(|value| !is_name(value)) {
                return Err(invalid(format!("CNI_ARGS: {key} is not a name of Kubernetes")));
            }
        }
        Ok(Some(Attachment {
            container_id: container_id.to_owned(),
            netns: self.0.get("CNI_NETNS").cloned(),
            namespace,
            name,
            uid,
            addresses: conf.addresses(),
        }))
    }
}

/// Whether the specification takes it for a container ID; it becomes a file's name.
pub(super) fn is_container_id(id: &str) -> bool {
    let is_first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    is_first && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_name(name: &str) -> bool {
    name.len() <= 253 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const POD: &[(&str, &str)] = &[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/cni-1"),
        ("CNI_IFNAME", "eth0"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1",
        ),
    ];

    fn conf(text: &str) -> NetConf {
        NetConf::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_pods_own_addresses_are_taken_from_the_result_before() {
        let text = r#"{"cniVersion":"1.0.0","prevResult": {"interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/n"}],
            "ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.9/24","interface":1},
                   {"address":"fd00::9/64","version":"6"},{"address":"x"},{}] }}"#;
        let conf = conf(text);
        let attachment = environment(POD).attachment(&conf).unwrap().unwrap();
        assert_eq!(attachment.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert_eq!(
            (&*attachment.namespace, &*attachment.name, attachment.uid.as_deref()),
            ("shop", "cart", Some("u1"))
        );
        assert!(conf.previous_result().unwrap().starts_with("{\"interfaces\":[{\"name\":\"br0\"}"));
    }

    #[test]
    fn what_is_missing_or_wrong_has_the_codes_of_the_specification() {
        let missing = |name: &str| {
            let pairs: Vec<_> = POD.iter().copied().filter(|(key, _)| *key != name).collect();
            environment(&pairs).attachment(&conf("{}"))
        };
        assert_eq!(missing("CNI_CONTAINERID").unwrap_err().code, 4);
        assert_eq!(missing("CNI_IFNAME").unwrap_err().code, 4);
        assert_eq!(missing("CNI_ARGS").unwrap(), None);
        assert_eq!(environment(&[]).required("CNI_COMMAND").unwrap_err().code, 4);
        for id in ["../x", "", "-a", "a/b", "a b"] {
            let pairs = [("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")];
            assert_eq!(environment(&pairs).attachment(&conf("{}")).unwrap_err().code, 4, "{id}");
        }
        let bad = [("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e"), ("CNI_ARGS", "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c")];
        assert_eq!(environment(&bad).attachment(&conf("{}")).unwrap_err().code, 4);
        assert_eq!(NetConf::read(&b"{"[..]).unwrap_err().code, 6);
        assert_eq!(NetConf::read(&b"\xff"[..]).unwrap_err().code, 6);
        assert_eq!(NetConf::read(std::io::repeat(b' ')).unwrap_err().code, 6);
        assert_eq!(conf("{}").check_version().unwrap_err().code, 1);
        assert_eq!(conf(r#"{"cniVersion":"2.0.0"}"#).check_version().unwrap_err().code, 1);
        assert_eq!(conf(r#"{"cniVersion":"1.1.0"}"#).previous_result().unwrap_err().code, 7);
        assert_eq!(conf(r#"{"cniVersion":"1.1.0"}"#).valid_containers().unwrap_err().code, 7);
        assert_eq!(conf(r#"{"cni.dev/valid-attachments":null}"#).valid_containers().unwrap_err().code, 7);
        assert_eq!(conf(r#"{"cni.dev/valid-attachments":[]}"#).valid_containers(), Ok(Vec::new()));
        for version in VERSIONS {
            let conf = conf(&format!(r#"{{"cniVersion":"{version}"}}"#));
            assert_eq!((conf.check_version(), conf.answer_version()), (Ok(()), version));
        }
    }

    #[test]
    fn an_error_is_one_line() {
        let error = CniError::new(11, format!("a\nb  {}", "x".repeat(5000)));
        assert!(error.msg.starts_with("a b x") && error.msg.len() <= 1000);
        let json: Value = serde_json::from_str(&error.to_json("1.0.0")).unwrap();
        assert_eq!((&json["code"], &json["cniVersion"]), (&11.into(), &"1.0.0".into()));
    }
}
