//! Waypoints: for each Gateway of class `istio-waypoint` the Deployment, the Service and what else makes one run, and
//! what became of it in its status. Done by the leader, and only when something has changed.
//!
//! Everything belongs to its Gateway (`ownerReferences`), and goes with it. An object of the name that is wanted which
//! belongs to nobody, or to somebody else, is left alone; so are fields that somebody else has set. A Gateway that says
//! by a host name where its waypoint is (`spec.addresses`) is run by others. The label `istio.io/rev` of a Gateway
//! chooses among several istiods; there is one Culvert, and it runs them all.
//!
//! | module | what it is for |
//! |---|---|
//! | `state` | what is there, and what is due |
//! | `objects`, `part` | what a waypoint is made of |
//! | `parameters`, `merge` | what ConfigMaps want otherwise |
//! | `write` | server-side apply |
//! | `status` | the statuses of Gateways and their class |

mod merge;
mod objects;
mod parameters;
mod part;
mod state;
mod status;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use culvert_api::names::WAYPOINT_GATEWAY_CLASS;
use culvert_core::options::MeshOptions;
use culvert_core::workload::NamespacedName;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

pub(super) use self::objects::CONTROLLER;
use self::objects::{MANAGED, Settings};
use self::part::Part;
use self::state::{Act, DEFAULTS_LABEL, State, Watched};
use super::follow::{Resource, Seen, Selection, follow};
use super::metrics::Metrics;
use crate::cluster::Notices;
use crate::config::ControllerConfig;

/// Writes at once.
const AT_ONCE: usize = 8;
/// How many changes are taken in before anything is written.
const BATCH: usize = 1000;
/// The role of waypoints, and its binding: the chart makes both, and who has the role is said here.
const ROLE: &str = "culvert-waypoint";

const GATEWAYS: Resource =
    Resource { group: "gateway.networking.k8s.io", versions: &["v1"], kind: "Gateway", plural: "gateways" };
const CLASS: Resource = Resource { kind: "GatewayClass", plural: "gatewayclasses", ..GATEWAYS };
const CONFIG_MAPS: Resource = Resource { group: "", versions: &["v1"], kind: "ConfigMap", plural: "configmaps" };
const BINDING: Resource = Resource {
    group: "rbac.authorization.k8s.io",
    versions: &["v1"],
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
};

/// Runs the waypoints. Dropped when another replica leads.
pub(super) async fn run(
    client: &kube::Client,
    config: &ControllerConfig,
    mut options: watch::Receiver<Option<Arc<MeshOptions>>>,
    metrics: &Metrics,
) {
    let Some(image) = config.waypoints.waypoint_image.clone() else {
        tracing::info!("waypoints are not run: --waypoint-image is not given");
        return std::future::pending().await;
    };
    let settings = Settings {
        image,
        pull_policy: config.waypoints.waypoint_pull_policy.clone(),
        pull_secrets: config.waypoints.waypoint_pull_secrets.clone(),
        ca_address: config.waypoint_ca_address(),
        defaults: config.waypoints.waypoint_defaults.clone(),
    };
    let mut watches = Watches::start(client);
    let mut state = State::new(settings);
    let notices = Notices::default();
    let mut batch = Vec::new();
    loop {
        let next = state.next_look(Instant::now());
        tokio::select! {
            _ = watches.seen.recv_many(&mut batch, BATCH) => {}
            changed = options.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
        if let Some(options) = &*options.borrow_and_update() {
            state.set_root_namespace(&options.root_namespace);
        }
        batch.drain(..).for_each(|seen| state.take(seen));
        watches.follow_parameters(client, &mut state);
        write(client, &mut state, &notices, metrics).await;
        status::write(client, &state, metrics).await;
    }
}

/// Writes everything that is due; the objects of one Gateway in their order.
async fn write(client: &kube::Client, state: &mut State, notices: &Notices, metrics: &Metrics) {
    let binding = format!("{} {ROLE}", BINDING.kind);
    match state.lacks_binding() {
        true => notices.wrong(
            &format!("{binding} itself"),
            &format!("{binding} is not there, and waypoints may read nothing: install the chart with rbac.create=true"),
        ),
        false => notices.right(&format!("{binding} itself")),
    }
    let mut groups: BTreeMap<Option<NamespacedName>, Vec<Act>> = BTreeMap::new();
    for act in state.due(Instant::now()) {
        let gateway = match &act {
            Act::MakeClass | Act::Bind(_) => None,
            Act::Apply { gateway, .. } | Act::Delete { gateway, .. } => Some(gateway.clone()),
        };
        groups.entry(gateway).or_default().push(act);
    }
    let perform = |(_, acts): (_, Vec<Act>)| async move {
        let mut done = Vec::new();
        for act in acts {
            let result = write::perform(client, &act).await;
            done.push((act, result));
        }
        done
    };
    let mut performed = stream::iter(groups).map(perform).buffer_unordered(AT_ONCE);
    while let Some(done) = performed.next().await {
        for (act, result) in done {
            metrics.wrote("waypoint", result.is_ok());
            match &result {
                Ok(_) => notices.right(&act.to_string()),
                Err(problem) => notices.wrong(&act.to_string(), problem),
            }
            state.done(&act, result, Instant::now());
        }
    }
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MakeClass => write!(f, "GatewayClass {WAYPOINT_GATEWAY_CLASS}"),
            Self::Bind(_) => write!(f, "{} {ROLE}", BINDING.kind),
            Self::Apply { gateway, part, .. } | Self::Delete { gateway, part, .. } => {
                f.write_str(&state::tell(*part, gateway))
            }
        }
    }
}

/// The watches, which end when this is dropped.
struct Watches {
    seen: mpsc::Receiver<Seen<Watched>>,
    to: mpsc::Sender<Seen<Watched>>,
    tasks: JoinSet<()>,
    parameters: HashMap<Arc<NamespacedName>, AbortHandle>,
}

impl Watches {
    fn start(client: &kube::Client) -> Self {
        let (to, seen) = mpsc::channel(BATCH);
        let mut watches = Self { seen, to, tasks: JoinSet::new(), parameters: HashMap::new() };
        let config = super::watching;
        let all = |config| Selection { namespace: None, config };
        let by_label = |key: &str, value: &str| all(config().labels(&format!("{key}={value}")));
        let by_name = |name: &str| all(config().fields(&format!("metadata.name={name}")));
        watches.follow(client, Watched::Gateways, GATEWAYS, Selection::all());
        watches.follow(client, Watched::Class, CLASS, by_name(WAYPOINT_GATEWAY_CLASS));
        watches.follow(client, Watched::Defaults, CONFIG_MAPS, by_label(DEFAULTS_LABEL, WAYPOINT_GATEWAY_CLASS));
        watches.follow(client, Watched::Binding, BINDING, by_name(ROLE));
        for part in Part::ALL {
            watches.follow(client, Watched::Part(part), part.resource(), by_label(MANAGED.0, MANAGED.1));
        }
        watches
    }

    fn follow(&mut self, client: &kube::Client, what: Watched, resource: Resource, which: Selection) -> AbortHandle {
        self.tasks.spawn(follow(client.clone(), what, resource, which, self.to.clone()))
    }

    /// Watches the ConfigMaps that Gateways name, and no others: there may be many.
    fn follow_parameters(&mut self, client: &kube::Client, state: &mut State) {
        let wanted = state.parameters();
        // Those that were aborted before.
        while self.tasks.try_join_next().is_some() {}
        self.parameters.retain(|map, task| {
            let is_wanted = wanted.contains(map);
            if !is_wanted {
                task.abort();
                state.forget_parameters(map);
            }
            is_wanted
        });
        for map in wanted {
            if !self.parameters.contains_key(&map) {
                let config = super::watching().fields(&format!("metadata.name={}", map.name));
                let which = Selection { namespace: Some(map.namespace.to_string()), config };
                let task = self.follow(client, Watched::Parameters(map.clone()), CONFIG_MAPS, which);
                self.parameters.insert(map, task);
            }
        }
    }
}
