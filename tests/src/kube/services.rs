//! What a cluster adds to bare nodes so that Services have addresses and names: kube-proxy's part, CoreDNS's, and, for
//! Kubernetes 1.20, that of the controller of EndpointSlices v1.
//!
//! Only what Culvert itself needs to be installed depends on it: the connections of enrolled pods never see it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::api::Administrator;
use super::{ControlPlane, Forwarder};
use crate::process::{Place, Process};
use crate::topology::Topology;

/// Where the nodes' DNS servers listen: what pods get as their nameserver.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// How often Services are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Serves the Services of a cluster on all nodes of a topology; ended when dropped.
#[derive(Debug)]
pub struct Services {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dns: Vec<Process>,
}

struct Server {
    api: Administrator,
    nodes: Vec<Place>,
    hosts: PathBuf,
    mirrors_slices: bool,
    /// By cluster address and port, one a node.
    open: BTreeMap<SocketAddr, Vec<Forwarder>>,
    /// The versions of Endpoints whose EndpointSlices are written, by namespace and name.
    mirrored: BTreeMap<(String, String), String>,
}

impl Services {
    /// Starts a DNS server on each node and follows the cluster's Services.
    ///
    /// # Errors
    /// When dnsmasq cannot be started.
    pub fn start(cluster: &ControlPlane, topology: &Topology) -> Result<Self> {
        let hosts = topology.scope().directory().join("hosts");
        fs::create_dir_all(&hosts)?;
        let mut dns = Vec::new();
        for node in topology.nodes() {
            node.netns().ip(&format!("addr add {DNS_ADDRESS}/32 dev lo"))?;
            let mut command = node.place().command("dnsmasq")?;
            command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
            command.args(["--bind-interfaces", &format!("--listen-address={DNS_ADDRESS}"), "--local=/#/"]);
            command.arg(format!("--hostsdir={}", hosts.display())).arg("--pid-file=");
            dns.push(Process::spawn_server("dnsmasq", command, &topology.scope().directory().join("dnsmasq.log"))?);
        }
        let mut server = Server {
            api: cluster.administrator(),
            nodes: topology.nodes().iter().map(|node| node.place()).collect(),
            hosts,
            mirrors_slices: cluster.programs().lacks_endpoint_slices(),
            open: BTreeMap::new(),
            mirrored: BTreeMap::new(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // The API server may be away: that is what some tests are about.
                let _ = server.look();
                thread::sleep(PERIOD);
            }
        });
        Ok(Self { stop, thread: Some(thread), _dns: dns })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Server {
    fn look(&mut self) -> Result<()> {
        let services = items(self.api.get("/api/v1/services")?);
        let endpoints = items(self.api.get("/api/v1/endpoints")?);
        self.name(&services)?;
        for service in &services {
            let of = |object: &Value| (text(object, "namespace"), text(object, "name"));
            let behind = endpoints.iter().find(|one| of(one) == of(service));
            self.open(service, behind)?;
        }
        if self.mirrors_slices {
            let pods = items(self.api.get("/api/v1/pods")?);
            self.mirror(&endpoints, &pods)?;
        }
        Ok(())
    }

    /// `ADDRESS NAME.NAMESPACE.svc.cluster.local`, for dnsmasq.
    fn name(&self, services: &[Value]) -> Result<()> {
        let mut hosts = String::new();
        for service in services {
            if let Some(address) = cluster_address(service) {
                let (name, namespace) = (text(service, "name"), text(service, "namespace"));
                hosts += &format!("{address} {name}.{namespace}.svc.cluster.local {name}.{namespace}.svc\n");
            }
        }
        let file = self.hosts.join("services");
        if fs::read_to_string(&file).ok().as_ref() != Some(&hosts) {
            fs::write(file, hosts)?;
        }
        Ok(())
    }

    /// Listens on a Service's ports, and leads them to its endpoints.
    fn open(&mut self, service: &Value, endpoints: Option<&Value>) -> Result<()> {
        // Each node leads to the API server by itself.
        if text(service, "name") == "kubernetes" && text(service, "namespace") == "default" {
            return Ok(());
        }
        let Some(address) = cluster_address(service) else { return Ok(()) };
        for port in list(&service["spec"]["ports"]).filter(|port| port["protocol"] == "TCP") {
            let at = SocketAddr::new(address, number(&port["port"])?);
            if !self.open.contains_key(&at) {
                let mut forwarders = Vec::new();
                for place in &self.nodes {
                    // It may have the address for another port already.
                    place.output(
                        Duration::from_secs(5),
                        "ip",
                        &["addr", "replace", &format!("{address}/32"), "dev", "lo"],
                    )?;
                    forwarders.push(Forwarder::between(place, at, place)?);
                }
                self.open.insert(at, forwarders);
            }
            let mut servers = Vec::new();
            for subset in endpoints.into_iter().flat_map(|object| list(&object["subsets"])) {
                for target in list(&subset["ports"]).filter(|target| target["name"] == port["name"]) {
                    for backend in list(&subset["addresses"]) {
                        let ip: IpAddr = backend["ip"].as_str().context("an address without an IP")?.parse()?;
                        servers.push(SocketAddr::new(ip, number(&target["port"])?));
                    }
                }
            }
            for forwarder in &self.open[&at] {
                forwarder.lead_to(servers.clone());
            }
        }
        Ok(())
    }

    /// Writes an EndpointSlice of each family for each Endpoints object that is new, and removes those whose Endpoints
    /// are gone.
    fn mirror(&mut self, endpoints: &[Value], pods: &[Value]) -> Result<()> {
        let of = |object: &Value| (text(object, "namespace"), text(object, "name"));
        let gone = |key: &&(String, String)| !endpoints.iter().any(|object| of(object) == **key);
        for key in self.mirrored.keys().filter(gone).cloned().collect::<Vec<_>>() {
            let (namespace, name) = &key;
            for family in FAMILIES {
                let name = slice_name(name, family);
                let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}");
                self.api.request("DELETE", &path, None)?;
            }
            self.mirrored.remove(&key);
        }
        for object in endpoints {
            let key = of(object);
            let version = text(object, "resourceVersion");
            if self.mirrored.get(&key) == Some(&version) {
                continue;
            }
            for family in FAMILIES {
                self.put_slice(endpoint_slice(object, pods, family))?;
            }
            self.mirrored.insert(key, version);
        }
        Ok(())
    }

    fn put_slice(&self, mut slice: Value) -> Result<()> {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", text(&slice, "namespace"));
        let one = format!("{path}/{}", text(&slice, "name"));
        let before = self.api.request("GET", &one, None)?;
        let answer = if before.status == 404 {
            self.api.request("POST", &path, Some(&slice))?
        } else {
            slice["metadata"]["resourceVersion"] = before.success()?["metadata"]["resourceVersion"].take();
            self.api.request("PUT", &one, Some(&slice))?
        };
        answer.success().map(drop)
    }
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

fn slice_name(service: &str, family: &str) -> String {
    format!("{service}-mirror-{}", family.to_lowercase())
}

/// What the controller of 1.21 and later derives from the same Service: here of one subset, as all tests' Services have.
fn endpoint_slice(endpoints: &Value, pods: &[Value], family: &str) -> Value {
    let subset = &endpoints["subsets"][0];
    let endpoint = |ready: bool| {
        move |one: &Value| {
            let address = address_of(one, pods, family)?;
            let mut endpoint = json!({ "addresses": [address], "conditions": { "ready": ready } });
            for field in ["targetRef", "nodeName"] {
                if !one[field].is_null() {
                    endpoint[field] = one[field].clone();
                }
            }
            Some(endpoint)
        }
    };
    let ready = list(&subset["addresses"]).filter_map(endpoint(true));
    let unready = list(&subset["notReadyAddresses"]).filter_map(endpoint(false));
    let name = text(endpoints, "name");
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(&name, family),
            "namespace": text(endpoints, "namespace"),
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": family,
        "endpoints": ready.chain(unready).collect::<Vec<_>>(),
        "ports": subset["ports"].as_array().cloned().unwrap_or_default(),
    })
}

/// The address of an endpoint in this family: Endpoints have the first one only, and the pod behind it has both.
fn address_of(endpoint: &Value, pods: &[Value], family: &str) -> Option<String> {
    let target = &endpoint["targetRef"];
    let is_it = |pod: &&Value| target["kind"] == "Pod" && pod["metadata"]["uid"] == target["uid"];
    let of_pod = pods.iter().find(is_it).into_iter().flat_map(|pod| list(&pod["status"]["podIPs"]));
    let mut addresses = of_pod.map(|one| &one["ip"]).chain([&endpoint["ip"]]).filter_map(Value::as_str);
    let is_of_family = |address: &&str| address.contains(':') == (family == "IPv6");
    addresses.find(is_of_family).map(str::to_owned)
}

fn cluster_address(service: &Value) -> Option<IpAddr> {
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

fn items(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> Result<u16> {
    Ok(u16::try_from(value.as_u64().context("a port that is no number")?)?)
}
