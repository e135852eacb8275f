//! Who may do what: policies, tokens and providers in front of a service, with real requests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use culvert_tests::{Place, Pod, objects};

use crate::world::{CART_HTTP, LIMIT, World};

/// Signed by the key of RFC 8037, appendix A; `https://issuer.example`, `alice` and `mallory`.
const ALICE: &str = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYWxpY2UifQ.\
                     DwnUYNS0jUC3fQ4VHZaFV9AuVDZ-z4OZG-kwepYd4xZ_5mqEnL6NIojaPq0TK7F4F1gf6WO1ka54UymZDB0ECw";
const MALLORY: &str = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoibWFsbG9yeSJ9.\
                       ciOTwbtkd3dCB0mCYWHOk_osXZTgYgYhN5M1qWB7WA7o1wDWIsUcdf7wgUor0ZhH9FsTwOUMk_kFMwwGhFgMBQ";

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  rules:
  - to: [{operation: {paths: [/public*, /ask*], methods: [GET]}}]
  - from: [{source: {requestPrincipals: ["https://issuer.example/alice"]}}]
    to: [{operation: {paths: [/alice]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  action: DENY
  rules: [{to: [{operation: {paths: [/public/secret]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: [/ask*]}}]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
---
apiVersion: v1
kind: ConfigMap
metadata: {name: culvert, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: opa
      envoyExtAuthzHttp: {service: authz.shop.svc.cluster.local, port: 80, includeRequestHeadersInCheck: [x-ok], timeout: 5s}
"#;

/// Where the provider answers in its pod.
const PROVIDER: u16 = 8500;

/// Agrees to what carries `x-ok`, and refuses the rest.
struct Provider {
    stop: Arc<AtomicBool>,
    place: Place,
}

impl Provider {
    fn start(pod: &Pod) -> Result<Self> {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PROVIDER);
        let listener = pod.run(|| TcpListener::bind(any))?.context("the provider's port")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (place, stopped) = (pod.place(), stop.clone());
        // It ends with the next connection once it is to stop.
        drop(place.spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !stopped.load(Ordering::Relaxed)) {
                thread::spawn(move || decide(stream));
            }
        }));
        Ok(Self { stop, place })
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // By loopback, which is never steered.
        let _ = self.place.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PROVIDER)));
    }
}

fn decide(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut head = Vec::new();
    let mut byte = [0];
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let agrees = String::from_utf8_lossy(&head).contains("x-ok: yes");
        head.clear();
        stream.write_all(match agrees {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".as_slice(),
            false => b"HTTP/1.1 403 Forbidden\r\nX-Why: asked\r\nContent-Length: 6\r\n\r\nnot ok",
        })?;
    }
}

/// The answer to a GET of the cart, head and body.
fn get(world: &World, path: &str, headers: &[(&str, &str)]) -> Result<String> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: cart.shop\r\n{headers}Connection: close\r\n\r\n");
    let answer = world.in_client(CART_HTTP, |to| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    answer.with_context(|| format!("{path}\n{}", world.logs()))
}

#[test]
fn policies_tokens_and_providers_decide_about_each_request() -> Result<()> {
    let authz = ["10.96.0.7".parse()?];
    let authz = objects::service("shop", "authz", &authz, "other", &[("http", 80, PROVIDER)]);
    let world = World::with(&[POLICIES.to_owned(), authz], &[])?;
    let _provider = Provider::start(world.pod("other"))?;
    let (alice, mallory) = (format!("Bearer {ALICE}"), format!("Bearer {MALLORY}"));
    let rbac = "RBAC: access denied";
    for (path, headers, status, says) in [
        ("/public/x", vec![], 200, "cart saw"),
        ("/public/secret", vec![], 403, rbac),
        ("/public/./a/../%73ecret?x", vec![], 403, rbac),
        ("/other", vec![], 403, rbac),
        ("/alice", vec![], 403, rbac),
        ("/alice", vec![("Authorization", &*alice)], 200, "cart saw"),
        ("/alice", vec![("Authorization", &*mallory)], 403, rbac),
        ("/public/x", vec![("Authorization", "Bearer e30.e30.e30")], 401, "Jwt header [alg] is not supported"),
        ("/ask/x", vec![], 403, "not ok"),
        ("/ask/x", vec![("X-Ok", "yes")], 200, "cart saw"),
        ("/ask/x", vec![], 403, "x-why: asked"),
    ] {
        let answer = get(&world, path, &headers)?;
        let is_so = answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says);
        ensure!(is_so, "{path} {headers:?}: {answer}\n{}", world.logs());
    }
    for (code, expected) in [("200", 3.0), ("401", 1.0), ("403", 7.0)] {
        let counted = world.waypoint.metric("istio_requests_total", &[("response_code", code)])?;
        ensure!(counted == expected, "{counted} requests were answered {code}\n{}", world.logs());
    }
    Ok(())
}
