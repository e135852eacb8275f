//! How a server's tunnel ends, for a peer that follows the rules at its own pace.

use std::time::Instant;

use culvert_core::hbone::h2::{Connection, ErrorCode, Event, Settings, StreamId};
use tokio::net::TcpSocket;
use tokio_rustls::client::TlsStream;

use super::*;

/// The end of a client that is written by hand: it says and hears something only when it is told to.
struct Peer {
    tls: TlsStream<TcpStream>,
    h2: Connection,
    /// The status of each answer.
    answers: Vec<(StreamId, u16)>,
    /// Bytes of DATA.
    data: usize,
    /// The last stream of each GOAWAY.
    go_aways: Vec<u32>,
    resets: Vec<StreamId>,
}

impl Peer {
    async fn connect(server: &Server, certificate: &Arc<WorkloadCertificate>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Little of what it does not read is under way: the rest stays with the server.
        socket.set_recv_buffer_size(4096).unwrap();
        let tcp = socket.connect(server.addr).await.unwrap();
        let connector = TlsConnector::from(certificate.client.clone());
        let tls = connector.connect(ServerName::IpAddress(server.addr.ip().into()), tcp).await.unwrap();
        let h2 = Connection::client(Settings::CLIENT);
        let mut peer = Self { tls, h2, answers: Vec::new(), data: 0, go_aways: Vec::new(), resets: Vec::new() };
        peer.say().await;
        peer
    }

    fn ask(&mut self) -> StreamId {
        self.h2.open_stream(&Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()))).unwrap()
    }

    async fn say(&mut self) {
        let bytes = std::mem::take(self.h2.pending_output());
        self.tls.write_all(&bytes).await.unwrap();
    }

    /// Hears what comes next; `false` at the orderly end of the TLS connection.
    async fn hear(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let length = self.tls.read(&mut buffer).await.unwrap();
        let mut input = &buffer[..length];
        loop {
            let (consumed, event) = self.h2.receive(input).unwrap();
            input = &input[consumed..];
            match event {
                Some(Event::Response { stream, response, .. }) => self.answers.push((stream, response.status)),
                Some(Event::Data { payload, .. }) => self.data += payload.len(),
                Some(Event::GoAway { last_stream, .. }) => self.go_aways.push(last_stream),
                Some(Event::Reset { stream, .. }) => self.resets.push(stream),
                Some(_) => {}
                None if input.is_empty() => return length > 0,
                None => {}
            }
        }
    }

    async fn hear_the_end(&mut self) {
        while self.hear().await {}
    }

    /// Says that it goes, and hears what the server has to say to that.
    async fn leave(&mut self) {
        self.h2.go_away(ErrorCode::NO_ERROR);
        self.say().await;
        self.hear_the_end().await;
    }
}

impl Server {
    fn drain(&self) {
        for (tunnel, _) in self.tunnels.lock().unwrap().iter() {
            tunnel.drain();
        }
    }

    fn has_closed(&self) -> bool {
        self.tunnels.lock().unwrap().iter().all(|(_, task)| task.is_finished())
    }

    async fn time_to_close(&self) -> Duration {
        let started = Instant::now();
        while !self.has_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }
}

#[test]
fn a_connect_that_crosses_the_goaway_is_served_and_one_that_follows_it_is_refused() {
    run(async {
        let certificate = certificate().await;
        let mut server = Server::start(&certificate).await;
        let mut peer = Peer::connect(&server, &certificate).await;
        let first = peer.ask();
        peer.say().await;
        let _first = server.accept().await;
        // Under way when the server says that it will go.
        let crossing = peer.ask();
        let on_the_way = std::mem::take(peer.h2.pending_output());
        let late = peer.ask();
        let too_late = std::mem::take(peer.h2.pending_output());
        server.drain();
        while peer.go_aways.is_empty() {
            peer.hear().await;
        }
        assert_eq!(peer.go_aways, [0x7fff_ffff]);
        peer.tls.write_all(&on_the_way).await.unwrap();
        let _crossing = server.accept().await;
        // The answer to its PING says that nothing else is on the way.
        peer.say().await;
        while peer.go_aways.len() == 1 {
            peer.hear().await;
        }
        assert_eq!(peer.go_aways, [0x7fff_ffff, crossing.get()]);
        peer.tls.write_all(&too_late).await.unwrap();
        while peer.resets.is_empty() || peer.answers.len() < 2 {
            peer.hear().await;
        }
        assert_eq!((peer.answers, peer.resets), (vec![(first, 200), (crossing, 200)], vec![late]));
    });
}

#[test]
fn a_peer_that_does_not_answer_the_last_call_hears_the_end_of_it_a_second_later() {
    run(async {
        let certificate = certificate().await;
        let server = Server::start(&certificate).await;
        let mut peer = Peer::connect(&server, &certificate).await;
        peer.hear().await;
        let started = Instant::now();
        server.drain();
        peer.hear_the_end().await;
        assert_eq!(peer.go_aways, [0x7fff_ffff, 0]);
        assert!(started.elapsed() > Duration::from_millis(990), "{:?}", started.elapsed());
    });
}

#[test]
fn the_last_bytes_reach_a_peer_that_reads_late_and_goes_on_talking() {
    run(async {
        let certificate = certificate().await;
        let mut server = Server::start(&certificate).await;
        let mut peer = Peer::connect(&server, &certificate).await;
        let stream = peer.ask();
        let end = peer.h2.data_header(stream, 0, true).unwrap();
        peer.h2.pending_output().extend(end);
        peer.h2.go_away(ErrorCode::NO_ERROR);
        peer.say().await;
        let mut stream = server.accept().await;
        stream.write_all(&[7; 60_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        // By now the server has said all it has to, and most of it waits for the peer to read.
        tokio::time::sleep(Duration::from_millis(300)).await;
        peer.h2.ping(*b"too late");
        peer.say().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        peer.hear_the_end().await;
        assert_eq!(peer.data, 60_000);
        drop(peer);
        server.time_to_close().await;
    });
}

#[test]
fn what_has_come_to_its_end_is_read_to_the_end_though_the_peer_is_gone_by_then() {
    run(async {
        const SIZE: usize = 5 << 20;
        let certificate = certificate().await;
        let mut server = Server::start(&certificate).await;
        let (tunnel, _) = dial(&certificate, server.addr).await;
        let here = Account::new();
        let mut app = through(&tunnel, &here, "10.0.0.1:80".parse().unwrap()).await;
        let mut cut = through(&tunnel, &here, "10.0.0.1:80".parse().unwrap()).await;
        let (mut stream, _unfinished) = (server.accept().await, server.accept().await);
        app.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        stream.write_all(&vec![7; SIZE]).await.unwrap();
        stream.shutdown().await.unwrap();
        while here.bytes().iter().all(|(_, got)| *got < SIZE as u64) || server.account.connections.len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for (_, task) in server.tunnels.lock().unwrap().iter() {
            task.abort();
        }
        assert_eq!(cut.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut got = Vec::new();
        app.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), SIZE);
        settled(&here).await;
    });
}

#[test]
fn a_peer_that_does_not_close_is_waited_for_two_seconds() {
    run(async {
        let certificate = certificate().await;
        let server = Server::start(&certificate).await;
        let mut peer = Peer::connect(&server, &certificate).await;
        peer.leave().await;
        let took = server.time_to_close().await;
        assert!((1500..5000).contains(&took.as_millis()), "{took:?}");
    });
}

#[test]
fn a_peer_that_talks_for_ever_after_the_end_is_cut_off() {
    run(async {
        let certificate = certificate().await;
        let server = Server::start(&certificate).await;
        let mut peer = Peer::connect(&server, &certificate).await;
        peer.leave().await;
        let (tcp, _) = peer.tls.get_mut();
        let (mut sent, piece) = (0usize, vec![0; 1 << 20]);
        while tcp.write_all(&piece).await.is_ok() {
            sent += piece.len();
            // What is read, and what the kernel takes at either end.
            assert!(sent < 40 << 20, "nothing cuts it off");
        }
        assert!(sent > 16 << 20, "{sent}: what may have been under way is cut off");
    });
}
