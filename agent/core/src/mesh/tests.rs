mod incremental;
mod order;

use std::net::IpAddr;

use super::*;
use crate::service::ServicePort;
use crate::workload::{Health, Protocol, Workload};

/// The changes that put every object of a YAML text into a mesh.
pub(crate) fn objects(yaml: &str) -> Vec<Change> {
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    assert_eq!(parsed.mistakes, [], "{yaml}");
    parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)).collect()
}

/// A mesh of the objects of a YAML text.
pub(crate) fn mesh(yaml: &str) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.apply(objects(yaml));
    mesh
}

pub(crate) fn key(namespace: &str, host: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.into(), hostname: host.into() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `name:port*` for each endpoint of the first port, `*` where it is ready.
fn endpoints(snapshot: &Snapshot, key: &ServiceKey) -> Vec<String> {
    let port = snapshot.service(key).and_then(|service| service.ports.first().cloned());
    snapshot.endpoints(key).map(|endpoint| describe(endpoint, port.as_ref())).collect()
}

fn describe(endpoint: &Endpoint, port: Option<&ServicePort>) -> String {
    let port = port.and_then(|port| endpoint.port(port)).map_or_else(|| "-".to_owned(), |port| port.to_string());
    format!("{}:{port}{}", endpoint.workload.addresses[0], if endpoint.ready { "*" } else { "" })
}

fn messages(snapshot: &Snapshot) -> Vec<String> {
    snapshot.findings().map(|(_, finding)| finding.to_string()).collect()
}

/// The ConfigMap of these options.
fn options(text: &str) -> String {
    let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\n\
         data:\n  mesh: |\n{text}"
    )
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, topology.istio.io/subzone: rack}
---
apiVersion: v1
kind: Pod
metadata:
  name: cart-1
  namespace: shop
  uid: 11111111-1111-1111-1111-111111111111
  labels: {app: cart, version: v1}
  annotations: {culvert.dev/netns: /run/netns/cart-1}
spec:
  nodeName: n1
  serviceAccountName: cart
  containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.0.1.1}, {ip: "fd00::1:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd96::1"]
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
"#;

fn pod(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    snapshot.pod("shop", name).unwrap().clone()
}

#[test]
fn what_a_source_says_of_an_object_lasts_until_it_says_otherwise_or_the_object_goes() {
    let mut mesh = mesh(SHOP);
    let object = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
    let unreadable = || Finding::error(object.clone(), "spec.action", "not a string: it stays as it was");
    mesh.apply([Change::Report(object.clone(), vec![unreadable()])]);
    let expected = "error: AuthorizationPolicy shop/p: spec.action: not a string: it stays as it was";
    assert_eq!(messages(&mesh.snapshot()), [expected]);
    // Other options have everything worked out again.
    mesh.apply(objects(&options("trustDomain: other")));
    assert_eq!(messages(&mesh.snapshot()), [expected]);
    mesh.apply([Change::Report(object.clone(), Vec::new())]);
    assert!(messages(&mesh.snapshot()).is_empty());
    mesh.apply([Change::Report(object.clone(), vec![unreadable()])]);
    mesh.apply([Change::Remove(object)]);
    assert!(messages(&mesh.snapshot()).is_empty());
}

#[test]
fn a_pod_is_a_workload_with_its_identity_and_place() {
    let snapshot = mesh(SHOP).snapshot();
    let cart = pod(&snapshot, "cart-1");
    assert_eq!(cart.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!((cart.protocol, cart.health), (Protocol::Hbone, Health::Healthy));
    assert_eq!((&*cart.locality.region, &*cart.locality.zone, &*cart.locality.subzone), ("eu", "eu-1", "rack"));
    assert_eq!((&*cart.canonical_name, &*cart.canonical_revision), ("cart", "v1"));
    assert_eq!(cart.uid.to_string(), "Kubernetes//Pod/shop/cart-1");
    for address in ["10.0.1.1", "fd00::1:1", "::ffff:10.0.1.1"] {
        assert_eq!(snapshot.workload_by_address(ip(address)), Some(&cart));
    }
}

#[test]
fn a_named_target_port_is_the_pods_own() {
    let snapshot = mesh(SHOP).snapshot();
    assert_eq!(endpoints(&snapshot, &key("shop", "cart.shop.svc.cluster.local")), ["10.0.1.1:8080*"]);
}

#[test]
fn both_addresses_of_a_dual_stack_service_are_its() {
    let snapshot = mesh(SHOP).snapshot();
    for address in ["10.96.0.1", "fd96::1"] {
        assert_eq!(&*snapshot.service_by_address(ip(address), "x").unwrap().name, "cart");
    }
    assert_eq!(snapshot.service_by_address(ip("10.96.0.2"), "x"), None);
    assert_eq!(snapshot.services_by_hostname("cart.shop.svc.cluster.local").len(), 1);
}

#[test]
fn an_enrolled_pod_is_told_to_its_node() {
    let snapshot = mesh(SHOP).snapshot();
    let pods: Vec<_> = snapshot.enrolled_pods_on("n1").collect();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].netns.as_deref(), Some("/run/netns/cart-1"));
    assert_eq!(&*pods[0].uid, "11111111-1111-1111-1111-111111111111");
    assert_eq!(snapshot.enrolled_pods_on("n2").count(), 0);
}

#[test]
fn with_kubernetes_a_pod_does_not_name_its_network_namespace() {
    let mut mesh = Mesh::new().for_node("n1").without_named_netns();
    let found = mesh.apply(objects(SHOP));
    assert!(found.iter().any(|finding| finding.field == "metadata.annotations[culvert.dev/netns]"), "{found:?}");
    let named = |mesh: &Mesh| mesh.snapshot().enrolled_pods_on("n1").next().unwrap().netns.clone();
    assert_eq!(named(&mesh), None);
    // Nor after everything has been worked out again.
    mesh.apply(objects(&options("trustDomain: other.example")));
    assert_eq!(pod(&mesh.snapshot(), "cart-1").identity.to_string(), "spiffe://other.example/ns/shop/sa/cart");
    assert_eq!(named(&mesh), None);
}

#[test]
fn a_pod_without_ambient_is_known_but_not_enrolled() {
    let snapshot = mesh(&SHOP.replace("ambient", "none")).snapshot();
    assert_eq!(pod(&snapshot, "cart-1").protocol, Protocol::Tcp);
    assert_eq!(snapshot.enrolled_pods_on("n1").count(), 0);
}

#[test]
fn a_pod_whose_inbound_is_bypassed_is_enrolled_but_speaks_no_hbone() {
    let yaml = SHOP.replace(
        "annotations: {culvert.dev/netns",
        "annotations: {ambient.istio.io/bypass-inbound-capture: \"true\", culvert.dev/netns",
    );
    let snapshot = mesh(&yaml).snapshot();
    assert_eq!(pod(&snapshot, "cart-1").protocol, Protocol::Tcp);
    assert!(snapshot.enrolled_pods_on("n1").next().unwrap().bypass_inbound);
}

#[test]
fn a_pod_that_has_ended_is_gone() {
    for phase in ["Succeeded", "Failed"] {
        let yaml = SHOP.replace("status: {podIPs", &format!("status: {{phase: {phase}, podIPs"));
        let snapshot = mesh(&yaml).snapshot();
        assert_eq!(snapshot.workloads().len(), 0);
        assert_eq!(snapshot.workload_by_address(ip("10.0.1.1")), None);
        assert_eq!(snapshot.enrolled_pods_on("n1").count(), 0);
    }
}

#[test]
fn a_pod_of_a_file_without_an_address_is_reported() {
    let snapshot = mesh(&SHOP.replace("status: {podIPs", "status: {hostIPs")).snapshot();
    assert_eq!(snapshot.workloads().len(), 0);
    assert!(messages(&snapshot)[0].contains("Pod shop/cart-1: status.podIPs: missing"));
}

#[test]
fn a_pod_that_is_not_ready_is_an_endpoint_that_is_not_ready() {
    let cart = key("shop", "cart.shop.svc.cluster.local");
    for change in [
        ("status: {podIPs", "status: {phase: Running, conditions: [{type: Ready, status: \"False\"}], podIPs"),
        ("status: {podIPs", "status: {phase: Pending, podIPs"),
        ("  uid: 1", "  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n  uid: 1"),
    ] {
        let snapshot = mesh(&SHOP.replace(change.0, change.1)).snapshot();
        assert_eq!(endpoints(&snapshot, &cart), ["10.0.1.1:8080"], "{change:?}");
    }
}

#[test]
fn a_host_network_pod_is_reached_through_services_only() {
    let snapshot = mesh(&SHOP.replace("  nodeName: n1", "  hostNetwork: true\n  nodeName: n1")).snapshot();
    assert_eq!(snapshot.workload_by_address(ip("10.0.1.1")), None);
    assert_eq!(endpoints(&snapshot, &key("shop", "cart.shop.svc.cluster.local")), ["10.0.1.1:8080*"]);
    assert_eq!(pod(&snapshot, "cart-1").protocol, Protocol::Tcp);
}

#[test]
fn a_headless_service_has_endpoints_but_no_address() {
    let yaml =
        SHOP.replace("  clusterIP: 10.96.0.1\n", "  clusterIP: None\n").replace("[10.96.0.1, \"fd96::1\"]", "[None]");
    let snapshot = mesh(&yaml).snapshot();
    let cart = key("shop", "cart.shop.svc.cluster.local");
    assert_eq!(endpoints(&snapshot, &cart), ["10.0.1.1:8080*"]);
    assert!(snapshot.service(&cart).unwrap().vips.is_empty());
}

#[test]
fn an_external_name_service_is_none_and_says_so() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName, externalName: a.b}\n";
    let snapshot = mesh(yaml).snapshot();
    assert_eq!(snapshot.services().len(), 0);
    assert_eq!(messages(&snapshot).len(), 1);
}

#[test]
fn given_endpoint_slices_count_instead_of_the_selector() {
    let slice = r#"
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-x, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{name: http, port: 9090, protocol: TCP}]
endpoints:
- {addresses: [10.0.1.1], conditions: {ready: false}, targetRef: {kind: Pod, name: cart-1, namespace: shop}}
- {addresses: [192.0.2.7], conditions: {ready: true}}
"#;
    let mut state = mesh(SHOP);
    state.apply(objects(slice));
    let cart = key("shop", "cart.shop.svc.cluster.local");
    assert_eq!(endpoints(&state.snapshot(), &cart), ["10.0.1.1:9090", "192.0.2.7:9090*"]);
    assert_eq!(state.snapshot().workload_by_address(ip("192.0.2.7")), None);

    state.apply([Change::Remove(ObjectRef::new(Kind::EndpointSlice, "shop", "cart-x"))]);
    assert_eq!(endpoints(&state.snapshot(), &cart), ["10.0.1.1:8080*"]);
    assert_eq!(state.snapshot().workloads().len(), 1);
}

#[test]
fn a_service_entry_has_a_service_for_each_host_and_its_endpoints() {
    let yaml = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: data}
spec:
  hosts: [db.example.com, db2.example.com]
  addresses: [198.51.100.1, 203.0.113.0/24]
  ports: [{number: 5432, name: pg, protocol: TCP, targetPort: 15432}]
  resolution: STATIC
  endpoints:
  - {address: 192.0.2.1, weight: 3, locality: eu/eu-1/rack, serviceAccount: db}
  - {address: 192.0.2.2, ports: {pg: 6432}}
"#;
    let snapshot = mesh(yaml).snapshot();
    for host in ["db.example.com", "db2.example.com"] {
        assert_eq!(endpoints(&snapshot, &key("data", host)), ["192.0.2.1:15432*", "192.0.2.2:6432*"]);
    }
    let db = snapshot.workload_by_address(ip("192.0.2.1")).unwrap();
    assert_eq!((db.capacity, &*db.locality.zone, &*db.identity.service_account), (3, "eu-1", "db"));
    assert_eq!(snapshot.service_by_address(ip("203.0.113.77"), "x").unwrap().key.hostname, "db.example.com".into());
    assert_eq!(messages(&snapshot), [""; 0]);
}

#[test]
fn a_service_entry_selects_pods_and_workload_entries() {
    let yaml = r#"
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: all, namespace: shop}
spec:
  hosts: [all.example.com]
  addresses: [198.51.100.1]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http}]
  resolution: STATIC
  workloadSelector: {labels: {app: cart}}
---
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop, labels: {networking.istio.io/tunnel: http}}
spec: {address: 192.0.2.9, labels: {app: cart}, serviceAccount: cart, ports: {http: 81}}
"#;
    let mut state = mesh(SHOP);
    state.apply(objects(yaml));
    let snapshot = state.snapshot();
    assert_eq!(endpoints(&snapshot, &key("shop", "all.example.com")), ["10.0.1.1:80*", "192.0.2.9:81*"]);
    assert_eq!(snapshot.workload_by_address(ip("192.0.2.9")).unwrap().protocol, Protocol::Hbone);
    // Kubernetes Services select WorkloadEntries, too.
    assert_eq!(endpoints(&snapshot, &key("shop", "cart.shop.svc.cluster.local")), ["10.0.1.1:8080*", "192.0.2.9:81*"]);
}

#[test]
fn the_addresses_that_were_allocated_are_the_service_entrys() {
    let entry = |status: &str| {
        let spec = "spec: {hosts: [a.b], ports: [{number: 80, name: x}], resolution: DNS}";
        let meta = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}";
        format!("{meta}\n{spec}\n{status}\n")
    };
    let snapshot = mesh(&entry("status: {addresses: [{host: a.b, value: 240.240.0.1}]}")).snapshot();
    assert!(snapshot.service_by_address(ip("240.240.0.1"), "x").is_some());
    assert_eq!(messages(&snapshot), [""; 0]);

    let snapshot = mesh(&entry("")).snapshot();
    assert_eq!(messages(&snapshot), [""; 0], "it is given addresses");
    let snapshot = mesh(&entry("").replace("DNS", "NONE")).snapshot();
    assert!(messages(&snapshot)[0].contains("no virtual address"));
}

#[test]
fn what_a_service_entry_cannot_mean_is_reported() {
    for (spec, field) in [
        ("hosts: [\"*.a\"], addresses: [192.0.2.1], resolution: STATIC", "spec.hosts[0]"),
        ("hosts: [a.b], addresses: [192.0.2.0/24], resolution: DNS", "spec.addresses[0]"),
        ("hosts: [a.b], addresses: [x], resolution: DNS", "spec.addresses[0]"),
        ("hosts: [a.b], addresses: [192.0.2.1], resolution: DYNAMIC_DNS", "spec.resolution"),
        ("hosts: [a.b], addresses: [192.0.2.1], endpoints: [{address: 192.0.2.1}]", "spec.endpoints"),
        (
            "hosts: [a.b], addresses: [192.0.2.1], resolution: STATIC, endpoints: [{address: a.b}]",
            "spec.endpoints[0].address",
        ),
        ("hosts: [a.b], addresses: [192.0.2.1], exportTo: [\".\"]", "spec.exportTo"),
        ("hosts: [a.b], addresses: [192.0.2.1], ports: [{number: 70000, name: x}]", "spec.ports[0].number"),
    ] {
        let meta = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}";
        let snapshot = mesh(&format!("{meta}\nspec: {{{spec}}}\n")).snapshot();
        let fields: Vec<_> = snapshot.findings().map(|(_, finding)| finding.field.clone()).collect();
        assert!(fields.iter().any(|known| known == field), "{spec}: {fields:?}");
    }
}

#[test]
fn of_two_claims_to_an_address_the_clients_namespace_wins_then_the_kubernetes_service() {
    let entry = |namespace: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\n\
             spec: {{hosts: [e.com], addresses: [10.96.0.1, 10.96.0.0/16], ports: [{{number: 80, name: x}}]}}\n"
        )
    };
    let snapshot = mesh(&format!("{SHOP}{}{}", entry("a"), entry("b"))).snapshot();
    let at = |address: &str, namespace: &str| {
        snapshot.service_by_address(ip(address), namespace).unwrap().key.namespace.to_string()
    };
    assert_eq!(at("10.96.0.1", "elsewhere"), "shop");
    assert_eq!(at("10.96.0.1", "b"), "b");
    assert_eq!(at("10.96.9.9", "elsewhere"), "a");
    assert_eq!(at("10.96.9.9", "b"), "b");
}

#[test]
fn load_balancing_follows_the_service_then_its_annotation_then_the_namespace() {
    use crate::service::{LocalityMode, LocalityScope};
    let scopes = |namespace: &str, service: &str, spec: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, annotations: {{{namespace}}}}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a, annotations: {{{service}}}}}\nspec: {{{spec}}}\n"
        );
        let snapshot = mesh(&yaml).snapshot();
        let balancing = &snapshot.service(&key("a", "s.a.svc.cluster.local")).unwrap().load_balancing;
        (balancing.mode, balancing.scopes.last().copied())
    };
    let annotation = |value: &str| format!("networking.istio.io/traffic-distribution: {value}");
    let (zone, node) = (annotation("PreferClose"), annotation("PreferSameNode"));
    assert_eq!(scopes("", "", ""), (LocalityMode::Any, None));
    assert_eq!(scopes(&zone, "", ""), (LocalityMode::Failover, Some(LocalityScope::Zone)));
    assert_eq!(scopes(&zone, &node, ""), (LocalityMode::Failover, Some(LocalityScope::Node)));
    assert_eq!(
        scopes(&zone, &node, "trafficDistribution: PreferSameZone"),
        (LocalityMode::Failover, Some(LocalityScope::Zone))
    );
    assert_eq!(scopes(&zone, "", "internalTrafficPolicy: Local"), (LocalityMode::Strict, Some(LocalityScope::Node)));
}

#[test]
fn publishing_addresses_that_are_not_ready_stays_with_the_service_that_says_so() {
    // Istio 1.31: one such Service leaked it to every Service with the same preset (istio#60422).
    let service = |name: &str, extra: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
             spec: {{trafficDistribution: PreferClose{extra}}}\n"
        )
    };
    let yaml = service("s", ", publishNotReadyAddresses: true") + &service("t", "");
    let snapshot = mesh(&yaml).snapshot();
    let allows = |name: &str| {
        snapshot.service(&key("a", &format!("{name}.a.svc.cluster.local"))).unwrap().load_balancing.allow_unhealthy
    };
    assert_eq!((allows("s"), allows("t")), (true, false));
}

#[test]
fn the_more_specific_waypoint_label_wins() {
    let binding = |namespace: &str, pod: &str| {
        let yaml = SHOP
            .replace("istio.io/dataplane-mode: ambient", &format!("istio.io/dataplane-mode: ambient{namespace}"))
            .replace("labels: {app: cart, ", &format!("labels: {{app: cart{pod}, "));
        let snapshot = mesh(&yaml).snapshot();
        super::tests::pod(&snapshot, "cart-1").waypoint.as_ref().map(|binding| binding.gateway.to_string())
    };
    assert_eq!(binding("", ""), None);
    assert_eq!(binding(", istio.io/use-waypoint: w", ""), Some("shop/w".to_owned()));
    assert_eq!(binding(", istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: x", ""), Some("x/w".to_owned()));
    assert_eq!(binding(", istio.io/use-waypoint: w", ", istio.io/use-waypoint: v"), Some("shop/v".to_owned()));
    assert_eq!(binding(", istio.io/use-waypoint: w", ", istio.io/use-waypoint: none"), None);
    // The waypoint's own pods are not behind the waypoint.
    assert_eq!(binding(", istio.io/use-waypoint: w", ", gateway.networking.k8s.io/gateway-name: w"), None);
}

#[test]
fn a_waypoint_is_a_gateway_of_its_class() {
    let gateway = |class: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: w, namespace: shop, labels: {{istio.io/waypoint-for: all}}}}\n\
             spec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
        )
    };
    let snapshot = mesh(&gateway("istio-waypoint")).snapshot();
    let waypoint = snapshot.waypoint(&NamespacedName::new("shop", "w")).unwrap();
    assert_eq!((&*waypoint.service, waypoint.port), ("w.shop.svc.cluster.local", 15008));
    assert_eq!(waypoint.serves, crate::waypoint::WaypointFor::All);
    assert_eq!(mesh(&gateway("istio")).snapshot().waypoints().len(), 0);
}

#[test]
fn policies_apply_by_mesh_namespace_and_selector() {
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    };
    let yaml = [
        SHOP.to_owned(),
        policy("mesh", "istio-system", ""),
        policy("mesh-cart", "istio-system", "selector: {matchLabels: {app: cart}}"),
        policy("mesh-other", "istio-system", "selector: {matchLabels: {app: other}}"),
        policy("all", "shop", ""),
        policy("cart", "shop", "selector: {matchLabels: {version: v1, app: cart}}"),
        policy("v2", "shop", "selector: {matchLabels: {version: v2, app: cart}}"),
        policy("elsewhere", "other", ""),
    ];
    let snapshot = mesh(&yaml.concat()).snapshot();
    let names: Vec<_> =
        snapshot.policies_for(&pod(&snapshot, "cart-1")).iter().map(|policy| policy.name.name.to_string()).collect();
    assert_eq!(names, ["all", "cart", "mesh", "mesh-cart"]);
    assert_eq!(snapshot.authorization_policies().len(), 7);
}

#[test]
fn rules_decide_who_is_in_the_mesh_and_changes_of_options_keep_them() {
    let selectors = EnrolmentRules::parse_selectors("[{podSelector: {matchLabels: {app: cart}}}]").unwrap();
    let rules = EnrolmentRules { enablement_selectors: selectors, ..EnrolmentRules::default() };
    let enrolled = |mesh: &Mesh| mesh.snapshot().enrolled_pods_on("n1").count();
    let unlabelled = SHOP.replace("ambient", "none");
    let mut mesh = Mesh::with_rules(rules);
    mesh.apply(objects(&unlabelled));
    assert_eq!(enrolled(&mesh), 1);
    mesh.apply(objects(&options("trustDomain: other")));
    assert_eq!(enrolled(&mesh), 1);
    let exclude_namespaces = ["shop".into()].into();
    let mut mesh = Mesh::with_rules(EnrolmentRules { exclude_namespaces, ..EnrolmentRules::default() });
    mesh.apply(objects(SHOP));
    assert_eq!(enrolled(&mesh), 0);
}

#[test]
fn dns_is_captured_as_the_pod_says_or_else_the_options() {
    let dns = |pod: &str, mesh_options: &str| {
        let annotations = format!("annotations: {{{pod}culvert.dev/netns");
        let mut mesh = mesh(&SHOP.replace("annotations: {culvert.dev/netns", &annotations));
        mesh.apply(objects(&options(mesh_options)));
        mesh.snapshot().enrolled_pods_on("n1").next().unwrap().dns_capture
    };
    let (on, off) = ("culvert: {dns-capture: true}", "culvert: {dns-capture: false}");
    let (pod_on, pod_off) = ("ambient.istio.io/dns-capture: \"true\", ", "ambient.istio.io/dns-capture: \"false\", ");
    assert!(dns("", "{}") && dns("", on) && !dns("", off));
    assert!(dns(pod_on, off) && !dns(pod_off, on));
}
