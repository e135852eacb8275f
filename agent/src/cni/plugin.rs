//! The plugin: one command of the CNI specification, then it ends.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use super::alone;
use super::netconf::{CniError, Environment, NetConf, VERSIONS, code};
use super::protocol::{self, Answer, Attachment, Command, Request};
use super::sandboxes::Records;
use super::state::MeshCache;

/// The longest that the agent may take to take a pod in, in seconds; a runtime gives up after two minutes or more.
const MAX_ADD_TIMEOUT: u64 = 100;
/// How long it may take for anything else.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a program called `argv0` is to be the plugin.
pub fn is_plugin(argv0: &std::ffi::OsStr) -> bool {
    std::path::Path::new(argv0).file_name().is_some_and(|name| name == culvert_core::cni::PLUGIN_TYPE)
}

/// Does what the container runtime asks in environment and standard input, and answers on standard output.
pub fn run() -> ExitCode {
    let environment = Environment::read(|name| std::env::var(name).ok());
    let (output, status) = call(&environment, io::stdin().lock());
    // Whoever does not read has gone.
    let _ = writeln!(io::stdout(), "{output}");
    ExitCode::from(status)
}

/// What is printed, and the exit status.
fn call(environment: &Environment, input: impl Read) -> (String, u8) {
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    match command(environment, input, &mut version) {
        Ok(output) => (output, 0),
        Err(error) => (error.to_json(&version), 1),
    }
}

fn command(environment: &Environment, input: impl Read, version: &mut String) -> Result<String, CniError> {
    let name = environment.required("CNI_COMMAND")?;
    if name == "VERSION" {
        let known = NetConf::read(input).ok().map(|conf| conf.answer_version().to_owned());
        let version = known.as_deref().unwrap_or(version.as_str());
        return Ok(serde_json::json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string());
    }
    let conf = NetConf::read(input)?;
    conf.answer_version().clone_into(version);
    conf.check_version()?;
    match name {
        "ADD" => {
            environment.required("CNI_NETNS")?;
            let result = conf.previous_result()?;
            // Not a Kubernetes pod: nobody's business.
            if let Some(attachment) = environment.attachment(&conf)? {
                add(&conf, attachment)?;
            }
            Ok(result.to_owned())
        }
        "CHECK" => {
            environment.required("CNI_NETNS")?;
            if let Some(attachment) = environment.attachment(&conf)? {
                check(&conf, attachment)?;
            }
            Ok(String::new())
        }
        "DEL" => {
            if let Some(attachment) = environment.attachment(&conf)? {
                forget(&conf, attachment);
            }
            Ok(String::new())
        }
        "GC" => {
            let valid = conf.valid_containers()?;
            if ask(&conf, Command::Gc { valid: valid.clone() }, TIMEOUT).is_err() {
                let struck = Records::new(&conf.state_dir).collect_garbage(&valid);
                struck.map_err(|error| CniError::new(code::IO, format!("{}: {error}", conf.state_dir.display())))?;
            }
            Ok(String::new())
        }
        "STATUS" => status(&conf).map(|()| String::new()),
        other => {
            let other: String = other.chars().take(40).collect();
            let known = "ADD, DEL, CHECK, GC, STATUS, VERSION";
            Err(CniError::new(code::INVALID_ENVIRONMENT, format!("CNI_COMMAND {other:?} is none of {known}")))
        }
    }
}

fn add(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    if attachment.addresses.is_empty() {
        return Err(CniError::new(
            code::INVALID_CONFIGURATION,
            "prevResult has no address of the pod: culvert-cni comes behind the plugin that gives pods their addresses",
        ));
    }
    let timeout = Duration::from_secs(conf.timeout_seconds.clamp(1, MAX_ADD_TIMEOUT));
    match ask(conf, Command::Add(attachment.clone()), timeout) {
        Ok(Answer::Enrolled | Answer::NotInMesh { .. }) => Ok(()),
        Ok(Answer::Done) => Err(CniError::new(
            code::REFUSED,
            "the agent does not say whether the pod is in the mesh: it is another version's than the plugin, and \
             installs its own in a moment",
        )),
        Ok(Answer::Refused { reason }) => Err(CniError::new(code::REFUSED, reason)),
        Ok(Answer::Invalid { reason }) => Err(CniError::new(code::INVALID_ENVIRONMENT, reason)),
        Err(silence) => alone::decide(conf, &attachment, &silence).map(|_| ()),
    }
}

fn check(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    match ask(conf, Command::Check(attachment.clone()), TIMEOUT) {
        Ok(Answer::Enrolled | Answer::NotInMesh { .. } | Answer::Done) => Ok(()),
        Ok(Answer::Refused { reason } | Answer::Invalid { reason }) => Err(CniError::new(code::REFUSED, reason)),
        Err(silence) => alone::decide(conf, &attachment, &silence).map(|_| ()),
    }
}

/// A sandbox must go whatever happens, or its pod could never be removed.
fn forget(conf: &NetConf, attachment: Attachment) {
    let id = attachment.container_id.clone();
    if ask(conf, Command::Del(attachment), TIMEOUT).is_err() {
        // The next agent would take it for a pod's.
        let _ = Records::new(&conf.state_dir).remove(&id);
    }
}

/// The node can take pods as long as someone can tell which may start.
fn status(conf: &NetConf) -> Result<(), CniError> {
    match ask(conf, Command::Status, TIMEOUT) {
        Ok(_) => Ok(()),
        Err(_) if MeshCache::load(&conf.state_dir).is_some() => Ok(()),
        Err(silence) => Err(CniError::new(
            code::NOT_AVAILABLE,
            format!("{silence}, and none has run here yet: see that the DaemonSet culvert-node runs on this node"),
        )),
    }
}

/// Asks the agent.
///
/// # Errors
/// In words, why there is no answer.
fn ask(conf: &NetConf, command: Command, timeout: Duration) -> Result<Answer, String> {
    let silent = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the agent does not answer within {} s", timeout.as_secs())
        }
        _ => format!("no agent answers at {} ({error})", conf.socket.display()),
    };
    let mut stream = UnixStream::connect(&conf.socket).map_err(silent)?;
    let limits = [stream.set_read_timeout(Some(timeout)), stream.set_write_timeout(Some(TIMEOUT))];
    limits.into_iter().collect::<io::Result<()>>().map_err(silent)?;
    protocol::write(&mut stream, &Request { version: protocol::VERSION, command }).map_err(silent)?;
    protocol::read(&mut stream).map_err(silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    const RESULT: &str = r#"{"ips":[{"address":"10.0.0.9/24"}],  "dns":{}}"#;

    struct Case {
        command: &'static str,
        namespace: &'static str,
        conf: String,
    }

    impl Case {
        fn new(command: &'static str, directory: &Path) -> Self {
            let (socket, state) = (directory.join("cni.sock"), directory.join("state"));
            let conf = format!(
                r#"{{"cniVersion":"1.0.0","name":"k","type":"culvert-cni","socket":"{}","stateDir":"{}","prevResult":{RESULT}}}"#,
                socket.display(),
                state.display()
            );
            Self { command, namespace: "shop", conf }
        }

        fn call(&self) -> (String, u8) {
            let args = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME=cart", self.namespace);
            let environment = Environment::read(|name| {
                let value = match name {
                    "CNI_COMMAND" => self.command,
                    "CNI_CONTAINERID" => "c1",
                    "CNI_NETNS" => "/proc/self/ns/net",
                    "CNI_IFNAME" => "eth0",
                    "CNI_ARGS" => args.as_str(),
                    _ => return None,
                };
                Some(value.to_owned())
            });
            call(&environment, self.conf.as_bytes())
        }

        fn error(&self) -> (u64, String) {
            let (output, status) = self.call();
            assert_eq!(status, 1, "{output}");
            let error: serde_json::Value = serde_json::from_str(&output).unwrap();
            (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
        }
    }

    /// An agent that gives one answer.
    fn agent(directory: &Path, answer: Option<Answer>) -> std::thread::JoinHandle<Command> {
        let socket: PathBuf = directory.join("cni.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request: Request = protocol::read(&mut stream).unwrap();
            if let Some(answer) = answer {
                protocol::write(&mut stream, &answer).unwrap();
            }
            request.command
        })
    }

    #[test]
    fn an_enrolled_pod_gets_the_result_of_the_plugins_before_as_it_was() {
        let directory = TempDir::new();
        let agent = agent(&directory, Some(Answer::Enrolled));
        assert_eq!(Case::new("ADD", &directory).call(), (RESULT.to_owned(), 0));
        let Command::Add(asked) = agent.join().unwrap() else { panic!("not an ADD") };
        assert_eq!((asked.container_id.as_str(), asked.netns.as_deref()), ("c1", Some("/proc/self/ns/net")));
        assert_eq!(asked.addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn a_refusal_of_the_agent_is_the_runtimes_error() {
        let directory = TempDir::new();
        let agent = agent(&directory, Some(Answer::Refused { reason: "no certificate".to_owned() }));
        assert_eq!(Case::new("ADD", &directory).error(), (100, "no certificate".to_owned()));
        agent.join().unwrap();
    }

    #[test]
    fn an_answer_that_says_nothing_of_the_pod_lets_nothing_start() {
        let directory = TempDir::new();
        let agent = agent(&directory, Some(Answer::Done));
        assert_eq!(Case::new("ADD", &directory).error().0, 100);
        agent.join().unwrap();
    }

    #[test]
    fn without_an_agent_pods_outside_start_and_others_do_not() {
        let directory = TempDir::new();
        let mut case = Case::new("ADD", &directory);
        let (code, msg) = case.error();
        assert!(code == 11 && msg.contains("shop/cart") && msg.contains("culvert-node"), "{msg}");
        case.namespace = "kube-system";
        assert_eq!(case.call(), (RESULT.to_owned(), 0));
        // One that hangs up without an answer is none.
        let gone = agent(&directory, None);
        case.namespace = "shop";
        assert_eq!(case.error().0, 11);
        gone.join().unwrap();
    }

    #[test]
    fn a_sandbox_always_goes() {
        let directory = TempDir::new();
        let case = Case::new("DEL", &directory);
        let records = Records::new(&directory.join("state"));
        let attachment = Attachment {
            container_id: "c1".to_owned(),
            netns: Some("/proc/self/ns/net".to_owned()),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: None,
            addresses: Vec::new(),
        };
        records.write(&attachment).unwrap();
        assert_eq!(case.call(), (String::new(), 0));
        assert_eq!(records.load(), []);
        let mut gc = Case::new("GC", &directory);
        let gone = Attachment { netns: Some("/nowhere".to_owned()), ..attachment };
        records.write(&gone).unwrap();
        let written = directory.join("state/sandboxes/c1.json");
        assert_eq!(gc.error().0, 7, "a list that is missing does not say that nothing is in use");
        assert!(written.exists());
        gc.conf = gc.conf.replace(
            "\"prevResult\"",
            r#""cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}],"prevResult""#,
        );
        assert_eq!(gc.call(), (String::new(), 0));
        assert!(!written.exists());
    }

    #[test]
    fn the_versions_are_told_to_anyone() {
        let directory = TempDir::new();
        let mut case = Case::new("VERSION", &directory);
        for (conf, version) in
            [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), (r#"{"cniVersion":"9"}"#, "1.1.0")]
        {
            case.conf = conf.to_owned();
            let (output, status) = case.call();
            let told: serde_json::Value = serde_json::from_str(&output).unwrap();
            assert_eq!((told["cniVersion"].as_str(), status), (Some(version), 0));
            assert_eq!(told["supportedVersions"], serde_json::json!(VERSIONS));
        }
    }

    #[test]
    fn a_call_that_makes_no_sense_is_an_error_of_the_specification() {
        let directory = TempDir::new();
        let case = |command, conf: &str| Case { conf: conf.to_owned(), ..Case::new(command, &directory) }.error();
        assert_eq!(case("EXPLODE", r#"{"cniVersion":"1.0.0"}"#).0, 4);
        assert_eq!(case("ADD", "{").0, 6);
        assert_eq!(case("ADD", r#"{"cniVersion":"0.2.0"}"#).0, 1);
        assert_eq!(case("ADD", r#"{"cniVersion":"1.0.0"}"#).0, 7);
        assert_eq!(case("ADD", r#"{"cniVersion":"1.0.0","prevResult":{}}"#).0, 7);
        let nothing = Environment::read(|_| None);
        let (output, status) = call(&nothing, &b""[..]);
        assert!(status == 1 && output.contains("CNI_COMMAND is not set"), "{output}");
    }

    #[test]
    fn the_node_is_fit_for_pods_when_someone_can_tell_which_may_start() {
        let directory = TempDir::new();
        let case = Case::new("STATUS", &directory);
        assert_eq!(case.error().0, 50);
        std::fs::create_dir_all(directory.join("state")).unwrap();
        MeshCache::default().store(&directory.join("state")).unwrap();
        assert_eq!(case.call(), (String::new(), 0));
    }

    #[test]
    fn a_copy_called_so_is_the_plugin() {
        for (name, expected) in [("/opt/cni/bin/culvert-cni", true), ("culvert-cni", true), ("/usr/bin/culvert", false)]
        {
            assert_eq!(is_plugin(name.as_ref()), expected, "{name}");
        }
    }
}
