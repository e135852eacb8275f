//! The binary, as people and scripts call it.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should stop where it stands")]

use std::process::Command;

/// Exit status, standard output and standard error.
struct Said {
    status: i32,
    out: String,
    err: String,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}\n{}{}", self.status, self.out, self.err)
    }
}

fn ctl(arguments: &str) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_culvertctl"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
        .env_remove("CULVERT_ADMIN")
        .env_remove("CULVERT_CONFIG_DIR")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    Said {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn an_allowed_call_is_explained() {
    insta::assert_snapshot!(ctl("simulate --config-dir mesh --from shop/front-1 --to cart:80"), @r#"
status 0
shop/front-1 -> cart:80: allowed, over HBONE

path    node/n1 -> node/n2
check   node/n2 allows: allowed by AuthorizationPolicy shop/cart-callers, rule
        0: from[0].source.principals[0] = "cluster.local/ns/shop/sa/front"
        (source.principal), to[0].operation.ports[0] = "8080" (destination.port)
dry run node/n2 would allow: with istio-system/no-batch enforced: allowed by
        AuthorizationPolicy shop/cart-callers, rule 0:
        from[0].source.principals[0] = "cluster.local/ns/shop/sa/front"
        (source.principal), to[0].operation.ports[0] = "8080" (destination.port)
"#);
}

#[test]
fn a_simulation_as_json_is_the_stable_interface() {
    insta::assert_snapshot!(ctl("simulate --config-dir mesh --from shop/front-1 --to cart:80 -o json"), @r#"
status 0
{
  "outcome": "allowed",
  "transport": "hbone",
  "path": [
    "node/n1",
    "node/n2"
  ],
  "checks": [
    {
      "at": "node/n2",
      "layer": "l4",
      "decision": "allow",
      "policy": "shop/cart-callers",
      "rule": 0,
      "reason": "allowed by AuthorizationPolicy shop/cart-callers, rule 0: from[0].source.principals[0] = \"cluster.local/ns/shop/sa/front\" (source.principal), to[0].operation.ports[0] = \"8080\" (destination.port)"
    },
    {
      "at": "node/n2",
      "layer": "l4",
      "decision": "allow",
      "policy": "istio-system/no-batch",
      "rule": null,
      "reason": "with istio-system/no-batch enforced: allowed by AuthorizationPolicy shop/cart-callers, rule 0: from[0].source.principals[0] = \"cluster.local/ns/shop/sa/front\" (source.principal), to[0].operation.ports[0] = \"8080\" (destination.port)",
      "dry_run": true
    }
  ],
  "route": null
}
"#);
}

#[test]
fn a_simulation_as_yaml() {
    insta::assert_snapshot!(ctl("-o yaml simulate --config-dir mesh --from shop/front-1 --to empty:80"), @r#"
status 3
outcome: unroutable
transport: null
path:
- node/n1
checks:
- at: node/n1
  layer: l4
  decision: deny
  policy: null
  rule: null
  reason: "service shop/empty.shop.svc.cluster.local has no endpoint for port 80: it has none: check its selector against the labels of the pods"
route: null
"#);
}

#[test]
fn a_denied_call_is_explained() {
    insta::assert_snapshot!(ctl("simulate --config-dir mesh --from shop/front-1 --to cart-1:9090"), @r#"
status 2
shop/front-1 -> cart-1:9090: denied, over HBONE

path    node/n1 -> node/n2
check   node/n2 denies: ALLOW policies apply, and none of them matches:
        shop/cart-callers, rule 0: to[0].operation.ports does not include 9090
dry run node/n2 would deny: with istio-system/no-batch enforced: ALLOW policies
        apply, and none of them matches: shop/cart-callers, rule 0:
        to[0].operation.ports does not include 9090
"#);
    insta::assert_snapshot!(ctl("simulate --config-dir mesh --from plain/stray --to cart.shop:80"), @r#"
status 2
plain/stray -> cart.shop:80: denied, in plaintext

path    node/n2
check   node/n2 denies: PeerAuthentication shop/strict requires mTLS on port
        8080, and the call came in plaintext
dry run node/n2 would deny: with istio-system/no-batch enforced:
        PeerAuthentication shop/strict requires mTLS on port 8080, and the call
        came in plaintext
"#);
}

#[test]
fn the_exit_status_is_the_outcome() {
    let status = |arguments| ctl(&format!("simulate --config-dir mesh {arguments}")).status;
    assert_eq!(status("--from shop/front-1 --to cart:80"), 0);
    assert_eq!(status("--from shop/front-1 --to nothing:80"), 1);
    assert_eq!(status("--from shop/front-1"), 1);
    assert_eq!(status("--from shop/front-1 --to cart:80 --plaintext"), 2);
    assert_eq!(status("--from shop/front-1 --to empty:80"), 3);
}

#[test]
fn errors_are_one_line_with_the_next_step() {
    insta::assert_snapshot!(ctl("simulate --from a/b --to c:80").err, @"culvertctl: simulate reads a directory of YAML: give --config-dir DIR");
    insta::assert_snapshot!(ctl("simulate --config-dir mesh --from shop/fornt --to cart:80").err, @"culvertctl: no pod shop/fornt in the configuration: there are shop/cart-1, shop/front-1");
    insta::assert_snapshot!(ctl("simulate --config-dir nowhere --from a/b --to c:80").err, @"culvertctl: --config-dir nowhere: No such file or directory (os error 2)");
    insta::assert_snapshot!(ctl("simulate --config-dir faulty --from a/b --to c:80").err, @r#"culvertctl: faulty/b.yaml:1:7: unclosed bracket '['"#);
    insta::assert_snapshot!(ctl("workloads --admin http://127.0.0.1:1").err, @"culvertctl: no agent at 127.0.0.1:1; is culvert node running here? --admin URL names another, --config-dir DIR none: Connection refused (os error 111)");
}

#[test]
fn a_directory_is_listed() {
    insta::assert_snapshot!(ctl("workloads --config-dir mesh"), @r#"
status 0
NAMESPACE  NAME     ADDRESS   NODE  WAYPOINT  PROTOCOL
plain      stray    10.0.1.9  n1    none      TCP
shop       cart-1   10.0.2.1  n2    none      HBONE
shop       front-1  10.0.1.1  n1    none      HBONE
"#);
    insta::assert_snapshot!(ctl("services --config-dir mesh"), @r#"
status 0
NAMESPACE  NAME   VIP                PORTS    WAYPOINT
shop       cart   10.96.0.1,fd96::1  80>8080  none
shop       empty  10.96.0.2          80       none
"#);
    insta::assert_snapshot!(ctl("policies --config-dir mesh"), @r#"
status 0
NAMESPACE     NAME          ACTION          RULES  SELECTS
istio-system  no-batch      DENY (dry run)  1      the mesh
shop          cart-callers  ALLOW           1      app=cart
"#);
    insta::assert_snapshot!(ctl("policies --config-dir mesh -n istio-system -o json"), @r#"
status 0
[
  {
    "action": "DENY",
    "dryRun": true,
    "name": {
      "name": "no-batch",
      "namespace": "istio-system"
    },
    "rules": [
      {
        "from": [
          {
            "source.serviceAccounts": [
              "shop/batch"
            ]
          }
        ]
      }
    ],
    "scope": "Mesh"
  }
]
"#);
    insta::assert_snapshot!(ctl("workloads --config-dir mesh -n nowhere"), @r#"
status 0
no workloads
"#);
}

#[test]
fn an_analysis_names_every_mistake_and_its_place() {
    insta::assert_snapshot!(ctl("analyze --config-dir faulty"), @r#"
status 2
error    faulty/a.yaml:9:14: AuthorizationPolicy shop/p: unknown field
         spec.rules[0].from[0].sorce: it has no effect
error    faulty/b.yaml:1:7: unclosed bracket '['
error    AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principals[0]:
         "spiffe://cluster.local/ns/a/sa/b" must be written without spiffe://:
         here it denies what it seems to mean
warning  faulty/a.yaml:13:7: Deployment shop/d: Culvert does not read Deployment
         of apps/v1: check the spelling of kind and apiVersion, or remove it
warning  AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.methods: L4
         cannot see methods: taken to match, so that more is denied; attach the
         policy to a waypoint by targetRefs
"#);
    insta::assert_snapshot!(ctl("analyze --config-dir mesh"), @r#"
status 0
no findings
"#);
}

#[test]
fn scripts_for_shells_are_printed() {
    let said = ctl("completions bash");
    assert_eq!(said.status, 0);
    assert!(said.out.contains("_culvertctl()"), "{}", said.out);
}

#[test]
fn help_is_no_error() {
    assert_eq!(ctl("--help").status, 0);
    assert_eq!(ctl("simulate --help").status, 0);
    assert_eq!(ctl("").status, 1);
    assert_eq!(ctl("nonsense").status, 1);
}

#[test]
fn a_waypoint_is_generated_without_a_cluster() {
    let said = ctl("waypoint generate -n shop --name web --for workload");
    assert_eq!(said.status, 0, "{}", said.err);
    insta::assert_snapshot!(said.out, @r"
    apiVersion: gateway.networking.k8s.io/v1
    kind: Gateway
    metadata:
      labels:
        istio.io/waypoint-for: workload
      name: web
      namespace: shop
    spec:
      gatewayClassName: istio-waypoint
      listeners:
      - name: mesh
        port: 15008
        protocol: HBONE
    ");
    let json = ctl("waypoint apply --dry-run -n shop -o json").out;
    assert!(json.contains("\"name\": \"waypoint\""), "{json}");
    for (bad, word) in [
        ("waypoint generate --name none", "use-waypoint: none"),
        ("waypoint generate --for some", "service, workload, all, none"),
        ("waypoint delete", "--all"),
        ("waypoint delete a --all", "--all"),
    ] {
        let said = ctl(bad);
        assert!(said.status == 1 && said.err.contains(word), "{bad}: {}", said.err);
    }
}
