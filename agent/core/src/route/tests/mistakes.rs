//! What cannot be read is told, and costs no more than it must.

use super::*;

/// What becomes of a request of a rule with a mistake, and where the mistake is said to be.
fn wrong(http: &str) -> (String, Vec<String>) {
    let snapshot =
        with(&rules(&format!("{http}\n- match: [{{uri: {{prefix: /}}}}]\n  directResponse: {{status: 299}}")));
    let fields = snapshot.findings().map(|(object, finding)| {
        assert_eq!(object.to_string(), "VirtualService shop/cart");
        finding.field.clone()
    });
    (describe(&decide(&snapshot, "GET http://cart/a", &[], 1)), fields.collect())
}

#[test]
fn a_condition_that_cannot_be_read_is_never_met() {
    for (matched, field) in [
        ("uri: {regex: '('}", "uri"),
        ("uri: {regex: '(\\w{1,100}){1,100}'}", "uri"),
        ("uri: {}", "uri"),
        ("uri: {exact: /a, prefix: /a}", "uri"),
        ("uri: {prefix: ''}", "uri"),
        ("method: {regex: '['}", "method"),
        ("headers: {'x y': {exact: a}}", "headers[x y]"),
        ("headers: {':path': {exact: a}}", "headers[:path]"),
        ("headers: {'@request.auth.claims.sub': {exact: a}}", "headers[@request.auth.claims.sub]"),
        ("withoutHeaders: {x: {regex: '('}}", "withoutHeaders[x]"),
        ("queryParams: {x: {regex: '('}}", "queryParams[x]"),
        ("port: 70000", "port"),
    ] {
        let http = format!("- match: [{{{matched}}}]\n  directResponse: {{status: 200}}");
        let expected = ("1: 299 b\"\"".to_owned(), vec![format!("spec.http[0].match[0].{field}")]);
        assert_eq!(wrong(&http), expected, "{matched}");
    }
}

#[test]
fn a_rule_that_cannot_be_carried_out_answers_500() {
    let matched = "- match: [{uri: {prefix: /a}}]\n  ";
    for (rule, field) in [
        ("name: nothing", "route"),
        ("route: [{destination: {host: stock}, weight: -1}]", "route"),
        ("route: [{destination: {host: stock}}, {destination: {host: cart}}]", "route"),
        ("route: [{destination: {host: ''}}]", "route[0].destination"),
        ("route: [{destination: {host: '*.x'}}]", "route[0].destination"),
        ("route: [{destination: {host: stock, port: {number: 0}}}]", "route[0].destination"),
        ("redirect: {}", "redirect"),
        ("redirect: {uri: /x, redirectCode: 300}", "redirect"),
        ("redirect: {uri: \"/x\\r\\ny: z\"}", "redirect"),
        ("redirect: {authority: 'a b'}", "redirect"),
        ("redirect: {authority: 'user@host'}", "redirect"),
        ("redirect: {scheme: ftp}", "redirect"),
        ("redirect: {port: 70000}", "redirect"),
        ("redirect: {port: 1, derivePort: FROM_REQUEST_PORT}", "redirect"),
        ("redirect: {uri: /x, prefixRewrite: /y}", "redirect"),
        ("directResponse: {status: 100}", "directResponse"),
        ("directResponse: {status: 200, body: {bytes: '?'}}", "directResponse"),
        ("rewrite: {uri: '/a b'}\n  route: [{destination: {host: stock}}]", "rewrite"),
        (
            "rewrite: {uri: /x, uriRegexRewrite: {match: a, rewrite: b}}\n  route: [{destination: {host: stock}}]",
            "rewrite",
        ),
        ("rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}\n  route: [{destination: {host: stock}}]", "rewrite"),
        ("rewrite: {uriRegexRewrite: {match: a, rewrite: '\\3'}}\n  route: [{destination: {host: stock}}]", "rewrite"),
    ] {
        let (outcome, fields) = wrong(&format!("{matched}{rule}"));
        assert_eq!((outcome.as_str(), fields), ("0: 500 NR", vec![format!("spec.http[0].{field}")]), "{rule}");
    }
}

#[test]
fn what_else_is_wrong_has_no_effect() {
    let matched = "- match: [{uri: {prefix: /a}}]\n  route: [{destination: {host: stock}}]\n  ";
    for (rest, field) in [
        ("timeout: soon", "timeout"),
        ("timeout: -1s", "timeout"),
        ("timeout: 99999999999999999999h", "timeout"),
        ("retries: {attempts: -1}", "retries.attempts"),
        ("retries: {attempts: 1000000}", "retries.attempts"),
        ("retries: {attempts: 1, retryOn: whenever}", "retries.retryOn"),
        ("retries: {attempts: 1, perTryTimeout: x}", "retries.perTryTimeout"),
        ("retries: {attempts: 0, retryOn: 5xx}", "retries.attempts"),
        ("fault: {}", "fault"),
        ("fault: {delay: {fixedDelay: x, percentage: {value: 100}}}", "fault.delay.fixedDelay"),
        ("fault: {delay: {exponentialDelay: 1s, percentage: {value: 100}}}", "fault.delay.exponentialDelay"),
        ("fault: {abort: {httpStatus: 700, percentage: {value: 100}}}", "fault.abort"),
        ("fault: {abort: {grpcStatus: NO, percentage: {value: 100}}}", "fault.abort"),
        ("fault: {abort: {http2Error: x, percentage: {value: 100}}}", "fault.abort"),
        ("fault: {abort: {httpStatus: 500, percentage: {value: 101}}}", "fault.abort.percentage.value"),
        ("mirror: {host: ''}", "mirror"),
        ("mirrors: [{destination: {host: cart, port: {number: 0}}}]", "mirrors[0].destination"),
        ("headers: {request: {set: {x: '%NOPE%'}}}", "headers.request.set[x]"),
        ("headers: {request: {set: {':path': /}}}", "headers.request.set[:path]"),
        ("headers: {request: {set: {host: 'a b'}}}", "headers.request.set[host]"),
        ("headers: {request: {add: {x: \"a\\r\\nb\"}}}", "headers.request.add[x]"),
        ("headers: {response: {remove: [':status']}}", "headers.response.remove[0]"),
        ("headers: {response: {set: {host: x}}}", "headers.response.set[host]"),
        ("corsPolicy: {allowOrigins: [{regex: '('}, {exact: a}]}", "corsPolicy.allowOrigins[0]"),
        ("corsPolicy: {allowOrigins: [{exact: a}], allowMethods: ['G T']}", "corsPolicy.allowMethods[0]"),
        ("rewrite: {}", "rewrite"),
    ] {
        let (outcome, fields) = wrong(&format!("{matched}{rest}"));
        assert_eq!((outcome.as_str(), fields), ("0: stock.shop:8000", vec![format!("spec.http[0].{field}")]), "{rest}");
    }
}

#[test]
fn the_object_itself_may_be_wrong() {
    let spec = |spec: &str| {
        let snapshot = with(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\nspec: {{{spec}}}\n"
        ));
        snapshot.findings().map(|(_, finding)| finding.field.clone()).collect::<Vec<_>>()
    };
    assert_eq!(spec("hosts: [cart]"), ["spec"]);
    assert_eq!(
        spec("hosts: ['*', 'a b', cart, cart], tcp: [{route: [{destination: {host: a}}]}]"),
        ["spec.hosts[0]", "spec.hosts[1]", "spec.hosts[3]"]
    );
    assert_eq!(spec("tcp: [{route: [{destination: {host: a}}]}]"), ["spec.hosts"]);
}

#[test]
fn a_rule_after_one_for_everything_is_told() {
    let snapshot = with(&rules("- route: [{destination: {host: stock}}]\n- directResponse: {status: 200}"));
    assert!(findings(&snapshot)[0].contains("spec.http[1]: is never reached: spec.http[0] takes every request"));
}
