use super::*;
use crate::mesh::tests::mesh;

/// Two namespaces with a Service of the same name, a headless service, and ServiceEntries of every kind.
const MESH: &str = "
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, hostname: web-0, subdomain: web}
status: {podIPs: [{ip: 10.0.0.3}, {ip: 'fd00::3'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, hostname: Web-1, subdomain: raft}
status: {podIPs: [{ip: 10.0.0.4}], conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIPs: [10.96.0.1, 'fd96::1'], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: bank}
spec: {clusterIPs: [10.96.0.2], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: raft, namespace: shop}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: None, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: bank}
spec: {hosts: [api.example.com], addresses: [192.0.2.1], resolution: NONE, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: own, namespace: shop}
spec: {hosts: [own.example.com], addresses: [192.0.2.2], resolution: NONE, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: own, namespace: bank, creationTimestamp: '2020-01-01T00:00:00Z'}
spec: {hosts: [own.example.com], addresses: [192.0.2.3], resolution: NONE, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ['*.wild.example.com', '*.deep.wild.example.com']
  addresses: [192.0.2.4]
  resolution: STATIC
  endpoints: [{address: 198.51.100.1}]
  ports: [{number: 443, name: tls}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: networks, namespace: shop}
spec: {hosts: [networks.example.com], addresses: [192.0.2.128/25], resolution: NONE, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: none, namespace: shop}
spec: {hosts: [none.example.com], resolution: NONE, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: allocated, namespace: shop}
spec: {hosts: [allocated.example.com], resolution: DNS, ports: [{number: 443, name: tls}]}
status: {addresses: [{value: 240.240.0.9, host: allocated.example.com}, {value: '2001:2::9', host: allocated.example.com}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: automatic, namespace: shop}
spec: {hosts: [automatic.example.com], resolution: DNS, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: refused, namespace: shop, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}}
spec: {hosts: [refused.example.com], resolution: DNS, ports: [{number: 443, name: tls}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: shop, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}}
spec:
  hosts: [static.example.com]
  resolution: STATIC
  endpoints: [{address: 198.51.100.1}, {address: 198.51.100.2}]
  ports: [{number: 443, name: tls}]
";

/// The answer in one line.
fn ask(client: &str, name: &str, family: Family) -> String {
    let snapshot = mesh(MESH).snapshot();
    let client = snapshot.pod("shop", client).unwrap();
    match resolve(&snapshot, client, name, family) {
        Answer::Forward => "forward".to_owned(),
        Answer::Known { alias_of, addresses } => {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let alias = alias_of.map(|name| format!("{name}: ")).unwrap_or_default();
            format!("{alias}{}", addresses.join(" "))
        }
    }
}

#[test]
fn every_name_is_answered_as_it_should() {
    for (fact, name, v4, v6) in [
        ("a Service by its full name", "cart.shop.svc.cluster.local", "10.96.0.1", "fd96::1"),
        ("by its name alone", "cart", "10.96.0.1", "fd96::1"),
        ("by name and namespace", "cart.shop", "10.96.0.1", "fd96::1"),
        ("up to `svc`", "cart.shop.svc", "10.96.0.1", "fd96::1"),
        ("in another namespace; no address of the other family", "cart.bank.svc.cluster.local", "10.96.0.2", ""),
        ("a name below a Service is the cluster's to tell", "x.cart.shop.svc.cluster.local", "forward", "forward"),
        (
            "a Service behind a search domain may be a pod's name",
            "cart.bank.shop.svc.cluster.local",
            "forward",
            "forward",
        ),
        ("a headless service has its ready pods", "web.shop.svc.cluster.local", "10.0.0.3", "fd00::3"),
        ("all of them where it says so", "raft.shop.svc.cluster.local", "10.0.0.3 10.0.0.4", "fd00::3"),
        ("without any, the cluster's DNS tells", "nobody.shop.svc.cluster.local", "forward", "forward"),
        ("a pod of it by its name", "web-0.web.shop.svc.cluster.local", "10.0.0.3", "fd00::3"),
        ("by name and service, from its namespace", "web-0.web", "10.0.0.3", "fd00::3"),
        ("a pod below the Service that it names only", "web-0.raft.shop.svc.cluster.local", "forward", "forward"),
        ("where it need not be ready", "web-1.raft.shop.svc.cluster.local", "10.0.0.4", ""),
        ("and else is the cluster's to tell", "web-1.web.shop.svc.cluster.local", "forward", "forward"),
        ("pods that are not there, too", "web-2.web.shop.svc.cluster.local", "forward", "forward"),
        ("a ServiceEntry of another namespace", "api.example.com", "192.0.2.1", ""),
        (
            "behind the first search domain",
            "api.example.com.shop.svc.cluster.local",
            "api.example.com: 192.0.2.1",
            "api.example.com: ",
        ),
        ("behind the second", "api.example.com.svc.cluster.local", "api.example.com: 192.0.2.1", "api.example.com: "),
        ("behind the third", "api.example.com.cluster.local", "api.example.com: 192.0.2.1", "api.example.com: "),
        ("not behind another namespace's", "api.example.com.bank.svc.cluster.local", "forward", "forward"),
        ("of two, the client's namespace's", "own.example.com", "192.0.2.2", ""),
        ("a wildcard", "a.wild.example.com", "192.0.2.4", ""),
        ("of any depth", "a.b.wild.example.com", "192.0.2.4", ""),
        ("but not its own end", "wild.example.com", "forward", "forward"),
        (
            "a wildcard behind a search domain",
            "a.wild.example.com.shop.svc.cluster.local",
            "a.wild.example.com: 192.0.2.4",
            "a.wild.example.com: ",
        ),
        ("networks are no addresses", "networks.example.com", "forward", "forward"),
        ("nothing is allocated where the dialled address counts", "none.example.com", "forward", "forward"),
        ("addresses of the status", "allocated.example.com", "240.240.0.9", "2001:2::9"),
        ("none where they are refused", "refused.example.com", "forward", "forward"),
        ("then endpoints, where they are addresses", "static.example.com", "198.51.100.1 198.51.100.2", ""),
        ("unknown names", "example.com", "forward", "forward"),
        ("the end of the cluster's names", "svc.cluster.local", "forward", "forward"),
        ("nothing at all", "", "forward", "forward"),
        ("only dots", "...", "forward", "forward"),
    ] {
        assert_eq!([ask("front", name, Family::V4), ask("front", name, Family::V6)], [v4, v6], "{fact}: {name:?}");
    }
}

#[test]
fn a_host_without_addresses_gets_virtual_ones_that_lead_to_it() {
    let snapshot = mesh(MESH).snapshot();
    let client = snapshot.pod("shop", "front").unwrap();
    for family in [Family::V4, Family::V6] {
        let Answer::Known { addresses, .. } = resolve(&snapshot, client, "automatic.example.com", family) else {
            panic!("known")
        };
        let [ip] = addresses[..] else { panic!("one address: {addresses:?}") };
        assert_eq!(&*snapshot.service_by_address(ip, "shop").unwrap().name, "automatic");
    }
}

#[test]
fn a_client_is_not_given_addresses_that_it_cannot_reach() {
    assert_eq!(ask("old", "cart", Family::V6), "");
    assert_eq!(ask("old", "cart", Family::V4), "10.96.0.1");
}
