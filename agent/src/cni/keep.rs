//! Keeps the plugin installed: whoever overwrites or removes its files finds them back in a moment.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};

use super::Paths;
use super::install::{self, Installed};
use crate::charge::Turn;

/// How long a directory has to be quiet: a write is several events.
const QUIET: Duration = Duration::from_millis(100);
/// How often it is looked without an event, in case one was lost or the directory came anew.
const LOOK: Duration = Duration::from_secs(30);
/// How often while something is wrong.
const RETRY: Duration = Duration::from_secs(2);

/// What is wrong with the installation, for readiness; `None` when it is in order.
pub type Problem = Option<String>;

/// Installs the plugin and keeps it installed, for as long as the task lives and the node's pods are this agent's: two
/// agents of different versions would put back their own over each other's. `entry` is its place in the network
/// configuration.
pub async fn keep(paths: Paths, entry: String, problem: watch::Sender<Problem>, mut turns: watch::Receiver<Turn>) {
    let changed = Arc::new(Notify::new());
    let mut said: Vec<String> = Vec::new();
    let mut seen = None;
    loop {
        if turns.wait_for(|turn| turn.is_ours).await.is_err() {
            return;
        }
        // Made anew each time: a directory that was removed and made again is another one.
        let watcher = watch_directories(&paths, &changed);
        let (attempt, text) = (paths.clone(), entry.clone());
        let known = seen;
        let installed = tokio::task::spawn_blocking(move || {
            let mut seen = known;
            let installed = install::install_binary(&attempt, &mut seen).and_then(|is_new| {
                let mut installed = install::install_configuration(&attempt, &text)?;
                installed.has_changed |= is_new;
                Ok(installed)
            });
            (installed, seen)
        });
        let Ok((installed, now)) = installed.await else { return };
        seen = now;
        let (wrong, lines) = judge(installed, &paths);
        for line in lines.iter().filter(|line| !said.contains(line)) {
            tracing::warn!("CNI: {line}");
        }
        said = lines;
        let pause = if wrong.is_some() { RETRY } else { LOOK };
        problem.send_if_modified(|known| std::mem::replace(known, wrong.clone()) != wrong);
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(QUIET).await,
            () = tokio::time::sleep(pause) => {}
        }
        drop(watcher);
    }
}

/// What keeps the plugin from working, and all that is worth a line.
fn judge(installed: Result<Installed, install::InstallError>, paths: &Paths) -> (Problem, Vec<String>) {
    match installed {
        Ok(installed) => {
            if let (true, Some(path)) = (installed.has_changed, &installed.configuration) {
                tracing::info!(configuration = %path.display(), "CNI plugin installed");
            }
            let mut lines = installed.unusable;
            let directory = paths.cni_conf_dir.display();
            let wrong = installed.configuration.is_none().then(|| {
                format!("{directory}: no network configuration that can be used: correct or remove what is there")
            });
            lines.extend(wrong.clone());
            (wrong, lines)
        }
        Err(error) => (Some(error.to_string()), vec![error.to_string()]),
    }
}

fn watch_directories(paths: &Paths, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let told = changed.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is none of our business, and done by ourselves.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            told.notify_one();
        }
    });
    let mut watcher = watcher.ok()?;
    for directory in [&paths.cni_conf_dir, &paths.cni_bin_dir] {
        // A directory that is not there yet is looked for again.
        let _ = watcher.watch(Path::new(directory), RecursiveMode::NonRecursive);
    }
    Some(watcher)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::testing::TempDir;

    const ENTRY: &str = r#"{"type":"culvert-cni"}"#;
    const LIST: &str = r#"{"name":"k","plugins":[{"type":"bridge"}]}"#;

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 10 s: {what}");
    }

    #[tokio::test]
    async fn what_others_overwrite_or_remove_is_put_back() {
        let root = TempDir::new();
        let paths = Paths {
            cni_bin_dir: root.join("bin"),
            cni_conf_dir: root.join("net.d"),
            cni_socket: root.join("cni.sock"),
            state_dir: root.join("state"),
        };
        let conflist = paths.cni_conf_dir.join("10-k.conflist");
        let is_in = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains("culvert-cni"));
        let (problem, state) = watch::channel(Some("not yet".to_owned()));
        let (_turn, turns) = watch::channel(Turn { is_ours: true, taken: 1 });
        let task = tokio::spawn(keep(paths.clone(), ENTRY.to_owned(), problem, turns));
        until("a line on the missing directory", || state.borrow().as_deref().is_some_and(|why| why.contains("net.d")))
            .await;
        fs::create_dir_all(&paths.cni_conf_dir).unwrap();
        fs::write(&conflist, LIST).unwrap();
        until("the plugin to be installed", || state.borrow().is_none() && is_in(&conflist)).await;

        fs::write(&conflist, LIST).unwrap();
        until("an overwritten configuration to be repaired", || is_in(&conflist)).await;
        fs::remove_file(paths.cni_bin_dir.join("culvert-cni")).unwrap();
        until("a removed binary to be put back", || paths.cni_bin_dir.join("culvert-cni").exists()).await;
        fs::write(&conflist, "{").unwrap();
        until("a broken configuration to be reported", || state.borrow().is_some()).await;
        assert_eq!(fs::read_to_string(&conflist).unwrap(), "{");
        fs::write(&conflist, LIST).unwrap();
        until("a mended one to be taken up", || state.borrow().is_none() && is_in(&conflist)).await;
        task.abort();
    }
}
