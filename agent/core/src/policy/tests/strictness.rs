//! What L4 cannot see, and what cannot be read.

use super::*;

const CART: &str = "cluster.local/ns/shop/sa/cart";

#[test]
fn what_l4_cannot_see_in_allow_never_matches() {
    check(&[
        Row("methods", &["{rules: [{to: [{operation: {methods: [GET]}}]}]}"], CART, false),
        Row(
            "methods beside ports",
            &["{rules: [{to: [{operation: {ports: ['8080'], methods: [GET]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "one source of two",
            &["{rules: [{from: [{source: {namespaces: [shop]}}, {source: {requestPrincipals: ['*']}}]}]}"],
            CART,
            false,
        ),
        Row("paths", &["{rules: [{to: [{operation: {paths: [/]}}]}]}"], CART, false),
        Row("notPaths", &["{rules: [{to: [{operation: {notPaths: [/]}}]}]}"], CART, false),
        Row("hosts", &["{rules: [{to: [{operation: {hosts: [a]}}]}]}"], CART, false),
        Row("remoteIpBlocks", &["{rules: [{from: [{source: {remoteIpBlocks: [0.0.0.0/0]}}]}]}"], CART, false),
        Row("request.headers", &["{rules: [{when: [{key: 'request.headers[a]', notValues: [b]}]}]}"], CART, false),
        Row("an unknown key", &["{rules: [{when: [{key: source.colour, notValues: [b]}]}]}"], CART, false),
        Row("a legacy key", &["{rules: [{when: [{key: destination.user, notValues: [b]}]}]}"], CART, false),
        Row(
            "another rule is not touched",
            &["{rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [shop]}}]}]}"],
            CART,
            true,
        ),
    ]);
}

#[test]
fn what_l4_cannot_see_in_deny_denies_more() {
    check(&[
        Row("methods alone", &["{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"], CART, false),
        Row(
            "methods, of those who match",
            &["{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "methods, of others",
            &["{action: DENY, rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "methods beside the port",
            &["{action: DENY, rules: [{to: [{operation: {ports: ['8080'], methods: [GET]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "methods beside another port",
            &["{action: DENY, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}"],
            CART,
            true,
        ),
        Row("notPaths", &["{action: DENY, rules: [{to: [{operation: {notPaths: [/healthz]}}]}]}"], CART, false),
        Row("hosts", &["{action: DENY, rules: [{to: [{operation: {hosts: [a]}}]}]}"], CART, false),
        Row(
            "requestPrincipals",
            &["{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "notRequestPrincipals",
            &["{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "remoteIpBlocks",
            &["{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [1.1.1.1]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "request.headers",
            &["{action: DENY, rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]}"],
            CART,
            false,
        ),
        Row("connection.sni", &["{action: DENY, rules: [{when: [{key: connection.sni, values: [b]}]}]}"], CART, false),
        Row("an unknown key", &["{action: DENY, rules: [{when: [{key: source.colour, values: [b]}]}]}"], CART, false),
        Row(
            "an unknown key beside one that does not match",
            &[
                "{action: DENY, rules: [{when: [{key: source.colour, values: [b]}, {key: destination.port, values: ['1']}]}]}",
            ],
            CART,
            true,
        ),
    ]);
}

#[test]
fn what_cannot_be_read_never_opens() {
    check(&[
        Row(
            "a CIDR in DENY matches everything",
            &["{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "a CIDR in DENY, beside a field that fails",
            &["{action: DENY, rules: [{from: [{source: {namespaces: [x], ipBlocks: [nonsense]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "a CIDR in a not field of DENY matches nothing",
            &["{action: DENY, rules: [{from: [{source: {notIpBlocks: [nonsense]}}]}]}"],
            CART,
            false,
        ),
        Row("a CIDR in ALLOW matches nothing", &["{rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]}"], CART, false),
        Row(
            "a CIDR in ALLOW beside a good one",
            &["{rules: [{from: [{source: {ipBlocks: [nonsense, 10.0.0.1]}}]}]}"],
            CART,
            true,
        ),
        Row(
            "a CIDR in a not field of ALLOW fails",
            &["{rules: [{from: [{source: {notIpBlocks: [nonsense]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "a port in DENY matches everything",
            &["{action: DENY, rules: [{to: [{operation: {ports: [http]}}]}]}"],
            CART,
            false,
        ),
        Row("port 0 is no port", &["{action: DENY, rules: [{to: [{operation: {ports: ['0']}}]}]}"], CART, false),
        Row(
            "port 65536 is no port",
            &["{action: DENY, rules: [{to: [{operation: {ports: ['65536']}}]}]}"],
            CART,
            false,
        ),
        Row("a port with a sign is no port", &["{rules: [{to: [{operation: {ports: ['+8080']}}]}]}"], CART, false),
        Row("a port in ALLOW matches nothing", &["{rules: [{to: [{operation: {ports: [http]}}]}]}"], CART, false),
        Row(
            "spiffe:// in DENY denies who is meant",
            &["{action: DENY, rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/cart']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "spiffe:// in DENY denies nobody else",
            &["{action: DENY, rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/pay']}}]}]}"],
            CART,
            true,
        ),
        Row(
            "spiffe:// in notPrincipals of DENY excuses nobody",
            &[
                "{action: DENY, rules: [{from: [{source: {notPrincipals: ['spiffe://cluster.local/ns/shop/sa/cart']}}]}]}",
            ],
            CART,
            false,
        ),
        Row(
            "spiffe:// in notPrincipals of ALLOW fails",
            &["{rules: [{from: [{source: {notPrincipals: ['spiffe://cluster.local/ns/x/sa/y']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "an inner * in DENY denies who is meant",
            &["{action: DENY, rules: [{from: [{source: {principals: ['cluster.local/ns/*/sa/cart']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "an inner * in DENY denies nobody else",
            &["{action: DENY, rules: [{from: [{source: {principals: ['cluster.local/ns/*/sa/pay']}}]}]}"],
            CART,
            true,
        ),
        Row(
            "an inner * in namespaces of DENY",
            &["{action: DENY, rules: [{from: [{source: {namespaces: ['s*p']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "an account with a wildcard in DENY matches everything",
            &["{action: DENY, rules: [{from: [{source: {serviceAccounts: ['c*']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "an empty value in DENY matches everything",
            &["{action: DENY, rules: [{from: [{source: {namespaces: ['']}}]}]}"],
            CART,
            false,
        ),
        Row(
            "half a principal in DENY matches everything",
            &["{action: DENY, rules: [{from: [{source: {principals: [cart]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "a selector that no pod can match opens nothing",
            &["{selector: {matchLabels: {app: '*'}}, rules: [{}]}"],
            CART,
            false,
        ),
        Row(
            "the 17th account is not allowed",
            &["{rules: [{from: [{source: {serviceAccounts: [a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,cart]}}]}]}"],
            CART,
            false,
        ),
        Row(
            "the 17th account is denied",
            &["{action: DENY, rules: [{from: [{source: {serviceAccounts: [a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,cart]}}]}]}"],
            CART,
            false,
        ),
    ]);
}

#[test]
fn unsupported_deny_can_be_ignored_as_istio_does() {
    let ignored = |spec| {
        let caller = Caller::new(CART);
        let settings = Settings { unsupported_deny: UnsupportedDeny::Ignore, ..settings(&[]) };
        decide(settings, &EffectivePeerAuthentication::default(), &policies(&[spec]), &caller.call(), None).allowed
    };
    let of_shop =
        "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]}";
    assert!(ignored(of_shop), "a clause with nothing L4 can see never matches");
    let on_port = "{action: DENY, rules: [{to: [{operation: {ports: ['8080'], methods: [GET]}}]}]}";
    assert!(!ignored(on_port), "beside an L4 field the L4 field alone decides");
    let unreadable = "{action: DENY, rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]}";
    assert!(!ignored(unreadable), "what cannot be read is not what L4 cannot see");
}
