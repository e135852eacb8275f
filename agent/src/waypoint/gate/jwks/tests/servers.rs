//! Key servers as they are, and as they should not be, on loopback.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::client::Tls;
use super::super::fetch::Fetcher;
use super::super::{Fetch as _, address};
use super::*;
use crate::waypoint::gate::reach::{ReachError, Server, Stream};
use crate::waypoint::gate::tests::mesh;

/// Goes to one address, whatever it is asked for.
struct To(SocketAddr);

impl Reach for To {
    fn connect(
        &self,
        server: Server,
        refused: fn(IpAddr) -> Option<&'static str>,
    ) -> BoxFuture<'static, Result<Stream, ReachError>> {
        let to = self.0;
        Box::pin(async move {
            assert_eq!((&*server.service.key.hostname, server.port), ("keys.shop.svc.cluster.local", 8080));
            if let Some(why) = refused(to.ip()) {
                return Err(ReachError(why.to_owned()));
            }
            let stream = tokio::net::TcpStream::connect(to).await.map_err(|error| ReachError(error.to_string()))?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn send(
        &self,
        _: Server,
        _: Request<crate::waypoint::body::Body>,
    ) -> BoxFuture<'static, Result<Response<crate::waypoint::body::Body>, ReachError>> {
        unreachable!("keys are fetched over a connection")
    }
}

/// What a server says to a path.
fn answer(path: &str, own: &str) -> Response<Full<Bytes>> {
    let ok = |text: String| Response::new(Full::from(text));
    match path {
        "/jwks?a=b" | "/jwks" => ok(KEYS.to_owned()),
        "/.well-known/openid-configuration" => ok(format!(r#"{{"issuer":"x","jwks_uri":"{own}/jwks"}}"#)),
        "/plain/.well-known/openid-configuration" => ok(r#"{"jwks_uri":"http://127.0.0.1/jwks"}"#.to_owned()),
        "/empty/.well-known/openid-configuration" => ok("{}".to_owned()),
        "/inner/.well-known/openid-configuration" => ok(r#"{"jwks_uri":"https://169.254.169.254/"}"#.to_owned()),
        "/redirect" => Response::builder()
            .status(StatusCode::FOUND)
            .header("location", "http://169.254.169.254/latest")
            .body(Full::default())
            .unwrap(),
        "/huge" => ok(" ".repeat(300 << 10)),
        "/text" => ok("<html>".to_owned()),
        _ => Response::builder().status(404).body(Full::default()).unwrap(),
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, own: String) {
    let service = service_fn(move |request: Request<Incoming>| {
        let own = own.clone();
        async move {
            if request.uri().path() == "/slow" {
                std::future::pending::<()>().await;
            }
            assert_eq!(request.headers()["accept"], "application/json");
            Ok::<_, Infallible>(answer(request.uri().path_and_query().unwrap().as_str(), &own))
        }
    });
    // A client may go away as it likes.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server, and the roots that it is known by where it speaks TLS.
async fn server(tls: bool) -> (SocketAddr, RootCertStore) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut roots = RootCertStore::empty();
    let acceptor = tls.then(|| {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        roots.add(made.cert.der().clone()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    None => serve(stream, format!("http://{address}")).await,
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        serve(stream, format!("https://{address}")).await;
                    }
                }
            });
        }
    });
    (address, roots)
}

fn anywhere(_: IpAddr) -> Option<&'static str> {
    None
}

fn fetcher(to: SocketAddr, roots: RootCertStore, refused: fn(IpAddr) -> Option<&'static str>) -> Arc<Fetcher> {
    const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: keys, namespace: shop}, spec: {clusterIP: \
                           10.96.7.7, ports: [{name: http, port: 8080}]}}";
    let mesh = Arc::new(ArcSwap::new(mesh(SERVICE)));
    let tls = if roots.is_empty() { Tls::of_system() } else { Tls::of_roots(roots).unwrap() };
    Arc::new(Fetcher::with(mesh, Arc::new(To(to)), tls, refused))
}

async fn fetch(fetcher: &Arc<Fetcher>, source: KeySource) -> Result<usize, String> {
    fetcher.fetch(source, Duration::from_millis(500)).await.map(|keys| keys.len())
}

fn url(text: impl Into<String>) -> KeySource {
    KeySource::Url(text.into().into())
}

fn issuer(text: impl Into<String>) -> KeySource {
    KeySource::Discovery(text.into().into())
}

#[tokio::test]
async fn keys_are_had_by_url_and_from_where_the_issuer_says() {
    for secure in [false, true] {
        let (address, roots) = server(secure).await;
        let fetcher = fetcher(address, roots, anywhere);
        let base = format!("{}://{address}", if secure { "https" } else { "http" });
        assert_eq!(fetch(&fetcher, url(format!("{base}/jwks?a=b"))).await, Ok(1));
        assert_eq!(fetch(&fetcher, issuer(base)).await, Ok(1));
    }
}

#[tokio::test]
async fn what_a_server_should_not_say_is_refused_with_the_reason() {
    let (address, _) = server(false).await;
    let fetcher = fetcher(address, RootCertStore::empty(), anywhere);
    let base = format!("http://{address}");
    for (source, why) in [
        (url(format!("{base}/redirect")), "redirects to \"http://169.254.169.254/latest\", which is not followed"),
        (url(format!("{base}/huge")), "has more than 262144 bytes to say"),
        (url(format!("{base}/slow")), "no answer within 500ms"),
        (url(format!("{base}/text")), "is not a JSON Web Key Set"),
        (url(format!("{base}/gone")), "answers 404"),
        (url("http://127.0.0.1:1/jwks"), "127.0.0.1:1 cannot be reached"),
        (url("ftp://127.0.0.1/jwks"), "is neither http nor https"),
        (url("http://nowhere.invalid/jwks"), "nowhere.invalid does not resolve"),
        (issuer(format!("{base}/empty")), "has no \"jwks_uri\""),
        (issuer(format!("{base}/gone")), "answers 404"),
    ] {
        let error = fetch(&fetcher, source.clone()).await.unwrap_err();
        assert!(error.contains(why), "{source:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_server_has_to_show_who_it_is_and_an_issuer_does_not_lead_out_of_tls() {
    let (address, roots) = server(true).await;
    let known = fetcher(address, roots, anywhere);
    let error = fetch(&known, issuer(format!("https://{address}/plain"))).await.unwrap_err();
    assert!(error.contains("which is not https"), "{error}");
    let (stranger, _) = server(true).await;
    let error = fetch(&known, url(format!("https://{stranger}/jwks"))).await.unwrap_err();
    assert!(error.contains("TLS with 127.0.0.1 failed"), "{error}");
}

#[tokio::test]
async fn nothing_is_asked_at_an_address_of_this_machine_or_of_its_cloud_whatever_leads_there() {
    let (address, _) = server(false).await;
    let guarded = fetcher(address, RootCertStore::empty(), address::refused);
    let port = address.port();
    for source in [
        url(format!("http://127.0.0.1:{port}/jwks")),
        url(format!("http://localhost:{port}/jwks")),
        url(format!("http://[::ffff:127.0.0.1]:{port}/jwks")),
        url("http://169.254.169.254/latest/meta-data"),
        url("http://[fe80::1]/jwks"),
        url(format!("http://0.0.0.0:{port}/jwks")),
        issuer(format!("http://127.0.0.1:{port}")),
    ] {
        let error = fetch(&guarded, source.clone()).await.unwrap_err();
        assert!(error.contains("keys are not fetched from there"), "{source:?}: {error}");
    }
    // Where an issuer leads is looked at as well.
    let (tls, roots) = server(true).await;
    fn only_link_local(ip: IpAddr) -> Option<&'static str> {
        address::refused(ip).filter(|_| !ip.is_loopback())
    }
    let led = fetcher(tls, roots, only_link_local);
    let error = fetch(&led, issuer(format!("https://{tls}/inner"))).await.unwrap_err();
    assert!(error.contains("169.254.169.254, a link-local address"), "{error}");
}

#[tokio::test]
async fn a_server_of_the_mesh_is_reached_through_it() {
    let (address, _) = server(false).await;
    let through = fetcher(address, RootCertStore::empty(), anywhere);
    for host in ["keys.shop.svc.cluster.local", "keys.shop.svc", "keys.shop", "KEYS.shop.svc"] {
        assert_eq!(fetch(&through, url(format!("http://{host}:8080/jwks"))).await, Ok(1), "{host}");
    }
    let guarded = fetcher(address, RootCertStore::empty(), address::refused);
    let error = fetch(&guarded, url("http://keys.shop:8080/jwks")).await.unwrap_err();
    assert!(error.contains("a loopback address"), "{error}");
}
