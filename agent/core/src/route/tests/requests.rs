//! Every field of `http`, as a fact.

use super::*;

const GET: &str = "GET http://cart/";

#[test]
fn every_match_field_decides() {
    let rule = |matched: &str| format!("- match: [{matched}]\n  route: [{{destination: {{host: stock}}}}]");
    for (matched, line, headers, taken) in [
        ("{uri: {exact: /a}}", "GET http://cart/a?b=c", &[][..], true),
        ("{uri: {exact: /a}}", "GET http://cart/a/", &[], false),
        ("{uri: {prefix: /foo}}", "GET http://cart/foobar", &[], true),
        ("{uri: {prefix: /foo}}", "GET http://cart/Foo", &[], false),
        ("{uri: {prefix: /foo}, ignoreUriCase: true}", "GET http://cart/FOO/x", &[], true),
        ("{uri: {exact: /Foo}, ignoreUriCase: true}", "GET http://cart/fOO", &[], true),
        ("{uri: {regex: '/f.o'}}", "GET http://cart/foo", &[], true),
        ("{uri: {regex: '/f.o'}}", "GET http://cart/foo/bar", &[], false),
        ("{scheme: {exact: https}}", "GET https://cart/", &[], true),
        ("{scheme: {exact: https}}", GET, &[], false),
        ("{method: {exact: POST}}", "POST http://cart/", &[], true),
        ("{method: {regex: 'PUT|POST'}}", "PATCH http://cart/", &[], false),
        ("{authority: {prefix: cart}}", GET, &[], true),
        ("{authority: {exact: shop}}", GET, &[], false),
        ("{headers: {x-user: {exact: eve}}}", GET, &[("x-user", "eve")], true),
        ("{headers: {x-user: {exact: eve}}}", GET, &[("x-user", "Eve")], false),
        ("{headers: {x-user: {exact: eve}}}", GET, &[], false),
        ("{headers: {X-User: {prefix: e}}}", GET, &[("x-user", "eve")], true),
        ("{headers: {x-user: {}}}", GET, &[("x-user", "")], true),
        ("{headers: {x-user: {}}}", GET, &[], false),
        ("{headers: {x-user: {regex: '*'}}}", GET, &[("x-user", "any")], true),
        ("{headers: {x-user: {exact: 'a,b'}}}", GET, &[("x-user", "a"), ("x-user", "b")], true),
        ("{headers: {cookie: {regex: '^(.*?;)?(user=eve)(;.*)?$'}}}", GET, &[("cookie", "a=b;user=eve")], true),
        ("{withoutHeaders: {x-user: {}}}", GET, &[], true),
        ("{withoutHeaders: {x-user: {}}}", GET, &[("x-user", "")], false),
        ("{withoutHeaders: {x-user: {exact: eve}}}", GET, &[], true),
        ("{withoutHeaders: {x-user: {exact: eve}}}", GET, &[("x-user", "eve")], false),
        ("{withoutHeaders: {x-user: {exact: eve}}}", GET, &[("x-user", "bob")], true),
        ("{withoutHeaders: {x-user: {regex: '.*'}}}", GET, &[], false),
        ("{queryParams: {q: {exact: '1'}}}", "GET http://cart/?a=b&q=1", &[], true),
        ("{queryParams: {q: {exact: '1'}}}", "GET http://cart/?q=2&q=1", &[], false),
        ("{queryParams: {q: {exact: ''}}}", "GET http://cart/?q", &[], true),
        ("{queryParams: {q: {exact: ''}}}", "GET http://cart/?q=", &[], true),
        ("{queryParams: {q: {exact: ''}}}", "GET http://cart/", &[], false),
        ("{queryParams: {q: {prefix: a}}}", "GET http://cart/?q=ab", &[], true),
        ("{queryParams: {q: {regex: '[0-9]+'}}}", "GET http://cart/?q=12", &[], true),
        ("{port: 81}", "GET http://cart:81/", &[], true),
        ("{port: 81}", GET, &[], false),
        ("{sourceNamespace: shop}", GET, &[], true),
        ("{sourceNamespace: other}", GET, &[], false),
        ("{sourceNamespace: shop}", "!GET http://cart/", &[], false),
        ("{sourceLabels: {app: front}}", GET, &[], true),
        ("{sourceLabels: {app: front, tier: db}}", GET, &[], false),
        ("{sourceLabels: {app: front}}", "!GET http://cart/", &[], false),
        ("{gateways: [mesh]}", GET, &[], true),
        ("{gateways: [ingress]}", GET, &[], false),
        ("{uri: {prefix: /a}, method: {exact: POST}}", "GET http://cart/a", &[], false),
        ("{uri: {prefix: /x}}, {uri: {prefix: /y}}", "GET http://cart/y", &[], true),
        ("{name: n, statPrefix: s}", GET, &[], true),
    ] {
        let expected = if taken { "0: stock.shop:8000" } else { "-: 404 NR" };
        // A rule that is for gateways only is no rule of the mesh.
        let expected = if matched.contains("ingress") { "-: cart.shop:80" } else { expected };
        assert_eq!(ask(&rule(matched), line, headers), expected, "{matched} {line} {headers:?}");
    }
}

#[test]
fn the_first_rule_that_matches_counts() {
    let http = "
- match: [{uri: {prefix: /a}}]
  directResponse: {status: 201}
- match: [{uri: {exact: /a}}]
  directResponse: {status: 202}
- match: [{uri: {regex: '.*z'}}]
  directResponse: {status: 203}
- match: [{uri: {prefix: /b}}]
  directResponse: {status: 204}
- route: [{destination: {host: cart}}]
";
    for (path, expected) in [("/a", "0: 201"), ("/az", "0: 201"), ("/bz", "2: 203"), ("/b", "3: 204")] {
        assert_eq!(ask(http, &format!("GET http://cart{path}"), &[]), format!("{expected} b\"\""));
    }
    assert_eq!(ask(http, "GET http://cart/c", &[]), "4: cart.shop:80");
}

#[test]
fn a_service_without_rules_is_its_own_destination_and_one_whose_rules_do_not_match_is_not() {
    let snapshot = with("");
    assert_eq!(describe(&decide(&snapshot, "GET http://cart:81/", &[], 1)), "-: cart.shop:81");
    let http = "- match: [{uri: {exact: /only}}]\n  route: [{destination: {host: cart}}]";
    assert_eq!(ask(http, GET, &[]), "-: 404 NR");
}

#[test]
fn destinations_are_resolved_as_istio_does() {
    let rule = |destination: &str| format!("- route: [{{destination: {{{destination}}}}}]");
    for (destination, expected) in [
        ("host: stock", "0: stock.shop:8000"),
        ("host: stock, subset: v1", "0: stock.shop:8000/v1"),
        ("host: stock, subset: v9", "0: 503 NC"),
        ("host: stock.other.svc.cluster.local", "0: stock.other:9000"),
        ("host: cart", "0: cart.shop:81"),
        ("host: cart, port: {number: 80}", "0: cart.shop:80"),
        ("host: stock, port: {number: 1}", "0: 503 NC"),
        ("host: nobody", "0: 503 NC"),
        ("host: nobody.example.com", "0: 503 NC"),
    ] {
        assert_eq!(ask(&rule(destination), "GET http://cart:81/", &[]), expected, "{destination}");
    }
}

#[test]
fn requests_are_shared_out_among_destinations() {
    let share = |http: &str| {
        let snapshot = with(&rules(http));
        let count = (0..1_000).filter(|seed| {
            let decision = decide(&snapshot, GET, &[], *seed);
            describe(&decision).contains("stock")
        });
        count.count()
    };
    let two = |stock: i32, cart: i32| {
        format!(
            "- route:\n  - {{destination: {{host: stock}}, weight: {stock}}}\n  - {{destination: {{host: cart}}, weight: {cart}}}"
        )
    };
    assert!((50..150).contains(&share(&two(1, 9))));
    assert!((650..850).contains(&share(&two(300, 100))));
    assert_eq!((share(&two(0, 1)), share(&two(100, 0))), (0, 1_000));
    assert_eq!(share("- route: [{destination: {host: stock}, weight: 0}]"), 1_000);
}

#[test]
fn redirects_say_where_to_go() {
    for (redirect, line, expected) in [
        ("uri: /new", "GET http://cart/old?q=1", "301 http://cart/new?q=1"),
        ("uri: '/new?own=1'", "GET http://cart/old?q=1", "301 http://cart/new?own=1"),
        ("authority: b.example", "GET http://cart:81/old?q=1", "301 http://b.example/old?q=1"),
        ("scheme: https", GET, "301 https://cart/"),
        ("scheme: https", "GET http://cart:80/", "301 https://cart/"),
        ("scheme: https", "GET http://cart:81/", "301 https://cart:81/"),
        ("port: 8443, scheme: https", GET, "301 https://cart:8443/"),
        ("port: 443, scheme: https", GET, "301 https://cart/"),
        ("port: 80", "GET http://cart:81/", "301 http://cart/"),
        ("derivePort: FROM_REQUEST_PORT, authority: b", "GET http://cart:81/", "301 http://b:81/"),
        ("derivePort: FROM_PROTOCOL_DEFAULT, scheme: https", "GET http://cart:81/", "301 https://cart/"),
        ("uri: /x, redirectCode: 308", GET, "308 http://cart/x"),
        ("authority: '[::1]:99'", GET, "301 http://[::1]:99/"),
    ] {
        assert_eq!(ask(&format!("- redirect: {{{redirect}}}"), line, &[]), format!("0: {expected}"), "{redirect}");
    }
    let prefix = "- match: [{uri: {prefix: /old}}]\n  redirect: {prefixRewrite: /new}";
    assert_eq!(ask(prefix, "GET http://cart/old/a?q", &[]), "0: 301 http://cart/new/a?q");
}

#[test]
fn direct_responses_have_a_status_and_a_body() {
    for (response, expected) in [
        ("status: 503, body: {string: sorry}", "503 b\"sorry\""),
        ("status: 200, body: {bytes: aGVsbG8=}", "200 b\"hello\""),
        ("status: 404", "404 b\"\""),
    ] {
        assert_eq!(ask(&format!("- directResponse: {{{response}}}"), GET, &[]), format!("0: {expected}"));
    }
}

#[test]
fn rewrites_change_the_path_and_the_authority() {
    for (matched, rewrite, path, expected) in [
        ("- match: [{uri: {prefix: /v1}}]", "uri: /v2", "/v1/a?q", "path /v2/a?q"),
        ("- match: [{uri: {exact: /v1}}]", "uri: /v2", "/v1?q", "path /v2?q"),
        ("- match: [{uri: {regex: '/v1.*'}}]", "uri: /v2", "/v1/a", "path /v2"),
        ("- match: []", "uri: /v2/", "/a", "path /v2/a"),
        (
            "- match: []",
            "uriRegexRewrite: {match: '^/u/([^/]+)(/.*)$', rewrite: '\\2/\\1'}",
            "/u/eve/cart",
            "path /cart/eve",
        ),
        ("- match: []", "authority: b.example", "/", "host b.example"),
        ("- match: [{uri: {prefix: /v1}}]", "{uri: /v2, authority: b}", "/v1", "path /v2 host b"),
    ] {
        let rewrite = format!(
            "{{{}}}",
            rewrite.trim_start_matches('{').trim_end_matches("b}").to_owned()
                + if rewrite.starts_with('{') { "b" } else { "" }
        );
        let http = format!("{matched}\n  rewrite: {rewrite}\n  route: [{{destination: {{host: stock}}}}]");
        assert_eq!(ask(&http, &format!("GET http://cart{path}"), &[]), format!("0: stock.shop:8000 {expected}"));
    }
}

#[test]
fn headers_are_changed_at_each_level_in_order() {
    let single = rules(
        "
- headers:
    request: {set: {a: rule}, add: {b: rule}, remove: [c]}
    response: {set: {r: rule}}
  route:
  - destination: {host: stock}
    headers:
      request: {set: {a: destination}, add: {b: destination, c: destination}, remove: [d]}
",
    );
    // For one destination everything is one list: removals first, then the rule's, then the destination's.
    assert_eq!(
        request_headers(&with(&single), GET, &[("b", "0"), ("c", "0"), ("d", "0")]),
        ["a: destination", "b: 0", "b: rule", "b: destination", "c: destination"]
    );
    let weighted = rules(
        "
- headers:
    request: {set: {a: rule}, add: {b: rule}, remove: [c]}
  route:
  - destination: {host: stock}
    weight: 1
    headers: {request: {set: {a: destination, host: weighted.example}, add: {b: destination, c: destination}}}
  - {destination: {host: cart}, weight: 0}
  - {destination: {host: cart}, weight: 0}
",
    );
    // For several the destination's come first, and the rule's change what they wrote.
    assert_eq!(
        request_headers(&with(&weighted), GET, &[]),
        ["a: rule", "b: destination", "b: rule", "host: weighted.example"]
    );
    let answer = decide(&with(&single), GET, &[], 1);
    let mut map = header_map(&[("r", "service")]);
    answer.apply_to_response(&mut map, &Variables::default());
    assert_eq!(lines(&map), ["r: rule"]);
}

#[test]
fn the_authority_is_the_rewrites_before_the_rules_before_the_destinations() {
    let http = |rewrite: &str, rule: &str| {
        format!(
            "- {rewrite}headers: {{request: {{set: {{{rule}x: y}}}}}}\n  route:\n  - destination: {{host: stock}}\n    \
             headers: {{request: {{set: {{':authority': destination}}}}}}"
        )
    };
    for (rewrite, rule, expected) in [
        ("rewrite: {authority: rewrite}\n  ", "Host: rule, ", "rewrite"),
        ("", "Host: rule, ", "rule"),
        ("", "", "destination"),
    ] {
        assert_eq!(ask(&http(rewrite, rule), GET, &[]), format!("0: stock.shop:8000 host {expected}"));
    }
}

#[test]
fn timeouts_are_off_unless_they_are_set() {
    let route = "route: [{destination: {host: stock}}]";
    assert_eq!(ask(&format!("- {route}"), GET, &[]), "0: stock.shop:8000");
    assert_eq!(ask(&format!("- timeout: 1.5s\n  {route}"), GET, &[]), "0: stock.shop:8000 within 1.5s");
    assert_eq!(ask(&format!("- timeout: 0s\n  {route}"), GET, &[]), "0: stock.shop:8000");
}

#[test]
fn retries_are_two_unless_they_are_set() {
    let retries = |written: &str| {
        let snapshot = with(&rules(&format!("- {written}route: [{{destination: {{host: stock}}}}]")));
        assert_eq!(findings(&snapshot), [""; 0]);
        let decision = decide(&snapshot, GET, &[], 1);
        let policy = decision.retries().into_owned();
        format!(
            "{} {:?} on {} wait {:?} avoid {} remote {}",
            policy.attempts,
            policy.per_try_timeout,
            policy.on,
            policy.backoff,
            policy.avoid_previous_hosts,
            policy.remote_localities
        )
    };
    let default = "connect-failure,refused-stream,retriable-status-codes,cancelled,unavailable wait 25ms avoid true";
    assert_eq!(retries(""), format!("2 None on {default} remote false"));
    assert_eq!(retries("retries: {attempts: 0}\n  "), format!("0 None on {default} remote false"));
    assert_eq!(retries("retries: {attempts: 3}\n  "), format!("3 None on {default} remote false"));
    assert_eq!(
        retries(
            "retries: {attempts: 5, perTryTimeout: 2s, retryOn: '5xx,503', backoff: 1s, retryIgnorePreviousHosts: false, \
             retryRemoteLocalities: true}\n  "
        ),
        "5 Some(2s) on 5xx,retriable-status-codes,503 wait 1s avoid false remote true"
    );
}

#[test]
fn faults_are_injected_at_their_percentage_and_before_everything_else() {
    let http = |fault: &str| format!("- fault: {{{fault}}}\n  route: [{{destination: {{host: stock}}}}]");
    let all = "percentage: {value: 100}";
    for (fault, expected) in [
        (format!("delay: {{fixedDelay: 5s, {all}}}"), "0: after 5s stock.shop:8000"),
        ("delay: {fixedDelay: 5s, percent: 100}".to_owned(), "0: after 5s stock.shop:8000"),
        (format!("abort: {{httpStatus: 418, {all}}}"), "0: abort 418"),
        (format!("abort: {{grpcStatus: UNAVAILABLE, {all}}}"), "0: abort grpc 14"),
        (format!("delay: {{fixedDelay: 1s, {all}}}, abort: {{httpStatus: 500, {all}}}"), "0: after 1s abort 500"),
        ("abort: {httpStatus: 500, percentage: {value: 0}}".to_owned(), "0: stock.shop:8000"),
    ] {
        assert_eq!(ask(&http(&fault), GET, &[]), expected, "{fault}");
    }
    let snapshot = with(&rules(&http("abort: {httpStatus: 500}")));
    assert_eq!(describe(&decide(&snapshot, GET, &[], 1)), "0: stock.shop:8000");
    assert!(findings(&snapshot)[0].contains("aborts no request"));
    let half = with(&rules(&http("abort: {httpStatus: 500, percentage: {value: 50}}")));
    let aborted = (0..1_000).filter(|seed| describe(&decide(&half, GET, &[], *seed)).contains("abort")).count();
    assert!((400..600).contains(&aborted), "{aborted}");
}

#[test]
fn copies_go_to_mirrors_at_their_percentage() {
    let http = |mirror: &str| format!("- {mirror}\n  route: [{{destination: {{host: stock}}}}]");
    for (mirror, expected) in [
        ("mirror: {host: cart, port: {number: 81}}", " copy cart.shop:81"),
        ("mirror: {host: cart, subset: v2}\n  mirrorPercentage: {value: 100}", " copy cart.shop:80/v2"),
        ("mirror: {host: cart}\n  mirrorPercentage: {value: 0}", ""),
        ("mirror: {host: cart}\n  mirrorPercent: 0", ""),
        ("mirror: {host: cart}\n  mirror_percent: 100", " copy cart.shop:80"),
        ("mirror: {host: nobody}", ""),
        (
            "mirrors: [{destination: {host: cart}}, {destination: {host: stock}}, {destination: {host: stock}, percentage: {value: 0}}]",
            " copy cart.shop:80 copy stock.shop:8000",
        ),
    ] {
        assert_eq!(ask(&http(mirror), GET, &[]), format!("0: stock.shop:8000{expected}"), "{mirror}");
    }
}

#[test]
fn cors_answers_preflights_and_tells_web_pages_what_they_may_read() {
    let http = "
- corsPolicy:
    allowOrigins: [{exact: 'https://a.example'}, {regex: 'https://[a-z]+\\.b\\.example'}]
    allowMethods: [GET, PUT]
    allowHeaders: [x-a]
    exposeHeaders: [x-b]
    maxAge: 24h
    allowCredentials: true
    unmatchedPreflights: IGNORE
  route: [{destination: {host: stock}}]
";
    let preflight = |origin| [("origin", origin), ("access-control-request-method", "PUT")];
    let options = "OPTIONS http://cart/";
    assert_eq!(ask(http, options, &preflight("https://x.b.example")), "0: preflight 5");
    assert_eq!(ask(http, options, &preflight("https://evil.example")), "0: preflight 0");
    assert_eq!(ask(http, GET, &preflight("https://evil.example")), "0: stock.shop:8000");
    let forwarding = http.replace("    unmatchedPreflights: IGNORE\n", "");
    assert_eq!(ask(&forwarding, options, &preflight("https://evil.example")), "0: stock.shop:8000");
    let snapshot = with(&rules(http));
    let decision = decide(&snapshot, GET, &preflight("https://a.example"), 1);
    let mut answer = HeaderMap::new();
    decision.apply_to_response(&mut answer, &Variables::default());
    assert_eq!(
        lines(&answer),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-b",
        ]
    );
    let deprecated = "- corsPolicy: {allowOrigin: ['*']}\n  route: [{destination: {host: stock}}]";
    assert_eq!(ask(deprecated, options, &preflight("https://any.example")), "0: preflight 1");
}
