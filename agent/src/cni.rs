//! The CNI plugin (`culvert cni`, installed as `culvert-cni`), and the agent's side of it.
//!
//! The container runtime calls the plugin last in the chain of its network configuration, when a pod's sandbox has its
//! network namespace and addresses, and before any container of it runs. The plugin asks the agent over a Unix socket
//! and lets the pod start only once it is in the mesh, or does not belong there. It follows the Container Network
//! Interface specification, versions 0.3.0 to 1.1.0.
//!
//! | module | whose | what it is for |
//! |---|---|---|
//! | `plugin`, `netconf` | plugin | the commands of the specification; its environment, input and errors |
//! | `alone` | plugin | what becomes of a pod when no agent answers |
//! | `protocol` | both | what is said over the socket |
//! | `state` | both | the files that tell a plugin without an agent what the mesh is |
//! | [`server`] | agent | answers the plugin |
//! | [`sandboxes`] | agent | what the plugin has told, kept over a restart |
//! | [`cache`] | agent | writes those files |
//! | [`lifecycle`] | agent | whether the agent ends for good or for an upgrade |
//! | [`install`], [`keep`], [`credentials`] | agent | the plugin's files on the node, put there and kept there |

mod alone;
pub mod cache;
pub mod credentials;
pub mod install;
pub mod keep;
pub mod lifecycle;
mod netconf;
pub mod plugin;
mod protocol;
pub mod sandboxes;
pub mod server;
mod side;
mod state;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use culvert_core::cni::PLUGIN_TYPE;
use culvert_core::enrolment::EnrolmentRules;
pub use side::{AgentSide, remove};

/// Where the agent listens.
pub const SOCKET: &str = "/run/culvert/cni.sock";
/// Where the agent keeps what outlives it.
pub const STATE_DIR: &str = "/var/lib/culvert";

/// Our plugin's place in the network configuration.
pub fn entry(paths: &Paths, rules: &EnrolmentRules) -> String {
    let kubeconfig = paths.state_dir.join(credentials::KUBECONFIG);
    let entry = serde_json::json!({
        "type": PLUGIN_TYPE,
        "socket": paths.cni_socket,
        "stateDir": paths.state_dir,
        "kubeconfig": kubeconfig,
        "excludeNamespaces": rules.exclude_namespaces,
        "enablementSelectors": rules.enablement_selectors,
    });
    entry.to_string()
}

/// `culvert cni`: without a command it is the plugin, as a container runtime calls it.
#[derive(Clone, Debug, Args)]
pub struct CniConfig {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<CniCommand>,
}

/// What `culvert cni` can do beside being the plugin.
#[derive(Clone, Debug, Subcommand)]
pub enum CniCommand {
    /// Takes the plugin out of the node's network configurations and removes its files.
    Uninstall(UninstallConfig),
}

/// Where there is something to remove.
#[derive(Clone, Debug, Args)]
pub struct UninstallConfig {
    /// The plugin's files.
    #[command(flatten)]
    pub directories: Directories,

    /// The agent's `--state-dir`.
    #[arg(long, env = "CULVERT_STATE_DIR", value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Where the container runtime looks, as the agent sees it.
#[derive(Clone, Debug, Args)]
pub struct Directories {
    /// Where the container runtime has its CNI plugins.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Where the container runtime has its network configurations.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// The Unix socket by which the CNI plugin asks the agent; at the same path on the node itself.
    #[arg(long, env = "CULVERT_CNI_SOCKET", value_name = "PATH", default_value = SOCKET)]
    pub cni_socket: PathBuf,
}

/// Every path that the plugin's installation touches. Socket and state directory are at the same place for the agent
/// and for the plugin, which runs on the node itself; the others only the agent uses.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The runtime's plugins.
    pub cni_bin_dir: PathBuf,
    /// The runtime's network configurations.
    pub cni_conf_dir: PathBuf,
    /// The agent's socket.
    pub cni_socket: PathBuf,
    /// The agent's state.
    pub state_dir: PathBuf,
}

impl Paths {
    /// The paths of these directories.
    pub fn new(directories: &Directories, state_dir: &std::path::Path) -> Self {
        let Directories { cni_bin_dir, cni_conf_dir, cni_socket } = directories.clone();
        Self { cni_bin_dir, cni_conf_dir, cni_socket, state_dir: state_dir.to_owned() }
    }
}
