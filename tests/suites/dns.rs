//! The DNS of enrolled pods: names of the mesh are answered by the agent, everything else by the server that was asked,
//! byte for byte; and nobody can tell that there is anything in between.
//!
//! Clients are dig and glibc's resolver, and sockets of our own where the bytes matter. Servers are dnsmasq, and sockets
//! of our own that keep what they hear.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::{Pod, Process, eventually, objects};
use datapath::{Counts, LIMIT, Mesh, START, counts};

const DNS: u16 = 53;

/// A Service, a headless one with more pods than fit a datagram, and a ServiceEntry without addresses.
fn write_names(mesh: &Mesh) -> Result<()> {
    let vips = ["10.96.0.10".parse()?, "fd96::10".parse()?];
    let mut many = vec![
        "apiVersion: v1\nkind: Service\nmetadata: {name: many, namespace: shop}\n\
         spec: {clusterIP: None, selector: {app: many}, ports: [{port: 80}]}\n"
            .to_owned(),
    ];
    many.extend((1..=60).map(|n| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: many-{n}, namespace: shop, labels: {{app: many}}}}\n\
             spec: {{nodeName: n9}}\nstatus: {{podIPs: [{{ip: 10.9.9.{n}}}]}}\n"
        )
    }));
    mesh.directory.write("many", &many)?;
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: shop}\n\
                 spec: {hosts: [api.example.com], resolution: DNS, ports: [{number: 443, name: tls}]}\n";
    mesh.directory
        .write("names", &[objects::service("shop", "cart", &vips, "a", &[("http", 80, 8080)]), entry.to_owned()])
}

/// What dig prints of the answers, line by line.
fn dig(pod: &Pod, arguments: &str) -> Result<Vec<String>> {
    let arguments = format!("+noall +answer +tries=1 +timeout=5 {arguments}");
    let printed = pod.output(LIMIT * 2, "dig", &arguments.split(' ').collect::<Vec<_>>())?.success()?;
    Ok(printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

/// From whom, and what.
type Heard = Vec<(SocketAddr, Vec<u8>)>;

/// A server of DNS that keeps what it hears, and answers with what it heard as a response and `tail` after it.
struct Recorder {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Recorder {
    fn start(pod: &Pod, ip: IpAddr, tail: &'static [u8]) -> Result<Self> {
        let at = SocketAddr::new(ip, DNS);
        let (udp, tcp) = pod.run(|| Ok::<_, io::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?)))??;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        tcp.set_nonblocking(true)?;
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (ears, stopped): (Arc<Mutex<Heard>>, _) = (Arc::clone(&heard), stop.clone());
        let datagrams = std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                ears.lock().unwrap().push((from, buffer[..length].to_vec()));
                let _ = udp.send_to(&answer_to(&buffer[..length], tail), from);
            }
        });
        let (ears, stopped) = (Arc::clone(&heard), stop.clone());
        let streams = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, from)) = tcp.accept() else {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                };
                // Two messages for each question, as a zone transfer may have.
                let _ = answer_stream(stream, |message| {
                    ears.lock().unwrap().push((from, message.to_vec()));
                    vec![answer_to(message, tail), answer_to(message, b"second")]
                });
            }
        });
        Ok(Self { heard, stop, threads: vec![datagrams, streams] })
    }

    /// What it has heard since it was asked last.
    fn heard(&self) -> Heard {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_to(question: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer.extend_from_slice(tail);
    answer
}

fn answer_stream(mut stream: TcpStream, answers: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    loop {
        let message = read_message(&mut stream)?;
        for answer in answers(&message) {
            write_message(&mut stream, &answer)?;
        }
    }
}

fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat())
}

/// A question as a resolver writes it, with whatever follows it.
fn question(id: u16, name: &str, kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!rest.is_empty())]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend(rest);
    message
}

/// An OPT record with an option that nobody knows.
const OPT: &[u8] = &[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 7, 0xfd, 0xe9, 0, 3, 1, 2, 3];

const A: u16 = 1;
const AAAA: u16 = 28;

/// Asks from one socket, in one burst, and returns the answers as they come: from where, and what.
fn burst(pod: &Pod, own: IpAddr, questions: &[(SocketAddr, Vec<u8>)]) -> Result<Vec<(SocketAddr, Vec<u8>)>> {
    let answers = pod.run(|| {
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        for (to, question) in questions {
            socket.send_to(question, to)?;
        }
        let mut buffer = [0; 65_535];
        let mut answers = Vec::new();
        for _ in questions {
            let (length, from) = socket.recv_from(&mut buffer)?;
            answers.push((from, buffer[..length].to_vec()));
        }
        Ok::<_, io::Error>(answers)
    })?;
    answers.with_context(|| format!("{} questions to {:?}", questions.len(), questions.first().map(|(to, _)| to)))
}

#[test]
fn names_of_the_mesh_are_answered_and_the_server_that_was_asked_never_hears_of_them() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let agent = mesh.agent(1)?;
    let (a, ns) = (mesh.pod("a"), mesh.pod("ns"));
    let servers = [Recorder::start(ns, ns.ipv4(), b"")?, Recorder::start(ns, ns.ipv6(), b"")?];

    let before = Counts::of(&agent)?;
    for server in ns.addresses() {
        for protocol in ["+notcp", "+tcp", "+notcp +bufsize=4096", "+notcp +noedns"] {
            let ask = |rest: &str| dig(a, &format!("{protocol} @{server} {rest}"));
            assert_eq!(ask("cart.shop.svc.cluster.local")?, ["cart.shop.svc.cluster.local. 30 IN A 10.96.0.10"]);
            assert_eq!(ask("CaRt.ShOp AAAA")?, ["CaRt.ShOp. 30 IN AAAA fd96::10"]);
            // Known, and not of that family.
            assert_eq!(ask("many.shop.svc.cluster.local AAAA")?, [""; 0]);
            let entry = ask("api.example.com.shop.svc.cluster.local")?;
            ensure!(entry.len() == 2 && entry[0].ends_with("IN CNAME api.example.com."), "{entry:?}");
            ensure!(entry[1].starts_with("api.example.com. 30 IN A 240."), "{entry:?}");
        }
        // More than a datagram takes: dig asks again over TCP, unless it is told to make do with what came.
        assert_eq!(dig(a, &format!("@{server} +noedns many.shop.svc.cluster.local"))?.len(), 60);
        assert_eq!(dig(a, &format!("@{server} +noedns +ignore many.shop.svc.cluster.local"))?.len(), 0);
        assert_eq!(dig(a, &format!("@{server} +bufsize=4096 many.shop.svc.cluster.local"))?.len(), 60);
    }
    ensure!(servers.iter().all(|server| server.heard().is_empty()), "a name of the mesh was asked of others");
    let grown = Counts::of(&agent)?.since(&before);
    assert_eq!(grown.get("dns_udp"), Some(&(2 * (3 * 4 + 3))), "{grown:?}");
    assert_eq!(grown.get("dns_tcp"), Some(&(2 * (4 + 1))), "{grown:?}");
    ensure!(agent.metric("istio_dns_requests_total", &[("request_query_type", "AAAA")])? == 16.0);
    ensure!(agent.metric("istio_dns_upstream_requests_total", &[])? == 0.0);
    Ok(())
}

#[test]
fn glibc_finds_names_by_its_search_domains_and_the_rest_by_a_real_server() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let _agent = mesh.agent(1)?;
    let (a, ns) = (mesh.pod("a"), mesh.pod("ns"));
    let mut dnsmasq = ns.place().command("dnsmasq")?;
    dnsmasq.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
    ]);
    dnsmasq.args(["--log-facility=-", "--address=/real.example.com/192.0.2.80", "--address=/cluster.local/"]);
    dnsmasq
        .args(["--txt-record=text.example.com,one,two", "--srv-host=_http._tcp.example.com,real.example.com,80,1,2"]);
    let _dnsmasq = Process::spawn("dnsmasq", dnsmasq)?;
    eventually(START, "dnsmasq to answer", || {
        let answer = dig(ns, &format!("@{} real.example.com", ns.ipv4())).ok()?;
        answer.iter().any(|line| line.ends_with("192.0.2.80")).then_some(())
    })?;

    let resolv = mesh.topology.scope().directory().join("resolv.conf");
    let search = "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    std::fs::write(&resolv, format!("nameserver {}\n{search}", ns.ipv4()))?;
    let script = format!("mount --bind {} /etc/resolv.conf && getent ahosts \"$1\"", resolv.display());
    let getent = |name: &str| -> Result<Vec<String>> {
        let arguments = ["--mount", "sh", "-c", &script, "sh", name];
        let printed = a.output(LIMIT * 4, "unshare", &arguments)?.success()?;
        let mut found: Vec<_> = printed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        found.sort();
        found.dedup();
        Ok(found)
    };
    for name in ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local"] {
        assert_eq!(getent(name)?, ["10.96.0.10", "fd96::10"], "{name}");
    }
    let entry = getent("api.example.com")?;
    ensure!(entry.len() == 2 && entry[0].starts_with("2001:2:") && entry[1].starts_with("240."), "{entry:?}");
    assert_eq!(getent("real.example.com")?, ["192.0.2.80"]);
    for protocol in ["+notcp", "+tcp"] {
        let ask = |rest: &str| dig(a, &format!("{protocol} @{} {rest}", ns.ipv4()));
        assert_eq!(ask("text.example.com TXT")?, ["text.example.com. 0 IN TXT \"one\" \"two\""]);
        assert_eq!(ask("_http._tcp.example.com SRV")?, ["_http._tcp.example.com. 0 IN SRV 1 2 80 real.example.com."]);
    }
    Ok(())
}

#[test]
fn what_the_mesh_does_not_know_passes_byte_for_byte_both_ways() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns"), (2, "outside", "other")])?;
    write_names(&mesh)?;
    let agent = mesh.agent(1)?;
    let [a, ns, other] = ["a", "ns", "other"].map(|name| mesh.pod(name));
    const TAIL: &[u8] = b"\x00\xffwhatever a server adds";
    for (own, (ip, second)) in a.addresses().into_iter().zip(ns.addresses().into_iter().zip(other.addresses())) {
        let (server, beside) = (Recorder::start(ns, ip, TAIL)?, Recorder::start(other, second, b"")?);
        let (to, to_second) = (SocketAddr::new(ip, DNS), SocketAddr::new(second, DNS));
        let asked = [
            question(1, "_http._tcp.example.com", 33, OPT),
            question(2, "example.com", 16, &[]),
            question(3, "example.com", 65_280, OPT),
            question(4, "cart.shop.svc.cluster.local", 33, &[]),
            question(5, "eXaMpLe.com", A, OPT),
        ];
        for question in &asked {
            let answers = burst(a, own, &[(to, question.clone())])?;
            assert_eq!(answers, [(to, answer_to(question, TAIL))], "the client's id, the server's bytes");
            let heard = server.heard();
            assert_eq!(heard.len(), 1);
            assert_eq!((heard[0].0.ip(), &heard[0].1[2..]), (own, &question[2..]), "as the pod, but for the id");
        }
        // As musl asks: both families of two servers at once, from one socket; each answer must be its server's.
        let both = [question(6, "example.org", A, &[]), question(7, "example.org", AAAA, &[])];
        let questions: Vec<_> =
            [to, to_second].into_iter().flat_map(|to| both.iter().map(move |q| (to, q.clone()))).collect();
        let mut answers = burst(a, own, &questions)?;
        let mut expected: Vec<_> = questions
            .iter()
            .map(|(to, question)| (*to, answer_to(question, if *to == to_second { b"" } else { TAIL })))
            .collect();
        answers.sort();
        expected.sort();
        assert_eq!(answers, expected);
        assert_eq!((server.heard().len(), beside.heard().len()), (2, 2));
        // Known names in the same burst.
        let cart = burst(a, own, &[(to, question(8, "cart", A, &[])), (to, question(9, "cart", AAAA, &[]))])?;
        ensure!(cart.iter().all(|(from, _)| *from == to), "{cart:?}");
        assert_eq!(server.heard(), []);

        // A socket that is connected takes answers from its server only, and knows no other.
        let (peer, answer) = a.run(|| {
            let socket = UdpSocket::bind((own, 0))?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.connect(to)?;
            socket.send(&asked[1])?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok::<_, io::Error>((socket.peer_addr()?, buffer[..length].to_vec()))
        })??;
        assert_eq!((peer, answer), (to, answer_to(&asked[1], TAIL)));

        // Over TCP, ids and all, and as many answers as the server gives.
        server.heard();
        let answers = a.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
            stream.set_read_timeout(Some(LIMIT))?;
            for question in [&asked[0], &asked[2]] {
                write_message(&mut stream, question)?;
            }
            (0..4).map(|_| read_message(&mut stream)).collect::<io::Result<Vec<_>>>()
        })??;
        let both = [&asked[0], &asked[2]];
        let expected: Vec<_> = both.iter().flat_map(|q| [answer_to(q, TAIL), answer_to(q, b"second")]).collect();
        assert_eq!(answers, expected);
        let heard: Vec<_> = server.heard().into_iter().map(|(from, question)| (from.ip(), question)).collect();
        assert_eq!(heard, [(own, asked[0].clone()), (own, asked[2].clone())]);

        // What is no message at all is refused, or not answered, and disturbs nobody.
        let mut cut = question(10, "cart", A, &[]);
        cut.truncate(15);
        let refused = burst(a, own, &[(to, cut)])?;
        assert_eq!((refused[0].0, refused[0].1[..2].to_vec(), refused[0].1[3] & 0xf), (to, vec![0, 10], 1));
        assert_eq!(server.heard(), []);
    }
    ensure!(agent.metric("culvert_dns_malformed_requests_total", &[])? == 2.0);
    ensure!(agent.metric("istio_dns_upstream_failures_total", &[])? == 0.0);
    ensure!(agent.metric("istio_dns_upstream_request_duration_seconds_count", &[])? > 10.0);
    Ok(())
}

#[test]
fn localhost_the_pod_itself_and_other_ports_are_left_alone() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let agent = mesh.agent(1)?;
    let (a, ns) = (mesh.pod("a"), mesh.pod("ns"));
    let before = Counts::of(&agent)?;
    for ip in ["127.0.0.53".parse()?, "::1".parse()?, a.ipv4(), a.ipv6()] {
        let server = Recorder::start(a, ip, b"mine")?;
        let asked = question(1, "cart", A, &[]);
        let unbound: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        assert_eq!(burst(a, unbound, &[(SocketAddr::new(ip, DNS), asked.clone())])?[0].1, answer_to(&asked, b"mine"));
        assert_eq!(server.heard()[0].0.ip(), if ip.is_ipv4() && ip.is_loopback() { [127, 0, 0, 1].into() } else { ip });
    }
    // A server in the pod is asked from outside as ever.
    let server = Recorder::start(a, a.ipv4(), b"mine")?;
    let asked = question(2, "cart", A, &[]);
    burst(ns, ns.ipv4(), &[(SocketAddr::new(a.ipv4(), DNS), asked)])?;
    assert_eq!(server.heard()[0].0.ip(), ns.ipv4());
    // And mDNS is not DNS.
    let elsewhere = ns.run(|| UdpSocket::bind((ns.ipv4(), 5353)))??;
    a.run(|| UdpSocket::bind((a.ipv4(), 0))?.send_to(b"hello", (ns.ipv4(), 5353)))??;
    elsewhere.set_read_timeout(Some(LIMIT))?;
    assert_eq!(elsewhere.recv_from(&mut [0; 9])?.0, 5);
    let grown = Counts::of(&agent)?.since(&before);
    ensure!(!grown.contains_key("dns_udp") && !grown.contains_key("dns_tcp"), "{grown:?}");
    Ok(())
}

#[test]
fn without_an_agent_questions_are_refused_at_once_and_answered_again_by_the_next() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let mut agent = mesh.agent(1)?;
    let (a, ns) = (mesh.pod("a"), mesh.pod("ns"));
    let servers = [Recorder::start(ns, ns.ipv4(), b"")?, Recorder::start(ns, ns.ipv6(), b"")?];
    agent.kill()?;
    for (own, ip) in a.addresses().into_iter().zip(ns.addresses()) {
        let to = SocketAddr::new(ip, DNS);
        let asked = question(1, "example.com", A, &[]);
        let started = Instant::now();
        let (unconnected, connected, stream) = a.run(|| {
            let socket = UdpSocket::bind((own, 0)).unwrap();
            let stream = TcpStream::connect_timeout(&to, LIMIT).map(drop);
            (socket.send_to(&asked, to).map(drop), socket.connect(to), stream)
        })?;
        ensure!(started.elapsed() < Duration::from_secs(1), "refused after {:?}", started.elapsed());
        assert_eq!(unconnected.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(stream.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // What is asked of the pod itself goes on.
        let own_server = Recorder::start(a, own, b"")?;
        burst(a, own, &[(SocketAddr::new(own, DNS), asked)])?;
        assert_eq!(own_server.heard().len(), 1);
    }
    ensure!(servers.iter().all(|server| server.heard().is_empty()));

    let agent = mesh.agent(1)?;
    ensure!(Counts::of(&agent)?.since(&Counts::default()).get("dns_no_listener") == Some(&4));
    assert_eq!(dig(a, &format!("@{} cart", ns.ipv4()))?, ["cart. 30 IN A 10.96.0.10"]);
    Ok(())
}

#[test]
fn a_pod_may_leave_its_dns_alone_and_one_that_leaves_the_mesh_does() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let agent = mesh.agent(1)?;
    let (a, ns) = (mesh.pod("a"), mesh.pod("ns"));
    let server = Recorder::start(ns, ns.ipv4(), b"")?;
    let to = SocketAddr::new(ns.ipv4(), DNS);
    let cart = question(1, "cart", A, &[]);
    // Whether the server hears of a name that the mesh knows.
    let passes = || -> Result<bool> {
        server.heard();
        burst(a, a.ipv4(), &[(to, cart.clone())])?;
        Ok(!server.heard().is_empty())
    };
    ensure!(!passes()?);
    ensure!(dns_rules(a)? == 2, "one rule for each family");

    let annotate = |value: &str| {
        mesh.write_pods(|_, object| {
            let line = format!("  annotations:\n    ambient.istio.io/dns-capture: \"{value}\"\n");
            Some(object.replace("  annotations:\n", &line))
        })
    };
    annotate("false")?;
    eventually(START, "the pod's DNS to be left alone", || passes().ok()?.then_some(()))?;
    eventually(START, "the rules to be gone", || (dns_rules(a).ok()? == 0).then_some(()))?;
    annotate("true")?;
    eventually(START, "the pod's DNS to be captured", || (!passes().ok()?).then_some(()))?;

    // While it leaves, no question is lost: to the agent, or past it.
    mesh.enrol(false)?;
    let asked = eventually(START, "the pod to leave", || {
        let direct = passes();
        match direct {
            Ok(false) => None,
            decided => Some(decided),
        }
    })?;
    ensure!(asked?, "a question was lost");
    eventually(START, "nothing to be left", || {
        let report: serde_json::Value = serde_json::from_str(&agent.admin("/redirection").ok()?.body).ok()?;
        (report["programs"].as_array()?.is_empty() && dns_rules(a).ok()? == 0).then_some(())
    })?;
    let before = Counts::of(&agent)?;
    ensure!(passes()?);
    assert_eq!(Counts::of(&agent)?.since(&before), counts([]));
    Ok(())
}

/// How many rules there are about port 53.
fn dns_rules(pod: &Pod) -> Result<usize> {
    let both = [pod.output(LIMIT, "ip", &["rule"])?.success()?, pod.output(LIMIT, "ip", &["-6", "rule"])?.success()?];
    Ok(both.concat().lines().filter(|rule| rule.contains("dport 53")).count())
}

#[test]
fn a_server_that_does_not_answer_is_told_of_and_floods_are_bounded() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "outside", "ns")])?;
    write_names(&mesh)?;
    let agent = mesh.agent(1)?;
    let [a, b, ns] = ["a", "b", "ns"].map(|name| mesh.pod(name));
    // Nobody listens there: an ICMP error, and not a time-out.
    let to = SocketAddr::new(ns.ipv4(), DNS);
    let started = Instant::now();
    let answers = burst(a, a.ipv4(), &[(to, question(1, "example.com", A, &[]))])?;
    assert_eq!((answers[0].0, answers[0].1[3] & 0xf), (to, 2), "SERVFAIL");
    ensure!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    // A server that takes questions and is silent: those beyond what may wait are refused at once.
    let _silent = ns.run(|| UdpSocket::bind((ns.ipv4(), DNS)))??;
    const WAITING: u16 = 512;
    const BEYOND: u16 = 88;
    let refused = a.run(|| {
        let socket = UdpSocket::bind((a.ipv4(), 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        for n in 0..WAITING + BEYOND {
            socket.send_to(&question(n, "example.com", A, &[]), to)?;
            if n % 50 == 0 {
                // Else they would be lost in the socket's buffer, on a machine that has other things to do.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let mut buffer = [0; 512];
        // The others have 5 s.
        let refused = (0..WAITING + BEYOND).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
        Ok::<_, io::Error>(refused)
    })??;
    assert_eq!(refused, usize::from(BEYOND));
    // Another pod's questions are nobody else's business.
    assert_eq!(dig(b, &format!("@{} cart", ns.ipv4()))?, ["cart. 30 IN A 10.96.0.10"]);
    ensure!(agent.metric("istio_dns_upstream_failures_total", &[])? >= 89.0);
    Ok(())
}
