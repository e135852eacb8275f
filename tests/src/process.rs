//! Running things somewhere: closures, commands and long-lived processes in a netns and a cgroup.

#![allow(unsafe_code, reason = "a child moves to its netns and cgroup between fork and exec")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::eventually;
use crate::netns;

/// What is kept of a process's output.
const MAX_OUTPUT: usize = 16 << 20;

/// Where something runs: a network namespace, and a cgroup when that matters.
#[derive(Debug, Clone)]
pub struct Place {
    netns: PathBuf,
    cgroup: Option<PathBuf>,
}

impl Place {
    /// In the namespace at this path, in the cgroup the harness is in.
    pub fn netns(path: &Path) -> Self {
        Self { netns: path.to_path_buf(), cgroup: None }
    }

    /// In this cgroup, a directory, as well.
    pub fn in_cgroup(mut self, cgroup: &Path) -> Self {
        self.cgroup = Some(cgroup.to_path_buf());
        self
    }

    /// Runs a closure here, on a thread of its own, and waits for it; a panic of the closure goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a closure here, on a thread of its own that is not waited for.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<Result<T>> {
        let place = self.clone();
        thread::spawn(move || place.enter().map(|()| work()))
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let netns = File::open(&self.netns).with_context(|| format!("cannot open {}", self.netns.display()))?;
        let cgroup = self.open_cgroup("cgroup.procs")?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        let enter = move || {
            if let Some(mut cgroup) = cgroup.as_ref() {
                cgroup.write_all(b"0")?;
            }
            setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        };
        // SAFETY: between fork and exec `enter` makes two system calls on descriptors opened before, and allocates
        // nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs a program to its end, or fails after `limit`.
    pub fn output(&self, limit: Duration, program: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.command(program)?;
        command.args(arguments);
        Process::spawn(program, command)?.finish(limit)
    }

    /// Moves the calling thread here, for good: use it only on a thread that ends with its work.
    fn enter(&self) -> Result<()> {
        if let Some(mut cgroup) = self.open_cgroup("cgroup.threads")? {
            cgroup.write_all(b"0").with_context(|| format!("cannot enter cgroup {:?}", self.cgroup))?;
        }
        netns::enter(&self.netns).with_context(|| format!("cannot enter {}", self.netns.display()))
    }

    fn open_cgroup(&self, file: &str) -> Result<Option<File>> {
        let Some(cgroup) = &self.cgroup else { return Ok(None) };
        let path = cgroup.join(file);
        let opened = OpenOptions::new().write(true).open(&path);
        opened.map(Some).with_context(|| format!("cannot open {}", path.display()))
    }
}

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// The output of a command that must succeed.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}", self.status, self.stderr.trim());
        }
        Ok(self.stdout)
    }
}

/// A running process; killed when dropped. What it prints is kept, the last 16 MiB of each stream.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    started: Instant,
    stdout: Output,
    stderr: Output,
}

impl Process {
    /// Starts a command, collecting its output.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = Output::collect(child.stdout.take());
        let stderr = Output::collect(child.stderr.take());
        Ok(Self { name: name.to_owned(), child, started: Instant::now(), stdout, stderr })
    }

    /// Starts a command whose output goes to a file: nobody reads along while something is measured.
    pub fn spawn_writing_to(name: &str, mut command: Command, file: &Path) -> Result<Self> {
        let file = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (stdout, stderr) = (Output::default(), Output::default());
        Ok(Self { name: name.to_owned(), child, started: Instant::now(), stdout, stderr })
    }

    /// Starts a server that the kernel kills with this process, however that ends; its output is appended to a file.
    ///
    /// For what is shared by all tests of a process: nothing is dropped when a process ends.
    pub fn spawn_server(name: &str, mut command: Command, file: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(file);
        let log = log.with_context(|| format!("cannot open {}", file.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: prctl is a system call on the child alone, and allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = on_keeper(move || command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        let (stdout, stderr) = (Output::default(), Output::default());
        Ok(Self { name: name.to_owned(), child, started: Instant::now(), stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid that is no pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// The exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for its end; fails, with what it printed, when that takes longer than `limit`. It runs on in that case.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        eventually(limit, &what, || self.try_wait().transpose())
            .with_context(|| format!("{} had said: {}", self.name, self.stderr()))?
    }

    /// Waits for its end and takes its output.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let status = self.wait(limit)?;
        let took = self.started.elapsed();
        // A grandchild may hold the pipes open: wait for their end, but not for ever.
        self.stdout.wait_for_end(Duration::from_secs(1));
        self.stderr.wait_for_end(Duration::from_secs(1));
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr(), took })
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().map(drop).with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Both streams so far.
    pub fn output(&self) -> String {
        self.stdout() + &self.stderr()
    }

    /// Waits until a line for which `is_it` holds has been printed on either stream, and returns it.
    pub fn wait_for_line(&mut self, limit: Duration, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let found = eventually(limit, what, || {
            let ended = self.try_wait().ok().flatten().is_some();
            let text = self.output();
            let line = text.lines().find(|line| is_it(line)).map(str::to_owned);
            match line {
                Some(line) => Some(Some(line)),
                None if ended => Some(None),
                None => None,
            }
        });
        match found {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended before it printed {what}: {}", self.name, self.output()),
            Err(error) => Err(error.context(format!("{} had said: {}", self.name, self.output()))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs work on a thread that lives as long as the process: "the parent" whose death PR_SET_PDEATHSIG waits for is the
/// thread that forked, and tests' threads end with their tests.
fn on_keeper<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    type Work = Box<dyn FnOnce() + Send>;
    static KEEPER: OnceLock<mpsc::Sender<Work>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Work>();
        thread::spawn(move || receiver.into_iter().for_each(|work| work()));
        sender
    });
    let (sender, receiver) = mpsc::channel();
    let work: Work = Box::new(move || drop(sender.send(work())));
    keeper.send(work).map_err(|_| anyhow::anyhow!("the thread that starts servers is gone"))?;
    receiver.recv().context("the thread that starts servers is gone")
}

#[derive(Debug, Clone, Default)]
struct Output(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    fn collect(stream: Option<impl Read + Send + 'static>) -> Self {
        let output = Self::default();
        let Some(mut stream) = stream else { return output };
        let collected = output.clone();
        thread::spawn(move || {
            let mut piece = [0; 16384];
            loop {
                match stream.read(&mut piece) {
                    Ok(0) => break,
                    Ok(n) => {
                        let mut kept = collected.lock();
                        kept.bytes.extend_from_slice(&piece[..n]);
                        let excess = kept.bytes.len().saturating_sub(MAX_OUTPUT);
                        kept.bytes.drain(..excess);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            collected.lock().ended = true;
            collected.0.1.notify_all();
        });
        output
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_end(&self, limit: Duration) {
        let waited = self.0.1.wait_timeout_while(self.lock(), limit, |kept| !kept.ended);
        drop(waited);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }
}
