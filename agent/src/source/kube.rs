//! Objects from the Kubernetes API server, by watches.
//!
//! One follower for each resource lists and watches; what they say comes together in one place that knows which objects
//! there are, so that a list after an outage yields what has changed and what is gone, and nothing else. Of an object no
//! more is read than [`culvert_api::trim`] names, and nothing of it is kept here but a digest; what was read is on disk,
//! for an agent that starts while the API server is away.
//!
//! The mesh is settled once every resource was listed: a mesh of which the policies could not be read is not published,
//! since it would be open. In their place serve the objects of an earlier agent, where they are complete.
//!
//! | module | what it is for |
//! |---|---|
//! | `resource` | what is watched, and where the API server has it |
//! | `definitions` | which custom resources there are, watched as well |
//! | `follow`, `request`, `split` | list and watch of one resource: when, how, and cut into objects |
//! | `ahead` | objects that somebody asked for before the watch brought them |
//! | `assemble`, `entries` | what that means: which objects have changed, are gone, cannot be read |
//! | `journal` | the objects on disk |
//! | `status` | where each resource stands, for the log, `/healthz/ready`, `/config_dump/source` and the metrics |

mod ahead;
mod assemble;
mod definitions;
mod entries;
mod follow;
mod journal;
mod request;
mod resource;
mod sink;
mod split;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::mesh::Change;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use self::ahead::Found;
use self::assemble::Assembler;
use self::definitions::Definitions;
use self::follow::Follower;
use self::journal::{Contents, Journal};
use self::resource::Resource;
use self::sink::{Piece, Sink};
use self::status::Board;
use super::{Reader, Update};
use crate::cluster::Cluster;
use crate::telemetry::{Kind, Sample, Telemetry};

pub use ahead::Ahead;
pub use status::{ResourceStatus, State, Status};

/// How many changes an update has, roughly.
const PIECE: usize = 256;
/// How many pieces of the followers, and how many updates, wait for whoever takes them: few, since a piece is as much of
/// a list as arrives at once, which may be some hundred kilobytes.
const WAITING_PIECES: usize = 6;
const WAITING_UPDATES: usize = 2;
/// How long the objects of an earlier agent wait for better ones, from the start: about as long as lists take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often what has changed is written to disk, and how often that nothing has.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const CONFIRM_EVERY: Duration = Duration::from_secs(60);

/// The objects of a cluster, watched for changes.
#[derive(Debug)]
pub struct Kube {
    updates: mpsc::Receiver<Update>,
    health: Health,
    saver: Saver,
    ahead: Ahead,
}

/// Where the watches stand. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Health(Arc<Board>);

/// Has what is known written to disk. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Saver(mpsc::Sender<oneshot::Sender<()>>);

impl Kube {
    /// Starts to read and watch the objects of `cluster` that `reader` has a use for. What is read is kept in `file`, and
    /// read from there while the API server is away; a file that cannot be used is said so in the log. Needs a tokio
    /// runtime.
    pub fn open(cluster: &Cluster, reader: Reader, file: Option<PathBuf>) -> Self {
        let resources = Resource::read_by(reader);
        let names = resources.iter().map(|resource| resource.name().into()).collect::<Vec<Arc<str>>>();
        let board = Arc::new(Board::new(names, &[definitions::NAME]));
        let is_back = Arc::new(Notify::new());
        let (pieces_to, pieces) = mpsc::channel(WAITING_PIECES);

        let definitions = Definitions::new(resources.iter().filter_map(Resource::definition));
        for (at, resource) in resources.iter().enumerate() {
            let presence = resource.definition().and_then(|name| definitions.presence(&name));
            let sink = Sink::Mesh(at, pieces_to.clone());
            let follower = Follower::new(resource, cluster.client(), presence, sink, board.clone(), is_back.clone());
            tokio::spawn(follower.run());
        }
        let follower = Follower {
            client: cluster.client(),
            name: definitions::NAME.into(),
            versions: vec![("v1", definitions::PATH.to_owned())],
            form: request::Form::Metadata,
            presence: None,
            sink: Sink::Definitions(definitions),
            board: board.clone(),
            is_back,
        };
        tokio::spawn(follower.run());

        let (updates_to, updates) = mpsc::channel(WAITING_UPDATES);
        let (saves_to, saves) = mpsc::channel(1);
        let (ahead, found) = Ahead::new();
        let assembly = Assembly { pieces, found, updates: updates_to, saves, board: board.clone() };
        tokio::spawn(assembly.run(resources, file, cluster.id()));
        Self { updates, health: Health(board), saver: Saver(saves_to), ahead }
    }

    /// The next piece. The first settled one comes once every resource was listed, or the objects of an earlier agent
    /// are to serve in the meantime; from there on all are. `None` once nothing more can come.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Where the watches stand, now and later.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// For whoever ends the agent.
    pub fn saver(&self) -> Saver {
        self.saver.clone()
    }

    /// For whoever asks the API server for objects that the watch has not brought yet.
    pub fn ahead(&self) -> Ahead {
        self.ahead.clone()
    }
}

impl Saver {
    /// Returns once everything that is known is on disk, or cannot be.
    pub async fn save(&self) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

impl Health {
    /// Where each resource stands.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Why the objects are not complete, one line a reason.
    pub fn missing(&self) -> Vec<String> {
        self.0.missing()
    }

    /// What has to be said of objects that are complete, but may be out of date.
    pub fn notes(&self) -> Vec<String> {
        self.0.notes()
    }

    /// Adds the metrics of the watches.
    pub fn register_metrics(&self, telemetry: &Telemetry) {
        let one = |value: u64| vec![Sample { labels: Vec::new(), value }];
        let board = self.0.clone();
        telemetry.register_samples(
            "culvert_source_stale",
            "Whether the configuration may be out of date: 1 while something cannot be watched",
            Kind::Gauge,
            move || one(board.staleness().0.into()),
        );
        let board = self.0.clone();
        telemetry.register_samples(
            "culvert_source_age_seconds",
            "For how long the configuration may have been out of date",
            Kind::Gauge,
            move || one(board.staleness().1),
        );
        let board = self.0.clone();
        telemetry.register_samples(
            "culvert_source_connected",
            "Whether a resource is watched, or known to be absent",
            Kind::Gauge,
            move || board.samples(|resource| u64::from(matches!(resource.state, State::Watched | State::Absent))),
        );
        let board = self.0.clone();
        telemetry.register_samples(
            "culvert_source_objects",
            "How many objects of a resource there are",
            Kind::Gauge,
            move || board.samples(|resource| resource.objects as u64),
        );
        let board = self.0.clone();
        telemetry.register_samples(
            "culvert_source_rejected_objects",
            "Objects that could not be read, each time that they came",
            Kind::Counter,
            move || one(board.rejections()),
        );
    }
}

/// Where what the followers say comes together.
struct Assembly {
    pieces: mpsc::Receiver<(usize, Piece)>,
    found: mpsc::Receiver<Found>,
    updates: mpsc::Sender<Update>,
    saves: mpsc::Receiver<oneshot::Sender<()>>,
    board: Arc<Board>,
}

/// Nobody takes updates any more.
struct Ended;

impl Assembly {
    async fn run(mut self, resources: Vec<Resource>, file: Option<PathBuf>, cluster: u64) {
        let board = self.board.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (journal, contents) = open(file, cluster);
            let time = contents.as_ref().map(|contents| contents.time);
            (Assembler::new(&resources, board, journal, contents), time)
        });
        let Ok((assembler, time)) = opened.await else { return };
        // It ends with whoever takes the updates, or with the followers.
        let _ = self.follow(assembler, time).await;
    }

    async fn follow(&mut self, assembler: Assembler, time: Option<std::time::SystemTime>) -> Result<(), Ended> {
        // The lists have come in while the objects were read, and some of them may be complete by then.
        let patience = Instant::now() + PATIENCE;
        let mut assembler = self.recall(assembler).await?;
        let mut is_patient = true;
        let mut is_settled = false;
        let mut is_listed = false;
        let mut was_whole = false;
        let mut unreachable = self.board.unreachable();
        let mut save_at: Option<Instant> = None;
        let mut confirm_at = Instant::now() + CONFIRM_EVERY;
        loop {
            let mut changes = Vec::new();
            tokio::select! {
                piece = self.pieces.recv() => {
                    let mut pieces = vec![piece.ok_or(Ended)?];
                    while pieces.len() < WAITING_PIECES && let Ok(piece) = self.pieces.try_recv() {
                        pieces.push(piece);
                    }
                    (assembler, changes) = blocking(assembler, move |assembler, changes| {
                        for (at, piece) in pieces {
                            assembler.take(at, piece, changes);
                        }
                    }).await?;
                    if assembler.is_dirty() && save_at.is_none() {
                        save_at = Some(Instant::now() + SAVE_EVERY);
                    }
                }
                Some(found) = self.found.recv() => {
                    (assembler, changes) =
                        blocking(assembler, move |assembler, changes| assembler.take_ahead(&found, changes)).await?;
                    if assembler.is_dirty() && save_at.is_none() {
                        save_at = Some(Instant::now() + SAVE_EVERY);
                    }
                }
                () = at(save_at) => {
                    save_at = None;
                    (assembler, _) = blocking(assembler, |assembler, _| assembler.save()).await?;
                }
                Some(done) = self.saves.recv() => {
                    (assembler, _) = blocking(assembler, |assembler, _| {
                        assembler.save();
                        assembler.confirm();
                    }).await?;
                    let _ = done.send(());
                }
                () = sleep_until(confirm_at) => {
                    confirm_at += CONFIRM_EVERY;
                    assembler.confirm();
                }
                () = sleep_until(patience), if is_patient => is_patient = false,
                _ = unreachable.changed(), if !is_settled => {}
                () = self.updates.closed() => return Err(Ended),
            }
            let is_first = !is_settled || (assembler.is_listed() && !is_listed);
            let is_late = !is_patient || unreachable.borrow().is_some();
            is_listed = assembler.is_listed();
            if !is_settled && !is_listed && is_late && assembler.is_complete() {
                // What this agent has listed in the meantime is among them.
                if let Some(time) = time {
                    self.board.started_from(time);
                }
                is_settled = true;
            }
            is_settled |= is_listed;
            while changes.len() > PIECE {
                let rest = changes.split_off(PIECE);
                self.send(changes, false).await?;
                changes = rest;
            }
            let is_news = is_first || was_whole != self.board.is_whole();
            if !changes.is_empty() || (is_settled && is_news) {
                was_whole = self.send(changes, is_settled).await?;
            }
        }
    }

    /// Hands on the objects of an earlier agent.
    async fn recall(&mut self, mut assembler: Assembler) -> Result<Assembler, Ended> {
        let remembered = assembler.remembered();
        for objects in remembered.chunks(PIECE) {
            let objects = objects.to_vec();
            let (recalled, changes) =
                blocking(assembler, move |assembler, changes| assembler.recall(&objects, changes)).await?;
            assembler = recalled;
            self.send(changes, false).await?;
        }
        Ok(assembler)
    }

    /// Says whether what was sent so far is all there is.
    async fn send(&self, changes: Vec<Change>, settled: bool) -> Result<bool, Ended> {
        // Of the changes up to here, not of what has been listed since: those of it are still to come.
        let whole = settled && self.board.is_whole();
        self.updates.send(Update { changes, settled, whole, incomplete: None }).await.map_err(|_| Ended)?;
        Ok(whole)
    }
}

/// Parses and writes where it keeps nobody waiting.
async fn blocking(
    mut assembler: Assembler,
    work: impl FnOnce(&mut Assembler, &mut Vec<Change>) + Send + 'static,
) -> Result<(Assembler, Vec<Change>), Ended> {
    let done = tokio::task::spawn_blocking(move || {
        let mut changes = Vec::new();
        work(&mut assembler, &mut changes);
        (assembler, changes)
    });
    done.await.map_err(|_| Ended)
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Opens the file, and says in one line what is wrong with it if anything is.
fn open(file: Option<PathBuf>, cluster: u64) -> (Option<Journal>, Option<Contents>) {
    let Some(file) = file else { return (None, None) };
    match Journal::open(&file, cluster) {
        Ok((journal, contents)) => {
            if let Err(Some(why)) = &contents {
                tracing::warn!("{why}");
            }
            (Some(journal), contents.ok())
        }
        Err(error) => {
            tracing::warn!(
                "--state-dir: {}: {error}: an agent that starts while the API server is away will know nothing; give \
                 a directory that can be written",
                file.display()
            );
            (None, None)
        }
    }
}
