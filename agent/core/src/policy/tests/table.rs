//! One row per fact.

use super::*;

const CART: &str = "cluster.local/ns/shop/sa/cart";
const PLAIN: &str = "plaintext";
/// Allows everyone.
const ALL: &str = "{rules: [{}]}";

#[test]
fn emptiness() {
    check(&[
        Row("no policy allows", &[], CART, true),
        Row("an ALLOW policy without rules denies everything", &["{}"], CART, false),
        Row("rules: [] is the same", &["{rules: []}"], CART, false),
        Row("rules: [{}] allows everything", &[ALL], CART, true),
        Row("rules: [{}] allows plaintext", &[ALL], PLAIN, true),
        Row("a DENY policy without rules denies nothing", &["{action: DENY}"], CART, true),
        Row("a DENY policy with rules: [{}] denies everything", &["{action: DENY, rules: [{}]}"], CART, false),
        Row("an empty source never matches in ALLOW", &["{rules: [{from: [{source: {}}]}]}"], CART, false),
        Row("an empty source never matches in DENY", &["{action: DENY, rules: [{from: [{source: {}}]}]}"], CART, true),
        Row("a missing source never matches", &["{action: DENY, rules: [{from: [{}]}]}"], CART, true),
        Row("an empty operation never matches", &["{rules: [{to: [{operation: {}}]}]}"], CART, false),
        Row("a condition without values never matches", &["{rules: [{when: [{key: source.ip}]}]}"], CART, false),
        Row(
            "an empty source beside one that matches does not spoil it",
            &["{rules: [{from: [{source: {}}, {source: {namespaces: [shop]}}]}]}"],
            CART,
            true,
        ),
        Row("an empty list is as if it were not there", &["{rules: [{from: []}]}"], CART, true),
    ]);
}

#[test]
fn order() {
    const DENY_SHOP: &str = "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}";
    const ALLOW_OTHER: &str = "{rules: [{from: [{source: {namespaces: [other]}}]}]}";
    check(&[
        Row("DENY wins over ALLOW", &[ALL, DENY_SHOP], CART, false),
        Row("DENY wins in whatever order", &[DENY_SHOP, ALL], CART, false),
        Row("a DENY that does not match leaves it to ALLOW", &[DENY_SHOP, ALL], "cluster.local/ns/other/sa/x", true),
        Row("without ALLOW policies what is not denied is allowed", &[DENY_SHOP], PLAIN, true),
        Row("an ALLOW that does not match denies", &[ALLOW_OTHER], CART, false),
        Row("one ALLOW of several suffices", &[ALLOW_OTHER, ALL], CART, true),
        Row("one rule of several suffices", &["{rules: [{from: [{source: {namespaces: [x]}}]}, {}]}"], CART, true),
        Row("a dry-run DENY denies nothing", &["dry {action: DENY, rules: [{}]}"], CART, true),
        Row("a dry-run ALLOW is no ALLOW policy", &["dry {}"], CART, true),
        Row("a dry-run ALLOW allows nothing", &["{}", "dry {rules: [{}]}"], CART, false),
        Row("CUSTOM is not enforced", &["{action: CUSTOM, provider: {name: x}, rules: [{}]}"], CART, true),
        Row("AUDIT is not enforced", &["{action: AUDIT, rules: [{}]}"], CART, true),
        Row(
            "targetRefs are not for nodes",
            &["{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}]}"],
            CART,
            true,
        ),
        Row(
            "targetRefs beside a selector are enforced by nodes too",
            &["{selector: {matchLabels: {app: x}}, targetRefs: [{kind: Service, name: w}]}"],
            CART,
            false,
        ),
    ]);
}

#[test]
fn clauses() {
    check(&[
        Row(
            "from AND to: both",
            &["{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['8080']}}]}]}"],
            CART,
            true,
        ),
        Row(
            "from AND to: only from",
            &["{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "from AND to: only to",
            &["{rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {ports: ['8080']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "sources are alternatives",
            &["{rules: [{from: [{source: {namespaces: [x]}}, {source: {namespaces: [shop]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "operations are alternatives",
            &["{rules: [{to: [{operation: {ports: ['1']}}, {operation: {ports: ['8080']}}]}]}"],
            CART,
            true,
        ),
        Row(
            "fields of a source are all required",
            &["{rules: [{from: [{source: {namespaces: [shop], ipBlocks: [10.9.0.0/16]}}]}]}"],
            CART,
            false,
        ),
        Row("values are alternatives", &["{rules: [{from: [{source: {namespaces: [x, shop, y]}}]}]}"], CART, true),
        Row(
            "every when is required",
            &["{rules: [{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['1']}]}]}"],
            CART,
            false,
        ),
        Row(
            "values and notValues are both required",
            &["{rules: [{when: [{key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]}]}]}"],
            CART,
            false,
        ),
        Row(
            "a not field holds if none of its values matches",
            &["{rules: [{from: [{source: {notNamespaces: [x, y]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "a not field fails if one of its values matches",
            &["{rules: [{from: [{source: {notNamespaces: [x, shop]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "a not field beside a positive one",
            &["{rules: [{from: [{source: {namespaces: ['*'], notPrincipals: ['*/sa/cart']}}]}]}"],
            CART,
            false,
        ),
    ]);
}

#[test]
fn principals() {
    macro_rules! rule {
        ($value:literal) => {
            &[concat!("{rules: [{from: [{source: {principals: ['", $value, "']}}]}]}")]
        };
    }
    check(&[
        Row("exact", rule!("cluster.local/ns/shop/sa/cart"), CART, true),
        Row("another account", rule!("cluster.local/ns/shop/sa/cart2"), CART, false),
        Row("a prefix of the account", rule!("cluster.local/ns/shop/sa/car"), CART, false),
        Row("case counts", rule!("cluster.local/ns/shop/sa/Cart"), CART, false),
        Row("prefix", rule!("cluster.local/ns/shop/*"), CART, true),
        Row("prefix within the trust domain", rule!("clus*"), CART, true),
        Row("prefix as long as the whole", rule!("cluster.local/ns/shop/sa/cart*"), CART, true),
        Row("prefix of another namespace", rule!("cluster.local/ns/shopping/*"), CART, false),
        Row("suffix", rule!("*/ns/shop/sa/cart"), CART, true),
        Row("suffix within the account", rule!("*art"), CART, true),
        Row("suffix that reaches into the trust domain", rule!("*local/ns/shop/sa/cart"), CART, true),
        Row("suffix of another trust domain", rule!("*remote/ns/shop/sa/cart"), CART, false),
        Row("suffix longer than the whole", rule!("*xcluster.local/ns/shop/sa/cart"), CART, false),
        Row("* is any identity", rule!("*"), CART, true),
        Row("* is not plaintext", rule!("*"), PLAIN, false),
        Row("plaintext has no principal", rule!("*cart"), PLAIN, false),
        Row("spiffe:// never matches in ALLOW", rule!("spiffe://cluster.local/ns/shop/sa/cart"), CART, false),
        Row("an inner * never matches in ALLOW", rule!("cluster.local/ns/*/sa/cart"), CART, false),
        Row(
            "another trust domain is another principal",
            rule!("cluster.local/ns/shop/sa/cart"),
            "other/ns/shop/sa/cart",
            false,
        ),
    ]);
}

#[test]
fn without_an_identity_negative_fields_hold() {
    check(&[
        Row("notPrincipals", &["{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}"], PLAIN, false),
        Row(
            "notPrincipals, with identity",
            &["{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}"],
            CART,
            true,
        ),
        Row("notNamespaces", &["{action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}"], PLAIN, false),
        Row(
            "notServiceAccounts",
            &["{action: DENY, rules: [{from: [{source: {notServiceAccounts: [cart]}}]}]}"],
            PLAIN,
            false,
        ),
        Row(
            "notTrustDomains",
            &["{action: DENY, rules: [{from: [{source: {notTrustDomains: [cluster.local]}}]}]}"],
            PLAIN,
            false,
        ),
        Row("notValues", &["{rules: [{when: [{key: source.principal, notValues: ['*']}]}]}"], PLAIN, true),
        Row("namespaces", &["{rules: [{from: [{source: {namespaces: ['*']}}]}]}"], PLAIN, false),
        Row("serviceAccounts", &["{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}"], PLAIN, false),
        Row("trustDomains", &["{rules: [{from: [{source: {trustDomains: ['*']}}]}]}"], PLAIN, false),
        Row("addresses need none", &["{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}"], PLAIN, true),
    ]);
}

#[test]
fn other_fields_of_the_source() {
    check(&[
        Row("namespace exact", &["{rules: [{from: [{source: {namespaces: [shop]}}]}]}"], CART, true),
        Row("namespace prefix", &["{rules: [{from: [{source: {namespaces: ['sh*']}}]}]}"], CART, true),
        Row("namespace suffix", &["{rules: [{from: [{source: {namespaces: ['*op']}}]}]}"], CART, true),
        Row(
            "an inner * in a namespace never matches in ALLOW",
            &["{rules: [{from: [{source: {namespaces: ['s*p']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "account in the policy's namespace",
            &["{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "account of another namespace by its short name",
            &["{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}"],
            "cluster.local/ns/x/sa/cart",
            false,
        ),
        Row(
            "account with its namespace",
            &["{rules: [{from: [{source: {serviceAccounts: [x/cart]}}]}]}"],
            "cluster.local/ns/x/sa/cart",
            true,
        ),
        Row(
            "accounts of any trust domain",
            &["{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}"],
            "other/ns/shop/sa/cart",
            true,
        ),
        Row("accounts have no wildcards", &["{rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}"], CART, false),
        Row("notServiceAccounts", &["{rules: [{from: [{source: {notServiceAccounts: [shop/cart]}}]}]}"], CART, false),
        Row("trust domain", &["{rules: [{from: [{source: {trustDomains: [cluster.local]}}]}]}"], CART, true),
        Row(
            "another trust domain",
            &["{rules: [{from: [{source: {trustDomains: [cluster.local]}}]}]}"],
            "other/ns/shop/sa/cart",
            false,
        ),
        Row("trust domain prefix", &["{rules: [{from: [{source: {trustDomains: ['cluster.*']}}]}]}"], CART, true),
        Row(
            "namespaces AND trustDomains",
            &["{rules: [{from: [{source: {namespaces: [shop], trustDomains: [other]}}]}]}"],
            CART,
            false,
        ),
        Row("notTrustDomains", &["{rules: [{from: [{source: {notTrustDomains: [other]}}]}]}"], CART, true),
        Row("address", &["{rules: [{from: [{source: {ipBlocks: [10.0.0.1]}}]}]}"], CART, true),
        Row("network", &["{rules: [{from: [{source: {ipBlocks: [10.0.0.0/30]}}]}]}"], CART, true),
        Row("network with host bits", &["{rules: [{from: [{source: {ipBlocks: [10.0.0.9/8]}}]}]}"], CART, true),
        Row("another network", &["{rules: [{from: [{source: {ipBlocks: [10.0.0.2/31]}}]}]}"], CART, false),
        Row(
            "a mapped IPv4 network",
            &["{rules: [{from: [{source: {ipBlocks: ['::ffff:10.0.0.0/104']}}]}]}"],
            CART,
            true,
        ),
        Row("all of IPv6 is not IPv4", &["{rules: [{from: [{source: {ipBlocks: ['::/0']}}]}]}"], CART, false),
        Row("notIpBlocks", &["{rules: [{from: [{source: {notIpBlocks: [10.0.0.0/8]}}]}]}"], CART, false),
    ]);
}

#[test]
fn conditions() {
    macro_rules! when {
        ($key:literal, $value:literal) => {
            &[concat!("{rules: [{when: [{key: ", $key, ", values: ['", $value, "']}]}]}")]
        };
    }
    check(&[
        Row("source.ip", when!("source.ip", "10.0.0.0/8"), CART, true),
        Row("source.namespace", when!("source.namespace", "shop"), CART, true),
        Row("source.principal", when!("source.principal", "cluster.local/ns/shop/sa/cart"), CART, true),
        Row("source.serviceAccount", when!("source.serviceAccount", "shop/cart"), CART, true),
        Row("source.serviceAccount short", when!("source.serviceAccount", "cart"), CART, true),
        Row("source.serviceAccount, another", when!("source.serviceAccount", "pay"), CART, false),
        Row("source.trustDomain", when!("source.trustDomain", "cluster.local"), CART, true),
        Row("source.trustDomain, another", when!("source.trustDomain", "other"), CART, false),
        Row("destination.ip", when!("destination.ip", "10.0.1.1"), CART, true),
        Row("destination.ip, another", when!("destination.ip", "10.0.0.1"), CART, false),
        Row("destination.port", when!("destination.port", "8080"), CART, true),
        Row("destination.port, another", when!("destination.port", "80"), CART, false),
        Row("notPorts", &["{rules: [{to: [{operation: {notPorts: ['8080']}}]}]}"], CART, false),
        Row("notPorts, another", &["{rules: [{to: [{operation: {notPorts: ['80']}}]}]}"], CART, true),
    ]);
}

#[test]
fn trust_domain_aliases_are_as_good_as_the_mesh() {
    let aliases: [Arc<str>; 2] = ["old.example".into(), "older.example".into()];
    let allowed = |mesh, caller: &str, value: &str| {
        let settings = Settings { trust_domain: mesh, ..settings(&aliases) };
        let spec = format!("{{rules: [{{from: [{{source: {{principals: ['{value}']}}}}]}}]}}");
        let caller = Caller::new(caller);
        decide(settings, &EffectivePeerAuthentication::default(), &policies(&[&spec]), &caller.call(), None).allowed
    };
    let rows = [
        ("new.example", "new.example/ns/a/sa/b", "old.example/ns/a/sa/b", true),
        ("new.example", "old.example/ns/a/sa/b", "new.example/ns/a/sa/b", true),
        ("new.example", "old.example/ns/a/sa/b", "older.example/ns/a/*", true),
        ("new.example", "new.example/ns/a/sa/b", "cluster.local/ns/a/sa/b", true),
        ("new.example", "cluster.local/ns/a/sa/b", "new.example/ns/a/sa/b", false),
        ("new.example", "foreign/ns/a/sa/b", "new.example/ns/a/sa/b", false),
        ("new.example", "new.example/ns/a/sa/b", "foreign/ns/a/sa/b", false),
        ("new.example", "foreign/ns/a/sa/b", "foreign/ns/a/sa/b", true),
        ("new.example", "new.example/ns/a/sa/b", "old.example/ns/a/sa/c", false),
    ];
    for (mesh, caller, value, expected) in rows {
        assert_eq!(allowed(mesh, caller, value), expected, "{caller} by {value} in {mesh}");
    }
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let mut caller = Caller::new(PLAIN);
    caller.source_ip = "::ffff:10.0.0.1".parse().unwrap();
    assert!(decide_for(&caller, &["{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}"]).allowed);
}

#[test]
fn ipv6_networks_match() {
    let mut caller = Caller::new(PLAIN);
    caller.source_ip = "fd00:1::2".parse().unwrap();
    assert!(decide_for(&caller, &["{rules: [{from: [{source: {ipBlocks: ['fd00:1::/64']}}]}]}"]).allowed);
    assert!(!decide_for(&caller, &["{rules: [{from: [{source: {ipBlocks: ['fd00:2::/64']}}]}]}"]).allowed);
}

#[test]
fn exact_values_are_found_among_many() {
    let names: Vec<_> = (0..200).map(|i| format!("cluster.local/ns/n{}/sa/s{i}", i % 7)).collect();
    let spec = format!("{{rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]}}", names.join(", "));
    for name in &names {
        assert!(decide_for(&Caller::new(name), &[&spec]).allowed, "{name}");
    }
    assert!(!decide_for(&Caller::new("cluster.local/ns/n0/sa/s1"), &[&spec]).allowed);
}
