//! HTTPRoute, GRPCRoute, TCPRoute and TLSRoute with Services and ServiceEntries as parents, as facts.

use super::*;
use crate::route::decide::route_connection;

fn object(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    let version = if kind == "ReferenceGrant" { "v1beta1" } else { version };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: \
         {namespace}, creationTimestamp: '2020-01-01T00:00:00Z'}}\nspec:\n{spec}\n"
    )
}

const PARENT: &str = "  parentRefs: [{group: '', kind: Service, name: cart}]\n";

/// An HTTPRoute of the cart with these rules.
fn http(rules: &str) -> String {
    let rules: String = rules.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    object("HTTPRoute", "cart", "shop", &format!("{PARENT}  rules:\n{rules}"))
}

const STOCK: &str = "{name: stock, port: 8000}";

fn ask_http(rules: &str, line: &str, headers: &[(&str, &str)]) -> String {
    describe(&decide(&with(&http(rules)), line, headers, 1))
}

fn statuses(snapshot: &Snapshot) -> Vec<String> {
    let all = snapshot.route_statuses().flat_map(|(object, list)| list.iter().map(move |status| (object, status)));
    all.map(|(object, status)| {
        let condition = |condition: &crate::route::gateway_api::Condition| {
            assert_eq!(condition.status, condition.message.is_empty(), "{condition:?}");
            format!("{}={}", condition.reason, condition.status)
        };
        format!("{object} {}: {} {}", status.parent.name, condition(&status.accepted), condition(&status.resolved_refs))
    })
    .collect()
}

#[test]
fn every_match_of_an_http_route_decides() {
    let rule = |matched: &str| format!("- matches: [{matched}]\n  backendRefs: [{STOCK}]");
    for (matched, line, headers, taken) in [
        ("{path: {type: PathPrefix, value: /foo}}", "GET http://cart/foo/bar", &[][..], true),
        ("{path: {type: PathPrefix, value: /foo}}", "GET http://cart/foobar", &[], false),
        ("{path: {type: PathPrefix, value: /foo/}}", "GET http://cart/foo", &[], true),
        ("{path: {type: PathPrefix, value: /}}", "GET http://cart/x", &[], true),
        ("{path: {type: Exact, value: /foo}}", "GET http://cart/foo?q", &[], true),
        ("{path: {type: Exact, value: /foo}}", "GET http://cart/foo/", &[], false),
        ("{path: {type: RegularExpression, value: '/f.*'}}", "GET http://cart/foo", &[], true),
        ("{method: POST}", "POST http://cart/", &[], true),
        ("{method: POST}", "GET http://cart/", &[], false),
        ("{headers: [{name: X-User, value: eve}]}", "GET http://cart/", &[("x-user", "eve")], true),
        ("{headers: [{name: x, value: a}, {name: X, value: b}]}", "GET http://cart/", &[("x", "a")], true),
        ("{headers: [{name: x, type: RegularExpression, value: 'a+'}]}", "GET http://cart/", &[("x", "aa")], true),
        ("{queryParams: [{name: q, value: '1'}]}", "GET http://cart/?q=1", &[], true),
        ("{queryParams: [{name: q, type: RegularExpression, value: '[0-9]'}]}", "GET http://cart/?q=x", &[], false),
        ("{}", "GET http://cart/any", &[], true),
    ] {
        let expected = if taken { "0: stock.shop:8000" } else { "-: 404 NR" };
        assert_eq!(ask_http(&rule(matched), line, headers), expected, "{matched} {line}");
    }
}

#[test]
fn the_most_specific_match_comes_first_whatever_its_position() {
    let status = |status: u16| {
        format!("filters: [{{type: RequestRedirect, requestRedirect: {{statusCode: {status}, hostname: r}}}}]")
    };
    let rules = [
        format!("- matches: [{{path: {{value: /}}}}]\n  {}", status(301)),
        format!("- matches: [{{path: {{value: /a}}}}]\n  {}", status(302)),
        format!("- matches: [{{path: {{value: /a}}, method: GET}}]\n  {}", status(303)),
        format!("- matches: [{{path: {{value: /a}}, headers: [{{name: h, value: v}}]}}]\n  {}", status(307)),
        format!("- matches: [{{path: {{value: /a/b}}}}, {{path: {{type: Exact, value: /a}}}}]\n  {}", status(308)),
    ];
    let rules = rules.join("\n");
    for (line, headers, expected) in [
        ("PUT http://cart/x", &[][..], "0: 301"),
        ("PUT http://cart/a/x", &[], "1: 302"),
        ("GET http://cart/a/x", &[("h", "v")], "2: 303"),
        ("PUT http://cart/a/x", &[("h", "v")], "3: 307"),
        ("GET http://cart/a/b", &[], "4: 308"),
        ("GET http://cart/a", &[], "4: 308"),
    ] {
        let outcome = ask_http(&rules, line, headers);
        assert!(outcome.starts_with(expected), "{line} {headers:?}: {outcome}");
    }
}

#[test]
fn of_equals_the_older_route_comes_first_then_by_name() {
    let route = |name: &str, year: u16, status: u16| {
        object("HTTPRoute", name, "shop", &format!(
            "{PARENT}  rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{statusCode: {status}, hostname: r}}}}]}}]"
        ))
        .replace("2020", &year.to_string())
    };
    let outcome = |objects: &[String]| describe(&decide(&with(&objects.concat()), "GET http://cart/", &[], 1));
    assert!(outcome(&[route("a", 2022, 301), route("b", 2021, 302)]).contains("302"));
    assert!(outcome(&[route("b", 2021, 301), route("a", 2021, 302)]).contains("302"));
}

#[test]
fn every_filter_is_carried_out() {
    let rule =
        |filter: &str| format!("- matches: [{{path: {{value: /a}}}}]\n  filters: [{filter}]\n  backendRefs: [{STOCK}]");
    for (filter, line, expected) in [
        (
            "{type: RequestRedirect, requestRedirect: {scheme: https, hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}",
            "GET http://cart:80/a/c?q",
            "0: 302 https://b.example/x/c?q",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {port: 8443, statusCode: 301}}",
            "GET http://cart/a",
            "0: 301 http://cart:8443/a",
        ),
        ("{type: RequestRedirect, requestRedirect: {hostname: b}}", "GET http://cart:81/a", "0: 302 http://b:81/a"),
        (
            "{type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}",
            "GET http://cart/a/b",
            "0: stock.shop:8000 path /b host b.example",
        ),
        (
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}",
            "GET http://cart/a/b?q",
            "0: stock.shop:8000 path /x?q",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 81}}}",
            "GET http://cart/a",
            "0: stock.shop:8000 copy cart.shop:81",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 81}, percent: 0}}",
            "GET http://cart/a",
            "0: stock.shop:8000",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 81}, fraction: {numerator: 5, denominator: 5}}}",
            "GET http://cart/a",
            "0: stock.shop:8000 copy cart.shop:81",
        ),
    ] {
        assert_eq!(ask_http(&rule(filter), line, &[]), expected, "{filter}");
    }
    let cors = rule("{type: CORS, cors: {allowOrigins: ['https://*.example'], allowMethods: [GET], maxAge: 7}}");
    let preflight = |origin| [("origin", origin), ("access-control-request-method", "GET")];
    assert_eq!(ask_http(&cors, "OPTIONS http://cart/a", &preflight("https://a.example")), "0: preflight 3");
    assert_eq!(ask_http(&cors, "OPTIONS http://cart/a", &preflight("https://evil")), "0: stock.shop:8000");
}

#[test]
fn headers_are_modified_by_rules_and_by_backends() {
    let rules = "
- filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '100%'}], add: [{name: b, value: r}], remove: [c]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: r, value: rule}]}}
  backendRefs:
  - name: stock
    port: 8000
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: d, value: backend}]}}]
";
    let snapshot = with(&http(rules));
    assert_eq!(request_headers(&snapshot, "GET http://cart/", &[("c", "x")]), ["a: 100%", "b: r", "d: backend"]);
    let mut answer = HeaderMap::new();
    decide(&snapshot, "GET http://cart/", &[], 1).apply_to_response(&mut answer, &Variables::default());
    assert_eq!(lines(&answer), ["r: rule"]);
}

#[test]
fn timeouts_retries_and_sessions_are_read() {
    let rules = format!(
        "- timeouts: {{request: 10s, backendRequest: 2s}}\n  retry: {{attempts: 3, codes: [500, 503], backoff: 100ms}}\n  \
         sessionPersistence: {{sessionName: s, type: Cookie, absoluteTimeout: 1h, cookieConfig: {{lifetimeType: Permanent}}}}\n  \
         backendRefs: [{STOCK}]"
    );
    let decision = decide(&with(&http(&rules)), "GET http://cart/", &[], 1);
    let retries = decision.retries();
    assert_eq!(decision.timeout(), Some(std::time::Duration::from_secs(10)));
    assert_eq!((retries.attempts, retries.per_try_timeout), (3, Some(std::time::Duration::from_secs(2))));
    assert_eq!(retries.on.to_string(), "reset,connect-failure,refused-stream,retriable-status-codes,500,503");
    assert_eq!(retries.backoff, std::time::Duration::from_millis(100));
    let session = decision.rule.as_ref().unwrap().session.clone().unwrap();
    assert_eq!((&*session.name, session.header, session.lifetime.map(|l| l.as_secs())), ("s", false, Some(3600)));
}

#[test]
fn backends_that_cannot_be_used_answer_their_share_with_500() {
    for (backends, expected, status) in [
        ("[]", "0: 500 NR", "Accepted=true ResolvedRefs=true"),
        ("[{name: stock, port: 8000, weight: 0}]", "0: 500 NR", "Accepted=true ResolvedRefs=true"),
        ("[{name: nobody, port: 80}]", "0: 500 NR", "Accepted=true BackendNotFound=false"),
        ("[{name: stock, port: 1}]", "0: 500 NR", "Accepted=true BackendNotFound=false"),
        ("[{name: stock}]", "0: 500 NR", "Accepted=true BackendNotFound=false"),
        ("[{group: apps, kind: Deployment, name: stock, port: 80}]", "0: 500 NR", "Accepted=true InvalidKind=false"),
        ("[{name: stock, namespace: other, port: 9000}]", "0: 500 NR", "Accepted=true RefNotPermitted=false"),
        (
            "[{group: networking.istio.io, kind: Hostname, name: stock.other.svc.cluster.local, port: 9000}]",
            "0: stock.other:9000",
            "Accepted=true ResolvedRefs=true",
        ),
    ] {
        let snapshot = with(&http(&format!("- backendRefs: {backends}")));
        assert_eq!(describe(&decide(&snapshot, "GET http://cart/", &[], 1)), expected, "{backends}");
        assert_eq!(statuses(&snapshot), [format!("HTTPRoute shop/cart cart: {status}")], "{backends}");
    }
    let half = with(&http("- backendRefs: [{name: stock, port: 8000}, {name: nobody, port: 80}]"));
    let lost = (0..500).filter(|seed| describe(&decide(&half, "GET http://cart/", &[], *seed)).contains("500")).count();
    assert!((175..325).contains(&lost), "{lost}");
}

#[test]
fn a_reference_grant_lets_a_route_name_a_service_of_another_namespace() {
    use crate::mesh::Change;
    use crate::mesh::tests::objects;
    let route = http("- backendRefs: [{name: stock, namespace: other, port: 9000}]");
    let grant = |kind: &str, from: &str, name: &str| {
        object(
            "ReferenceGrant",
            "grant",
            "other",
            &format!(
                "  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}]\n  \
             to: [{{group: '', kind: Service{name}}}]"
            ),
        )
    };
    let mut mesh = mesh(&format!("{MESH}{route}"));
    let ask = |mesh: &crate::mesh::Mesh| describe(&decide(&mesh.snapshot(), "GET http://cart/", &[], 1));
    assert_eq!(ask(&mesh), "0: 500 NR");
    for (grant, permits) in [
        (grant("HTTPRoute", "shop", ""), true),
        (grant("HTTPRoute", "shop", ", name: stock"), true),
        (grant("HTTPRoute", "shop", ", name: cart"), false),
        (grant("HTTPRoute", "evil", ""), false),
        (grant("GRPCRoute", "shop", ""), false),
        (grant("HTTPRoute", "shop", ""), true),
    ] {
        mesh.apply(objects(grant.trim_start_matches("---\n")));
        assert_eq!(ask(&mesh), if permits { "0: stock.other:9000" } else { "0: 500 NR" }, "{grant}");
    }
    mesh.apply([Change::Remove(culvert_api::ObjectRef::new(culvert_api::Kind::ReferenceGrant, "other", "grant"))]);
    assert_eq!(ask(&mesh), "0: 500 NR");
}

#[test]
fn parents_take_a_route_or_say_why_not() {
    let rules = format!("  rules: [{{backendRefs: [{STOCK}]}}]");
    for (parents, expected) in [
        ("[{kind: Service, group: '', name: cart}]", &["cart: Accepted=true ResolvedRefs=true"][..]),
        ("[{kind: Service, group: '', name: cart, port: 81}]", &["cart: Accepted=true ResolvedRefs=true"]),
        ("[{kind: Service, group: '', name: cart, port: 9}]", &["cart: NoMatchingParent=false ResolvedRefs=true"]),
        ("[{kind: Service, group: '', name: nobody}]", &["nobody: NoMatchingParent=false ResolvedRefs=true"]),
        (
            "[{kind: Service, group: '', name: cart, sectionName: http}]",
            &["cart: NoMatchingParent=false ResolvedRefs=true"],
        ),
        (
            "[{kind: Service, group: '', name: stock, namespace: other}]",
            &["stock: NotAllowedByListeners=false ResolvedRefs=true"],
        ),
        ("[{name: gateway}]", &[]),
    ] {
        let snapshot = with(&object("HTTPRoute", "r", "shop", &format!("  parentRefs: {parents}\n{rules}")));
        let expected: Vec<_> = expected.iter().map(|line| format!("HTTPRoute shop/r {line}")).collect();
        assert_eq!(statuses(&snapshot), expected, "{parents}");
    }
    let port =
        with(&object("HTTPRoute", "r", "shop", &format!("{}{rules}", PARENT.replace("cart}", "cart, port: 81}"))));
    assert_eq!(describe(&decide(&port, "GET http://cart:81/", &[], 1)), "0: stock.shop:8000");
    assert_eq!(describe(&decide(&port, "GET http://cart:80/", &[], 1)), "-: 404 NR");
}

#[test]
fn a_route_of_another_namespace_never_captures_a_service() {
    let route = object(
        "HTTPRoute",
        "r",
        "evil",
        &format!(
            "  parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}]\n  rules: [{{backendRefs: [{STOCK}]}}]"
        ),
    );
    assert_eq!(describe(&decide(&with(&route), "GET http://cart/", &[], 1)), "-: cart.shop:80");
}

#[test]
fn a_service_entry_may_be_the_parent() {
    let objects = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec: {hosts: [api.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
"
    .to_owned()
        + &object("HTTPRoute", "r", "shop", &format!(
            "  parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: api}}]\n  rules: [{{backendRefs: [{STOCK}]}}]"
        ));
    let snapshot = with(&objects);
    assert_eq!(describe(&decide(&snapshot, "GET http://api.example.com/", &[], 1)), "0: stock.shop:8000");
}

#[test]
fn what_is_not_supported_is_told_and_answers_500() {
    for (rule, reason) in [
        (
            format!(
                "- filters: [{{type: ExtensionRef, extensionRef: {{group: g, kind: k, name: n}}}}]\n  backendRefs: [{STOCK}]"
            ),
            "UnsupportedValue",
        ),
        (
            format!(
                "- filters: [{{type: URLRewrite, urlRewrite: {{hostname: a}}}}, {{type: RequestRedirect, requestRedirect: {{hostname: b}}}}]\n  backendRefs: [{STOCK}]"
            ),
            "IncompatibleFilters",
        ),
        (
            format!(
                "- filters: [{{type: RequestRedirect, requestRedirect: {{hostname: 'a b'}}}}]\n  backendRefs: [{STOCK}]"
            ),
            "UnsupportedValue",
        ),
        ("- filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300}}]".to_owned(), "UnsupportedValue"),
    ] {
        let snapshot = with(&http(&rule));
        assert_eq!(describe(&decide(&snapshot, "GET http://cart/", &[], 1)), "0: 500 NR", "{rule}");
        assert_eq!(statuses(&snapshot), [format!("HTTPRoute shop/cart cart: {reason}=false ResolvedRefs=true")]);
    }
    let regex =
        http(&format!("- matches: [{{path: {{type: RegularExpression, value: '('}}}}]\n  backendRefs: [{STOCK}]"));
    assert_eq!(statuses(&with(&regex)), ["HTTPRoute shop/cart cart: UnsupportedValue=false ResolvedRefs=true"]);
}

#[test]
fn a_grpc_route_matches_methods() {
    let ask = |matched: &str, path: &str, headers: &[(&str, &str)]| {
        let spec = format!("{PARENT}  rules: [{{matches: [{matched}], backendRefs: [{STOCK}]}}]");
        let snapshot = with(&object("GRPCRoute", "g", "shop", &spec));
        describe(&decide(&snapshot, &format!("POST http://cart{path}"), headers, 1))
    };
    for (matched, path, taken) in [
        ("{method: {service: a.S, method: M}}", "/a.S/M", true),
        ("{method: {service: a.S, method: M}}", "/a.S/N", false),
        ("{method: {service: a.S}}", "/a.S/N", true),
        ("{method: {service: a.S}}", "/a.Second/N", false),
        ("{method: {method: M}}", "/any/M", true),
        ("{method: {type: RegularExpression, service: 'a\\..*'}}", "/a.X/M", true),
        ("{headers: [{name: h, value: v}]}", "/a.X/M", true),
    ] {
        let expected = if taken { "0: stock.shop:8000" } else { "-: 404 NR" };
        assert_eq!(ask(matched, path, &[("h", "v")]), expected, "{matched} {path}");
    }
}

#[test]
fn tcp_and_tls_routes_take_connections() {
    let connect = |objects: &str, sni: Option<&str>| {
        let snapshot = with(objects);
        let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
        let origin = Origin { sni, ..origin_of(service) };
        match route_connection(&snapshot, &origin, &mut SmallRng::seed_from_u64(1)) {
            Ok((to, _)) => target(&to),
            Err(why) => why.status().to_string(),
        }
    };
    let tcp = object("TCPRoute", "t", "shop", &format!("{PARENT}  rules: [{{backendRefs: [{STOCK}]}}]"));
    assert_eq!(connect(&tcp, None), "stock.shop:8000");
    let gone = tcp.replace("name: stock", "name: nobody");
    assert_eq!(connect(&gone, None), "500");
    let tls = object(
        "TLSRoute",
        "t",
        "shop",
        &format!("  hostnames: ['*.a.example']\n{PARENT}  rules: [{{backendRefs: [{STOCK}]}}]"),
    );
    assert_eq!(connect(&tls, Some("x.a.example")), "stock.shop:8000");
    assert_eq!((connect(&tls, Some("b.example")), connect(&tls, None)), ("cart.shop:80".into(), "cart.shop:80".into()));
}

#[test]
fn a_service_that_comes_later_is_found() {
    use crate::mesh::tests::objects;
    let mut mesh = crate::mesh::Mesh::new();
    mesh.apply(objects(http(&format!("- backendRefs: [{STOCK}]")).trim_start_matches("---\n")));
    mesh.apply(objects(MESH));
    let snapshot = mesh.snapshot();
    assert_eq!(describe(&decide(&snapshot, "GET http://cart/", &[], 1)), "0: stock.shop:8000");
    assert_eq!(statuses(&snapshot), ["HTTPRoute shop/cart cart: Accepted=true ResolvedRefs=true"]);
}

#[test]
fn routes_come_before_virtual_services() {
    let both = rules("- directResponse: {status: 201}")
        + &http(&format!("- matches: [{{path: {{value: /a}}}}]\n  backendRefs: [{STOCK}]"));
    let snapshot = with(&both);
    assert_eq!(describe(&decide(&snapshot, "GET http://cart/a", &[], 1)), "0: stock.shop:8000");
    assert_eq!(describe(&decide(&snapshot, "GET http://cart/b", &[], 1)), "0: 201 b\"\"");
    assert!(findings(&snapshot)[0].contains("HTTPRoute shop/cart"), "{:?}", findings(&snapshot));
}

#[test]
fn rules_and_matches_beyond_what_the_crd_allows_are_left_out_and_told() {
    let rule = |at: usize| format!("- {{matches: [{{path: {{value: /{at}}}}}], backendRefs: [{STOCK}]}}\n");
    let matched = |at: usize| format!("{{path: {{value: /{at}}}}}");
    let rules = |count| (0..count).map(rule).collect::<String>();
    let matches = |count| {
        let list: Vec<_> = (0..count).map(matched).collect();
        format!("- matches: [{}]\n  backendRefs: [{STOCK}]", list.join(", "))
    };
    for (written, last, accepted) in [
        (rules(16), 15, "Accepted=true"),
        (rules(17), 15, "UnsupportedValue=false"),
        (matches(64), 63, "Accepted=true"),
        (matches(65), 63, "UnsupportedValue=false"),
    ] {
        let snapshot = with(&http(&written));
        assert_eq!(statuses(&snapshot), [format!("HTTPRoute shop/cart cart: {accepted} ResolvedRefs=true")]);
        let ask = |at: usize| describe(&decide(&snapshot, &format!("GET http://cart/{at}"), &[], 1));
        assert!(ask(last).contains("stock"), "{}", ask(last));
        assert!(!ask(last + 1).contains("stock"), "{}", ask(last + 1));
    }
}

#[test]
fn what_is_wrong_with_a_route_is_a_finding_until_it_is_mended() {
    let route = |backend: &str| http(&format!("- backendRefs: [{{name: {backend}, port: 8000}}]"));
    let about_routes = |snapshot: &Snapshot| -> Vec<String> {
        let all = snapshot.findings().filter(|(object, _)| object.kind == culvert_api::Kind::HTTPRoute);
        all.map(|(_, finding)| finding.to_string()).collect()
    };
    let found = about_routes(&with(&route("nobody")));
    assert!(
        found.len() == 1 && found[0].contains("spec.rules: ") && found[0].contains("Service shop/nobody"),
        "{found:?}"
    );
    assert_eq!(about_routes(&with(&route("stock"))), Vec::<String>::new());
    // A service that comes later mends it.
    let mut mesh = crate::mesh::Mesh::new();
    mesh.apply(crate::mesh::tests::objects(&route("stock")));
    assert_eq!(about_routes(&mesh.snapshot()).len(), 2, "neither parent nor backend is there");
    let services = "
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 8000}]}}
";
    mesh.apply(crate::mesh::tests::objects(services));
    assert_eq!(about_routes(&mesh.snapshot()), Vec::<String>::new());
    // Nothing would apply it, though, and that is told as well.
    let unserved: Vec<_> = mesh.snapshot().unbound().map(|finding| finding.to_string()).collect();
    assert!(unserved.iter().any(|line| line.contains("spec.parentRefs: has no effect")), "{unserved:?}");
}
