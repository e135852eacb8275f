//! Who is refused, and what they are told.

use culvert_core::identity::Identity;
use rcgen::{CertificateParams, KeyPair, SanType};
use std::time::Duration;

use tonic::{Code, Request};

use super::super::listener::Peer;

use super::server::{CaService, NODE_AGENT, jwt};
use crate::ca::{IstioCertificateRequest, IstioCertificateResponse};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn csr(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn request(token: &str, identity: Option<&str>, csr: String) -> Request<IstioCertificateRequest> {
    let metadata = identity.map(|name| IstioCertificateRequest::impersonating(name.to_owned()));
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 3600, metadata });
    request.metadata_mut().insert("authorization", format!("Bearer {}", jwt(token)).parse().unwrap());
    request
}

impl CaService {
    async fn ask(&self, token: &str, identity: Option<&str>, csr: String) -> Result<IstioCertificateResponse, String> {
        let answer = self.issuer.create_certificate(request(token, identity, csr)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            assert_eq!(status.message(), "request authenticate failure", "the caller learns nothing");
            self.metrics.last_refusal().to_owned()
        })
    }
}

#[tokio::test]
async fn a_node_agent_is_given_what_runs_on_its_node() {
    let ca = CaService::start().await;
    for names in [&[][..], &[CART]] {
        let answer = ca.ask("agent", Some(CART), csr(names)).await.unwrap();
        assert_eq!(answer.cert_chain.len(), 2, "the leaf, and the roots last");
        let leaf = rustls_pki_types::pem::PemObject::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
        let identities = crate::identity::peer_identities(&[leaf]).unwrap();
        assert_eq!(identities.as_slice(), [CART.parse::<Identity>().unwrap()]);
    }
}

#[tokio::test]
async fn anyone_is_given_their_own() {
    let ca = CaService::start().await;
    ca.cluster.accept("waypoint", "system:serviceaccount:shop:waypoint", &["istio-ca", "other"], None);
    let own = "spiffe://cluster.local/ns/shop/sa/waypoint";
    for asked in [None, Some(own)] {
        let answer = ca.ask("waypoint", asked, csr(&[own])).await.unwrap();
        let leaf = rustls_pki_types::pem::PemObject::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
        assert_eq!(crate::identity::peer_identities(&[leaf]).unwrap()[0].to_string(), own);
    }
    assert_eq!(ca.cluster.looks(), 0, "no pod is looked for");
}

#[tokio::test]
async fn whoever_may_not_is_refused_and_the_reason_is_counted() {
    let ca = CaService::start().await;
    let cluster = &ca.cluster;
    cluster.accept("audience", NODE_AGENT, &["https://kubernetes.default.svc"], Some(("agent-1", "u1")));
    cluster.accept("person", "admin", &["istio-ca"], None);
    cluster.accept("unbound", NODE_AGENT, &["istio-ca"], None);
    cluster.accept("deleted", NODE_AGENT, &["istio-ca"], Some(("agent-0", "u0")));
    cluster.accept("successor", NODE_AGENT, &["istio-ca"], Some(("agent-1", "u0")));
    cluster.accept("unscheduled", NODE_AGENT, &["istio-ca"], Some(("agent-3", "u3")));
    cluster.pod("culvert-system", "agent-3", "u3", "", "culvert-node", "Pending");
    cluster.accept("elsewhere", NODE_AGENT, &["istio-ca"], Some(("agent-9", "u9")));
    cluster.pod("culvert-system", "agent-9", "u9", "n9", "culvert-node", "Running");
    cluster.accept("web", "system:serviceaccount:shop:web", &["istio-ca"], Some(("web-1", "w1")));

    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let good = || csr(&[]);
    for (reason, token, identity, csr) in [
        ("token", "expired or made up", CART, good()),
        ("audience", "audience", CART, good()),
        ("not_a_service_account", "person", CART, good()),
        ("unbound_token", "unbound", CART, good()),
        ("pod", "deleted", CART, good()),
        ("pod", "successor", CART, good()),
        ("pod", "unscheduled", CART, good()),
        ("other_node", "elsewhere", CART, good()),
        ("other_node", "agent", web, good()),
        ("other_node", "agent", "spiffe://cluster.local/ns/kube-system/sa/cart", good()),
        ("other_node", "agent", "spiffe://cluster.local/ns/shop/sa/job", good()),
        ("not_trusted", "web", CART, good()),
        ("trust_domain", "agent", "spiffe://elsewhere/ns/shop/sa/cart", good()),
        ("not_an_identity", "agent", "spiffe://cluster.local/shop/cart", good()),
        ("csr_name", "agent", CART, csr(&[web])),
        ("csr", "agent", CART, csr(&[CART, web])),
        ("csr", "agent", CART, csr(&[CART, CART])),
        ("csr", "agent", CART, "no CSR at all".to_owned()),
        ("csr", "agent", CART, "x".repeat(40 << 10)),
    ] {
        assert_eq!(ca.ask(token, Some(identity), csr).await, Err(reason.to_owned()), "{token} for {identity}");
    }
    ca.ask("agent", Some(CART), good()).await.expect("nothing else is disturbed");
}

#[tokio::test]
async fn a_request_without_a_token_is_refused_before_anything_is_asked() {
    let ca = CaService::start().await;
    ca.cluster.go_away();
    let mut request = request("", Some(CART), csr(&[]));
    request.metadata_mut().remove("authorization");
    let status = ca.issuer.create_certificate(request).await.unwrap_err();
    assert_eq!((status.code(), ca.metrics.last_refusal()), (Code::Unauthenticated, "no_token"));
}

#[tokio::test]
async fn what_cannot_be_a_token_costs_no_review() {
    let ca = CaService::start().await;
    for (junk, reason) in [("junk", "token"), ("a.b.c", "token")] {
        let mut request = request("", Some(CART), csr(&[]));
        request.metadata_mut().insert("authorization", format!("Bearer {junk}").parse().unwrap());
        let status = ca.issuer.create_certificate(request).await.unwrap_err();
        assert_eq!((status.code(), ca.metrics.last_refusal()), (Code::Unauthenticated, reason));
    }
    assert_eq!(ca.cluster.reviews(), 0);
}

/// Its tokens look as they should, and the API server takes its time over each.
#[tokio::test(start_paused = true)]
async fn who_asks_a_thousand_times_holds_up_nobody_else() {
    let ca = CaService::start().await;
    let from = |address: [u8; 4], token: &str| {
        let mut request = request(token, Some(CART), csr(&[]));
        request.extensions_mut().insert(Peer((address, 1).into()));
        request
    };
    ca.cluster.be_slow(Duration::from_secs(2));
    let flood: Vec<_> = (0..1000)
        .map(|number| {
            let (issuer, request) = (ca.issuer.clone(), from([10, 0, 0, 66], &format!("junk {number}")));
            tokio::spawn(async move { issuer.create_certificate(request).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let started = tokio::time::Instant::now();
    ca.issuer.create_certificate(from([10, 0, 0, 1], "agent")).await.expect("an agent is not held up");
    // Its token, its own pod and the one it asks for.
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_api_server_that_is_away_is_not_the_callers_fault() {
    let ca = CaService::start().await;
    ca.cluster.go_away();
    let status = ca.issuer.create_certificate(request("agent", Some(CART), csr(&[]))).await.unwrap_err();
    assert_eq!((status.code(), ca.metrics.last_refusal()), (Code::Unavailable, "api_server"));
    assert_eq!(status.message(), "cannot sign now");
}
