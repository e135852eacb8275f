//! Field by field, and key by key: what matches, and what is in doubt.

use serde_json::json;

use super::*;

#[test]
fn operations_match_field_by_field() {
    check_matches(&[
        Matches("a method is exact", "{to: [{operation: {methods: [GET]}}]}", |_| {}, true),
        Matches("methods are of one case", "{to: [{operation: {methods: [GET]}}]}", |r| r.method = "get", false),
        Matches("a method has a prefix", "{to: [{operation: {methods: ['P*']}}]}", |r| r.method = "PUT", true),
        Matches("one of several values is enough", "{to: [{operation: {methods: [PUT, GET]}}]}", |_| {}, true),
        Matches("notMethods excludes", "{to: [{operation: {notMethods: [GET]}}]}", |_| {}, false),
        Matches("notMethods leaves others", "{to: [{operation: {notMethods: [PUT]}}]}", |_| {}, true),
        Matches("a path is exact", "{to: [{operation: {paths: [/a]}}]}", |r| r.path = "/a", true),
        Matches("an exact path has no prefix", "{to: [{operation: {paths: [/a]}}]}", |r| r.path = "/a/b", false),
        Matches("paths are of one case", "{to: [{operation: {paths: [/a]}}]}", |r| r.path = "/A", false),
        Matches("a path has a prefix", "{to: [{operation: {paths: ['/a*']}}]}", |r| r.path = "/ab", true),
        Matches("a path has a suffix", "{to: [{operation: {paths: ['*.png']}}]}", |r| r.path = "/x/y.png", true),
        Matches("any path is present", "{to: [{operation: {paths: ['*']}}]}", |r| r.path = "/x", true),
        Matches("notPaths excludes by prefix", "{to: [{operation: {notPaths: ['/a*']}}]}", |r| r.path = "/ab", false),
        Matches(
            "a template takes one segment",
            "{to: [{operation: {paths: ['/a/{*}/c']}}]}",
            |r| r.path = "/a/b/c",
            true,
        ),
        Matches(
            "a template takes no two",
            "{to: [{operation: {paths: ['/a/{*}/c']}}]}",
            |r| r.path = "/a/b/b/c",
            false,
        ),
        Matches("a template takes the rest", "{to: [{operation: {paths: ['/a/{**}']}}]}", |r| r.path = "/a/b/c", true),
        Matches("notPaths takes templates", "{to: [{operation: {notPaths: ['/a/{*}']}}]}", |r| r.path = "/a/b", false),
        Matches(
            "a host regardless of case",
            "{to: [{operation: {hosts: [Cart.shop]}}]}",
            |r| r.host = "cART.shop",
            true,
        ),
        Matches("a host by its suffix", "{to: [{operation: {hosts: ['*.shop']}}]}", |_| {}, true),
        Matches("a host by its prefix", "{to: [{operation: {hosts: ['cart*']}}]}", |r| r.host = "cart.shop:80", true),
        Matches("a host with its port", "{to: [{operation: {hosts: ['a:80']}}]}", |r| r.host = "a:80", true),
        Matches("another host", "{to: [{operation: {hosts: [a]}}]}", |r| r.host = "b", false),
        Matches("a host with another name before", "{to: [{operation: {hosts: [a]}}]}", |r| r.host = "b.a", false),
        Matches("notHosts excludes", "{to: [{operation: {notHosts: [cart.shop]}}]}", |_| {}, false),
        Matches("a port is the one asked for", "{to: [{operation: {ports: ['80']}}]}", |_| {}, true),
        Matches("notPorts excludes", "{to: [{operation: {notPorts: ['80']}}]}", |_| {}, false),
        Matches("all fields must hold", "{to: [{operation: {methods: [GET], paths: [/a]}}]}", |_| {}, false),
        Matches(
            "one of several operations is enough",
            "{to: [{operation: {methods: [PUT]}}, {operation: {paths: [/]}}]}",
            |_| {},
            true,
        ),
        Matches("a rule of nothing matches", "{}", |_| {}, true),
        Matches("an operation of nothing never does", "{to: [{operation: {}}]}", |_| {}, false),
        Matches(
            "gRPC is a POST of the method's path",
            "{to: [{operation: {paths: [/pkg.S/M], methods: [POST]}}]}",
            |r| {
                (r.method, r.path) = ("POST", "/pkg.S/M");
            },
            true,
        ),
    ]);
}

#[test]
fn sources_match_field_by_field() {
    let token = |r: &mut Asked| r.claims(json!({"iss": "https://a.example", "sub": "joe"}));
    let _: fn(&mut Asked) = token;
    check_matches(&[
        Matches("a principal", "{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}", |_| {}, true),
        Matches("a principal by an alias", "{from: [{source: {principals: [old.td/ns/shop/sa/front]}}]}", |_| {}, true),
        Matches(
            "no principal in plaintext",
            "{from: [{source: {principals: ['*']}}]}",
            |r| r.caller.identity = None,
            false,
        ),
        Matches(
            "notPrincipals hold in plaintext",
            "{from: [{source: {notPrincipals: ['*']}}]}",
            |r| {
                r.caller.identity = None;
            },
            true,
        ),
        Matches("a namespace", "{from: [{source: {namespaces: [shop]}}]}", |_| {}, true),
        Matches("a namespace with a * in the middle", "{from: [{source: {namespaces: ['s*p']}}]}", |_| {}, true),
        Matches("a namespace with several *", "{from: [{source: {namespaces: ['s*o*']}}]}", |_| {}, true),
        Matches("a * in the middle has both ends", "{from: [{source: {namespaces: ['sho*op']}}]}", |_| {}, false),
        Matches("a service account", "{from: [{source: {serviceAccounts: [front, other/x]}}]}", |_| {}, true),
        Matches("a service account elsewhere", "{from: [{source: {serviceAccounts: [other/front]}}]}", |_| {}, false),
        Matches("a trust domain", "{from: [{source: {trustDomains: [cluster.local]}}]}", |_| {}, true),
        Matches("a client's address", "{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}", |_| {}, true),
        Matches(
            "an address by the proxies before",
            "{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}",
            |_| {},
            true,
        ),
        Matches("not the client's", "{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}", |_| {}, false),
        Matches(
            "a mapped address is IPv4",
            "{from: [{source: {remoteIpBlocks: [203.0.113.9]}}]}",
            |r| {
                r.remote_ip = "::ffff:203.0.113.9";
            },
            true,
        ),
        Matches("notRemoteIpBlocks excludes", "{from: [{source: {notRemoteIpBlocks: [203.0.113.9]}}]}", |_| {}, false),
        Matches(
            "a request principal",
            "{from: [{source: {requestPrincipals: ['https://a.example/joe']}}]}",
            |r| {
                r.claims(json!({"iss": "https://a.example", "sub": "joe"}));
            },
            true,
        ),
        Matches(
            "any request principal",
            "{from: [{source: {requestPrincipals: ['*']}}]}",
            |r| {
                r.claims(json!({"iss": "a", "sub": "joe"}));
            },
            true,
        ),
        Matches(
            "a request principal by its issuer",
            "{from: [{source: {requestPrincipals: ['a/*']}}]}",
            |r| {
                r.claims(json!({"iss": "a", "sub": "joe"}));
            },
            true,
        ),
        Matches("no token, no request principal", "{from: [{source: {requestPrincipals: ['*']}}]}", |_| {}, false),
        Matches(
            "no token, notRequestPrincipals hold",
            "{from: [{source: {notRequestPrincipals: ['*']}}]}",
            |_| {},
            true,
        ),
        Matches(
            "no subject, no request principal",
            "{from: [{source: {requestPrincipals: ['*']}}]}",
            |r| {
                r.claims(json!({"iss": "a"}));
            },
            false,
        ),
    ]);
}

#[test]
fn conditions_match_key_by_key() {
    check_matches(&[
        Matches("a header", "{when: [{key: 'request.headers[X-A]', values: [b]}]}", |r| r.header("x-a", "b"), true),
        Matches(
            "values of headers are of one case",
            "{when: [{key: 'request.headers[x-a]', values: [b]}]}",
            |r| {
                r.header("x-a", "B");
            },
            false,
        ),
        Matches(
            "a header's prefix",
            "{when: [{key: 'request.headers[x-a]', values: ['b*']}]}",
            |r| r.header("x-a", "bc"),
            true,
        ),
        Matches(
            "a * that is also at the end is itself",
            "{when: [{key: 'request.headers[accept]', values: ['*/*']}]}",
            |r| {
                r.header("accept", "text/*");
            },
            true,
        ),
        Matches(
            "a header that is there",
            "{when: [{key: 'request.headers[x-a]', values: ['*']}]}",
            |r| r.header("x-a", ""),
            true,
        ),
        Matches("a header that is not there", "{when: [{key: 'request.headers[x-a]', values: ['*']}]}", |_| {}, false),
        Matches(
            "notValues without the header",
            "{when: [{key: 'request.headers[x-a]', notValues: [b]}]}",
            |_| {},
            true,
        ),
        Matches(
            "several headers are one",
            "{when: [{key: 'request.headers[x-a]', values: ['b,c']}]}",
            |r| {
                r.header("x-a", "b");
                r.header("x-a", "c");
            },
            true,
        ),
        Matches(
            "and none of them alone",
            "{when: [{key: 'request.headers[x-a]', values: [b]}]}",
            |r| {
                r.header("x-a", "b");
                r.header("x-a", "c");
            },
            false,
        ),
        Matches(
            "the header Host is the authority",
            "{when: [{key: 'request.headers[Host]', values: [cart.shop]}]}",
            |_| {},
            true,
        ),
        Matches("source.ip", "{when: [{key: source.ip, values: [10.0.0.1]}]}", |_| {}, true),
        Matches("remote.ip", "{when: [{key: remote.ip, values: [203.0.113.9]}]}", |_| {}, true),
        Matches("source.namespace", "{when: [{key: source.namespace, values: ['s*p']}]}", |_| {}, true),
        Matches("source.principal", "{when: [{key: source.principal, values: ['*/sa/front']}]}", |_| {}, true),
        Matches("source.serviceAccount", "{when: [{key: source.serviceAccount, values: [front]}]}", |_| {}, true),
        Matches("source.trustDomain", "{when: [{key: source.trustDomain, values: ['cluster*']}]}", |_| {}, true),
        Matches("destination.ip", "{when: [{key: destination.ip, values: [10.0.1.0/24]}]}", |_| {}, true),
        Matches("destination.port", "{when: [{key: destination.port, values: ['80']}]}", |_| {}, true),
        Matches(
            "connection.sni",
            "{when: [{key: connection.sni, values: ['*.example']}]}",
            |r| r.sni = Some("a.example"),
            true,
        ),
        Matches("no SNI", "{when: [{key: connection.sni, values: ['*']}]}", |_| {}, false),
        Matches(
            "request.auth.principal",
            "{when: [{key: request.auth.principal, values: [a/joe]}]}",
            |r| {
                r.claims(json!({"iss": "a", "sub": "joe"}));
            },
            true,
        ),
        Matches(
            "one audience",
            "{when: [{key: request.auth.audiences, values: [x]}]}",
            |r| r.claims(json!({"aud": "x"})),
            true,
        ),
        Matches(
            "one of several audiences",
            "{when: [{key: request.auth.audiences, values: [x]}]}",
            |r| {
                r.claims(json!({"aud": ["w", "x"]}));
            },
            true,
        ),
        Matches(
            "notValues hold if none of several is",
            "{when: [{key: request.auth.audiences, notValues: [x]}]}",
            |r| {
                r.claims(json!({"aud": ["w", "x"]}));
            },
            false,
        ),
        Matches(
            "the presenter",
            "{when: [{key: request.auth.presenter, values: [app]}]}",
            |r| r.claims(json!({"azp": "app"})),
            true,
        ),
        Matches(
            "a claim",
            "{when: [{key: 'request.auth.claims[role]', values: ['adm*']}]}",
            |r| {
                r.claims(json!({"role": "admin"}));
            },
            true,
        ),
        Matches(
            "a claim that is a list",
            "{when: [{key: 'request.auth.claims[role]', values: [admin]}]}",
            |r| {
                r.claims(json!({"role": ["user", "admin"]}));
            },
            true,
        ),
        Matches(
            "a nested claim",
            "{when: [{key: 'request.auth.claims[realm][roles]', values: [admin]}]}",
            |r| {
                r.claims(json!({"realm": {"roles": ["admin"]}}));
            },
            true,
        ),
        Matches(
            "a claim within what is no object",
            "{when: [{key: 'request.auth.claims[a][b]', values: ['*']}]}",
            |r| {
                r.claims(json!({"a": "b"}));
            },
            false,
        ),
        Matches(
            "a claim with dots and colons",
            "{when: [{key: 'request.auth.claims[https://a.b/c]', values: [x]}]}",
            |r| {
                r.claims(json!({"https://a.b/c": "x"}));
            },
            true,
        ),
        Matches(
            "scope is a list of words",
            "{when: [{key: 'request.auth.claims[scope]', values: [write]}]}",
            |r| {
                r.claims(json!({"scope": "read write"}));
            },
            true,
        ),
        Matches(
            "a claim that was named as words",
            "{when: [{key: 'request.auth.claims[groups]', values: [b]}]}",
            |r| {
                r.claims(json!({"groups": "a b"}));
            },
            true,
        ),
        Matches(
            "another is one string",
            "{when: [{key: 'request.auth.claims[name]', values: [b]}]}",
            |r| {
                r.claims(json!({"name": "a b"}));
            },
            false,
        ),
        Matches("no token, no claim", "{when: [{key: 'request.auth.claims[role]', values: ['*']}]}", |_| {}, false),
        Matches(
            "no token, notValues hold",
            "{when: [{key: 'request.auth.claims[role]', notValues: [admin]}]}",
            |_| {},
            true,
        ),
        Matches(
            "values and notValues must both hold",
            "{when: [{key: 'request.headers[a]', values: ['b*'], notValues: [bc]}]}",
            |r| {
                r.header("a", "bc");
            },
            false,
        ),
        Matches(
            "every condition must hold",
            "{when: [{key: remote.ip, values: [203.0.113.9]}, {key: source.ip, values: [10.9.9.9]}]}",
            |_| {},
            false,
        ),
        Matches(
            "from, to and when together",
            "{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/]}}], when: [{key: source.ip, values: [10.0.0.1]}]}",
            |_| {},
            true,
        ),
    ]);
}

#[test]
fn what_is_in_doubt_denies() {
    check_allowed(&[
        Allowed(
            "DENY disregards the host's port",
            "{action: DENY, rules: [{to: [{operation: {hosts: [a]}}]}]}",
            |r| r.host = "A:8080",
            false,
        ),
        Allowed(
            "DENY disregards a final dot",
            "{action: DENY, rules: [{to: [{operation: {hosts: [a.b]}}]}]}",
            |r| r.host = "a.b.:80",
            false,
        ),
        Allowed("ALLOW does not", "{rules: [{to: [{operation: {hosts: [a]}}]}]}", |r| r.host = "a:8080", false),
        Allowed(
            "ALLOW's notHosts disregard the port",
            "{rules: [{to: [{operation: {notHosts: [a]}}]}]}",
            |r| r.host = "a:8080",
            false,
        ),
        Allowed(
            "an address keeps its brackets",
            "{action: DENY, rules: [{to: [{operation: {hosts: ['[::1]']}}]}]}",
            |r| r.host = "[::1]:80",
            false,
        ),
        Allowed(
            "an address has no port",
            "{action: DENY, rules: [{to: [{operation: {hosts: ['::']}}]}]}",
            |r| r.host = "::1",
            true,
        ),
        Allowed(
            "DENY compares a boolean claim",
            "{action: DENY, rules: [{when: [{key: 'request.auth.claims[suspended]', values: ['true']}]}]}",
            |r| r.claims(json!({"suspended": true})),
            false,
        ),
        Allowed(
            "DENY compares a number",
            "{action: DENY, rules: [{when: [{key: 'request.auth.claims[level]', values: ['1']}]}]}",
            |r| r.claims(json!({"level": [1]})),
            false,
        ),
        Allowed(
            "ALLOW does not, as Istio",
            "{rules: [{when: [{key: 'request.auth.claims[admin]', values: ['true']}]}]}",
            |r| r.claims(json!({"admin": true})),
            false,
        ),
        Allowed(
            "ALLOW's notValues do",
            "{rules: [{when: [{key: 'request.auth.claims[suspended]', notValues: ['true']}]}]}",
            |r| r.claims(json!({"suspended": true})),
            false,
        ),
        Allowed(
            "a bad template in DENY matches",
            "{action: DENY, rules: [{to: [{operation: {paths: ['/{*}.txt']}}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "a bad template in ALLOW does not",
            "{rules: [{to: [{operation: {paths: ['/{*}.txt']}}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "a bad template in ALLOW's notPaths fails",
            "{rules: [{to: [{operation: {notPaths: ['/{*}.txt']}}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "an unknown key in DENY matches",
            "{action: DENY, rules: [{when: [{key: request.colour, values: [red]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "an unknown key in ALLOW does not",
            "{rules: [{when: [{key: request.colour, values: [red]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "filter metadata in DENY matches",
            "{action: DENY, rules: [{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "filter metadata in ALLOW does not",
            "{rules: [{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "a header that cannot be in DENY matches",
            "{action: DENY, rules: [{when: [{key: 'request.headers[a b]', values: [c]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "a legacy key in ALLOW does not match",
            "{rules: [{when: [{key: destination.labels, values: [c]}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "an unreadable CIDR in DENY matches",
            "{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/99]}}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "an unreadable CIDR in ALLOW's not fails",
            "{rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/99]}}]}]}",
            |_| {},
            false,
        ),
        Allowed(
            "a DENY clause of unknowns beside others",
            "{action: DENY, rules: [{to: [{operation: {paths: [/x]}}], when: [{key: no.such, values: [a]}]}]}",
            |_| {},
            true,
        ),
        Allowed("an empty ALLOW policy denies", "{}", |_| {}, false),
        Allowed("an empty DENY policy denies nothing", "{action: DENY}", |_| {}, true),
    ]);
}

#[test]
fn a_connection_that_is_not_http_matches_less_in_allow_and_more_in_deny() {
    check_allowed(&[
        Allowed("ALLOW with a path", "{rules: [{to: [{operation: {paths: ['*']}}]}]}", |r| r.is_http = false, false),
        Allowed(
            "ALLOW with notPaths",
            "{rules: [{to: [{operation: {notPaths: [/a]}}]}]}",
            |r| r.is_http = false,
            false,
        ),
        Allowed("ALLOW with a port", "{rules: [{to: [{operation: {ports: ['80']}}]}]}", |r| r.is_http = false, true),
        Allowed(
            "ALLOW by SNI",
            "{rules: [{when: [{key: connection.sni, values: [a]}]}]}",
            |r| {
                (r.is_http, r.sni) = (false, Some("a"));
            },
            true,
        ),
        Allowed(
            "DENY with a path alone",
            "{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}",
            |r| r.is_http = false,
            false,
        ),
        Allowed(
            "DENY with a path and another port",
            "{action: DENY, rules: [{to: [{operation: {paths: [/a], ports: ['81']}}]}]}",
            |r| r.is_http = false,
            true,
        ),
        Allowed(
            "DENY with a path and this port",
            "{action: DENY, rules: [{to: [{operation: {paths: [/a], ports: ['80']}}]}]}",
            |r| r.is_http = false,
            false,
        ),
        Allowed(
            "DENY without a token",
            "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}",
            |r| r.is_http = false,
            false,
        ),
    ]);
}
