//! The tunnels of one pod, as its connections come and go.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;

use super::vanished::{PATIENCE, converse, serve_freezable, time_to_reset};
use super::*;
use crate::ca::TrustBundle;
use crate::ca::testing::{Root, ScriptedCa};
use crate::hbone::client::{Key, Pool};
use crate::identity::SystemClock;
use crate::redirect::PodNetns;
use crate::workers::Workers;

/// A pool, and a server of the mesh that it dials.
struct Scene {
    pool: Pool,
    key: Key,
    here: Arc<Account>,
    echo: SocketAddr,
    /// How many of the server's tunnels, the first ones, are frozen.
    frozen: Arc<AtomicUsize>,
    root: Root,
    ca: Arc<ScriptedCa>,
    /// The server's, and the pool's own.
    certificate: Arc<WorkloadCertificate>,
    /// Renews the pool's certificate for as long as it lives.
    store: CertificateStore,
}

impl Scene {
    async fn new() -> Self {
        Self::with(StoreOptions::default()).await
    }

    async fn with(options: StoreOptions) -> Self {
        let root = Root::new("root");
        let ca = ScriptedCa::new(&root, Arc::new(SystemClock));
        let store = CertificateStore::new(ca.clone(), options);
        let identity = Identity::new("cluster.local", "shop", "cart");
        let certificate = store.fetch(&identity).await.unwrap();
        let (here, frozen) = (Account::new(), Arc::new(AtomicUsize::new(0)));
        let server = serve_freezable(&certificate, Account::new(), frozen.clone()).await;
        let netns = Arc::new(PodNetns::current());
        let pool = Pool::new(netns, &store, &identity, Workers::here(), 0, unlimited());
        let key = Key { peer: server, expected: SmallVec::from_iter([Arc::new(identity)]), source: server.ip() };
        Self { pool, key, here, echo: echo_server().await, frozen, root, ca, certificate, store }
    }

    /// A bundle that revokes the server's certificate.
    fn revocation(&self) -> Arc<TrustBundle> {
        let hex = self.certificate.serial.as_bytes().chunks(2);
        let serial: Vec<u8> = hex.map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap()).collect();
        let list = self.root.revoke(&serial);
        let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        Arc::new(TrustBundle::new(vec![self.root.der.clone()], &[list]).unwrap())
    }

    /// How many tunnels end because the mesh does not trust their peers any more.
    fn vet(&self) -> usize {
        let trust = self.store.trust().now();
        self.pool.tunnels().iter().filter(|tunnel| tunnel.vet(&trust)).count()
    }

    /// An application's connection, on its way through the pool.
    async fn dial(&self, key: &Key) -> TcpStream {
        let (app, open) = connection(&self.here, self.echo).await;
        self.pool.open(key.clone(), open);
        app
    }
}

#[test]
fn however_many_dial_at_once_one_tunnel_is_made_and_the_hundred_and_first_takes_another() {
    run(async {
        let scene = Scene::new().await;
        let mut apps = Vec::new();
        for _ in 0..100 {
            apps.push(scene.dial(&scene.key).await);
        }
        for app in &mut apps {
            converse(app).await;
        }
        assert_eq!(scene.pool.usable(), 1);
        let mut another = scene.dial(&scene.key).await;
        converse(&mut another).await;
        assert_eq!(scene.pool.usable(), 2);
        // There is room again in what is there.
        drop(apps);
        while !scene.here.connections.list().len().eq(&1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut later = scene.dial(&scene.key).await;
        converse(&mut later).await;
        assert_eq!(scene.pool.usable(), 2);
    });
}

#[test]
fn who_is_not_expected_gets_no_tunnel_and_the_application_a_reset() {
    run(async {
        let scene = Scene::new().await;
        let other = Arc::new(Identity::new("cluster.local", "shop", "other"));
        let key = Key { expected: SmallVec::from_iter([other]), ..scene.key.clone() };
        let mut app = scene.dial(&key).await;
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(scene.pool.usable() == 0 && scene.here.connections.is_empty());
    });
}

#[test]
fn a_tunnel_to_a_server_whose_certificate_is_revoked_ends_with_what_it_carries() {
    run(async {
        let scene = Scene::new().await;
        let mut app = scene.dial(&scene.key).await;
        converse(&mut app).await;
        assert_eq!(scene.vet(), 0);
        scene.ca.trust.send_replace(scene.revocation());
        assert_eq!(scene.vet(), 1);
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        // Nor is there another.
        let mut again = scene.dial(&scene.key).await;
        assert_eq!(again.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        while scene.pool.usable() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_tunnel_takes_nothing_new_once_the_servers_certificate_has_ended_and_finishes_what_it_carries() {
    run_within(DAY, async {
        let scene = Scene::with(StoreOptions { ttl: Duration::from_secs(60), ..StoreOptions::default() }).await;
        let mut old = scene.dial(&scene.key).await;
        converse(&mut old).await;
        let tunnels = || scene.pool.tunnels().len();
        pause_and_walk();
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut young = scene.dial(&scene.key).await;
        converse(&mut young).await;
        assert_eq!((tunnels(), scene.pool.usable()), (1, 1), "there is time left");

        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((tunnels(), scene.pool.usable()), (1, 0));
        let mut new = scene.dial(&scene.key).await;
        for app in [&mut old, &mut young, &mut new] {
            converse(app).await;
        }
        assert_eq!((tunnels(), scene.pool.usable()), (2, 1));
    });
}

#[test]
fn tunnels_to_servers_under_a_root_that_is_removed_end_and_no_session_of_theirs_is_resumed() {
    run(async {
        let scene = Scene::new().await;
        let (mut app, other) = (scene.dial(&scene.key).await, Root::new("other"));
        converse(&mut app).await;
        let both = format!("{}{}", scene.root.pem, other.pem);
        scene.ca.replace(&scene.root, &both);
        assert_eq!(scene.vet(), 0, "its root is still there");
        converse(&mut app).await;
        let identity = &scene.certificate.identity;
        while !Arc::ptr_eq(&scene.store.current(identity).unwrap().trust, &scene.ca.trust.borrow()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // With a session to resume.
        let from = |source: &str| Key { source: source.parse().unwrap(), ..scene.key.clone() };
        let mut again = scene.dial(&from("127.0.0.2")).await;
        converse(&mut again).await;

        // Nobody signs anything else meanwhile. The session may be there still.
        scene.ca.gate.forget_permits(usize::MAX);
        scene.ca.replace(&other, &other.pem);
        let mut resumed = scene.dial(&from("127.0.0.3")).await;
        assert_eq!(resumed.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(scene.vet(), 2);
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(again.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_pool_that_drains_lets_finish_what_is_open_still_subject_to_revocation_and_opens_nothing_more() {
    run(async {
        let scene = Scene::new().await;
        let mut app = scene.dial(&scene.key).await;
        converse(&mut app).await;
        scene.pool.drain();
        let mut late = scene.dial(&scene.key).await;
        assert_eq!(late.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        converse(&mut app).await;
        scene.ca.trust.send_replace(scene.revocation());
        assert_eq!(scene.vet(), 1);
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_pool_that_drains_gives_up_what_it_dials_and_does_not_begin_what_it_was_about_to() {
    run(async {
        let scene = Scene::new().await;
        // Takes connections and never says a word.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = Key { peer: listener.local_addr().unwrap(), ..scene.key.clone() };
        let mut waiting = scene.dial(&key).await;
        let (mut silent, _) = listener.accept().await.unwrap();
        let about_to = Key { source: "127.0.0.2".parse().unwrap(), ..key.clone() };
        let (_app, open) = connection(&scene.here, scene.echo).await;
        scene.pool.open(about_to, open);
        scene.pool.drain();
        assert_eq!(waiting.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        // Long before the handshake would be given up.
        let hello = &mut Vec::new();
        tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(hello)).await.unwrap().unwrap();
        let another = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
        assert!(another.is_err(), "a drained pool dials");
        assert!(scene.here.connections.is_empty());
    });
}

#[test]
fn tunnels_are_not_shared_between_source_addresses() {
    run(async {
        let scene = Scene::new().await;
        let other = Key { source: "127.0.0.2".parse().unwrap(), ..scene.key.clone() };
        for key in [&scene.key, &other, &scene.key, &other] {
            converse(&mut scene.dial(key).await).await;
        }
        assert_eq!(scene.pool.usable(), 2);
    });
}

#[test]
fn a_tunnel_that_carries_nothing_is_released_after_five_minutes() {
    run_within(DAY, async {
        let scene = Scene::new().await;
        let mut app = scene.dial(&scene.key).await;
        converse(&mut app).await;
        tokio::time::pause();
        // For as long as it carries something it stays, however quiet that is.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        converse(&mut app).await;
        assert_eq!(scene.pool.usable(), 1);
        drop(app);
        let idle = tokio::time::Instant::now();
        while scene.pool.usable() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let took = idle.elapsed();
        assert!((Duration::from_secs(290)..=Duration::from_secs(325)).contains(&took), "{took:?}");
        tokio::time::resume();
        converse(&mut scene.dial(&scene.key).await).await;
        assert_eq!(scene.pool.usable(), 1);
    });
}

#[test]
fn a_tunnel_that_is_used_again_and_again_is_not_released_however_briefly_it_is() {
    run_within(DAY, async {
        let scene = Scene::new().await;
        converse(&mut scene.dial(&scene.key).await).await;
        let tunnels = scene.pool.handles();
        for _ in 0..30 {
            while tunnels[0].streams() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(15)).await;
            tokio::time::resume();
            converse(&mut scene.dial(&scene.key).await).await;
        }
        assert!(!tunnels[0].is_draining(), "it was idle for 15 s at the most");
    });
}

#[test]
fn the_pool_dials_anew_when_a_peer_that_vanished_is_back() {
    run_within(DAY, async {
        let scene = Scene::new().await;
        let mut before = scene.dial(&scene.key).await;
        converse(&mut before).await;
        assert_eq!(scene.pool.usable(), 1);

        scene.frozen.store(1, Ordering::Relaxed);
        let mut meanwhile = scene.dial(&scene.key).await;
        tokio::time::pause();
        let took = time_to_reset(&mut before).await;
        assert!(PATIENCE.contains(&took), "{took:?}");
        assert!(time_to_reset(&mut meanwhile).await < Duration::from_secs(1));
        tokio::time::resume();

        converse(&mut scene.dial(&scene.key).await).await;
        assert_eq!(scene.pool.usable(), 1);
    });
}
