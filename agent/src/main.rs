//! `culvert`: the node agent (role `node`), its CNI plugin (`cni`), the waypoint (`waypoint`) and the controller
//! (`controller`).

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use culvert::cni::{CniCommand, CniConfig, Paths, install, plugin};
use culvert::config::{Cli, ControllerConfig, EXIT_CONFIG, LogConfig, NodeConfig, Role, WaypointConfig, one_line};
use culvert::controller::Controller;
use culvert::node::Node;
use culvert::telemetry::logging::{self, LogHandle};
use culvert::waypoint::Waypoint;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Threads for what blocks: netlink, files, large dumps. Each keeps some memory, so few.
const BLOCKING_THREADS: usize = 4;

fn main() -> ExitCode {
    // Installed under another name, it is the CNI plugin, with neither arguments nor a log.
    if std::env::args_os().next().is_some_and(|name| plugin::is_plugin(&name)) {
        return plugin::run();
    }
    let role = match Cli::try_parse() {
        Ok(cli) => cli.role,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return bad_configuration(&one_line(&error)),
    };
    match role {
        Role::Node(config) => node(*config),
        Role::Waypoint(config) => waypoint(*config),
        Role::Controller(config) => controller(*config),
        Role::Cni(CniConfig { command: None }) => plugin::run(),
        Role::Cni(CniConfig { command: Some(CniCommand::Uninstall(config)) }) => {
            match install::uninstall(&Paths::new(&config.directories, &config.state_dir)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error.into()),
            }
        }
    }
}

/// The life of a node agent.
fn node(config: NodeConfig) -> ExitCode {
    if let Err(error) = config.check() {
        return bad_configuration(&error.to_string());
    }
    let (log, runtime) = match begin(&config.log) {
        Ok(begun) => begun,
        Err(status) => return status,
    };
    runtime.block_on(async {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "culvert node");
        let node = match Node::build(config, log).await {
            Ok(node) => node,
            Err(error) => return failed(&error),
        };
        let [admin, metrics, readiness] = node.addresses();
        tracing::info!(%admin, %metrics, %readiness, "listening");
        match node.run(stop_signal()).await {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        }
    })
}

/// The life of a waypoint.
fn waypoint(config: WaypointConfig) -> ExitCode {
    if let Err(error) = config.check() {
        return bad_configuration(&error.to_string());
    }
    let (log, runtime) = match begin(&config.log) {
        Ok(begun) => begun,
        Err(status) => return status,
    };
    runtime.block_on(async {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), gateway = %config.gateway, "culvert waypoint");
        let waypoint = match Waypoint::build(config, log).await {
            Ok(waypoint) => waypoint,
            Err(error) => return failed(&error),
        };
        let ([admin, metrics, readiness], hbone) = waypoint.addresses();
        tracing::info!(?hbone, %admin, %metrics, %readiness, "listening");
        match waypoint.run(stop_signal()).await {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        }
    })
}

/// The life of a controller.
fn controller(mut config: ControllerConfig) -> ExitCode {
    if let Err(error) = config.check() {
        return bad_configuration(&error.to_string());
    }
    // Signing is a matter of microseconds, and the rest is waiting: one thread carries it.
    let (log, runtime) = match begin(&config.log) {
        Ok(begun) => begun,
        Err(status) => return status,
    };
    runtime.block_on(async {
        let (version, replica) = (env!("CARGO_PKG_VERSION"), config.identity());
        tracing::info!(version, namespace = config.namespace, replica, "culvert controller");
        let controller = match Controller::build(config, log).await {
            Ok(controller) => controller,
            Err(error) => return failed(&error),
        };
        match controller.addresses() {
            Ok([ca, admin, metrics, readiness]) => tracing::info!(%ca, %admin, %metrics, %readiness, "listening"),
            Err(error) => return failed(&error.into()),
        }
        match controller.run(stop_signal()).await {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        }
    })
}

/// What every long-lived role begins with: the log, a runtime of one thread, and descriptors.
fn begin(config: &LogConfig) -> Result<(LogHandle, Runtime), ExitCode> {
    let log = logging::init(config.log_format, &config.log_level)
        .map_err(|error| bad_configuration(&format!("--log-level: {error}")))?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let runtime = runtime.map_err(|error| failed(&error.into()))?;
    raise_descriptor_limit();
    Ok((log, runtime))
}

/// Takes as many descriptors as the administrator allows: every connection costs two, and the soft limit (1024 as a
/// rule) is a courtesy to programs that use `select`.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "the limit of open descriptors stays as it is"),
    }
}

/// Resolves when the process is asked to stop.
async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process, which is what they are for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn bad_configuration(line: &str) -> ExitCode {
    eprintln!("culvert: {line}");
    ExitCode::from(EXIT_CONFIG)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("culvert: {}", told_once(error));
    ExitCode::FAILURE
}

/// An error and its causes as one line. Those that are there already, since messages may hold their cause, are left out.
fn told_once(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.is_empty() {
        true => cause,
        false if line.contains(&cause) => line,
        false => format!("{line}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        let cause = std::io::Error::other("disk full");
        let error = Err::<(), _>(cause).context("--ca-dir: /ca: disk full; free some").context("identity").unwrap_err();
        assert_eq!(told_once(&error), "identity: --ca-dir: /ca: disk full; free some");
    }
}
