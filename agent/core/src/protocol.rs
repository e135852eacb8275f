//! What a connection speaks: as its port says, or else by its first bytes.
//!
//! | module | what it is for |
//! |---|---|
//! | `sniff` | HTTP/1, HTTP/2, TLS, or none of them, from what a client sends first |
//! | `hello` | the server name in a ClientHello |
//!
//! The functions here eat what a stranger sends; they look at a bounded part of it, and give the same answer for the same
//! bytes in however many pieces those came.

mod hello;
mod sniff;

pub use hello::{Hello, MAX_HELLO, hello};
pub use sniff::{MAX_REQUEST_LINE, Sniffed, is_http2, sniff};

use crate::service::ServicePort;

/// What a port is declared to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// HTTP of any version: HTTP/2 is told by its preface.
    Http,
    /// TLS that is passed through.
    Tls,
    /// Anything else, whose bytes mean nothing to a proxy.
    Tcp,
}

/// Ports whose servers speak first and that are rarely declared (Istio: SMTP, DNS, MySQL, MongoDB).
const WELL_KNOWN: [u16; 4] = [25, 53, 3306, 27017];

/// What `port` is declared to speak: by `appProtocol`, or else by the prefix of its name, as Istio reads them; `None` to
/// look at the bytes.
pub fn declared(port: &ServicePort) -> Option<Declared> {
    port.app_protocol.as_deref().and_then(parse).or_else(|| WELL_KNOWN.contains(&port.port).then_some(Declared::Tcp))
}

fn parse(name: &str) -> Option<Declared> {
    let name = name.to_ascii_lowercase();
    match &*name {
        // Names of Kubernetes itself, whose dashes and slashes are no separators.
        "kubernetes.io/h2c" | "kubernetes.io/ws" => return Some(Declared::Http),
        "kubernetes.io/wss" => return Some(Declared::Tls),
        _ => {}
    }
    match name.split('-').next()? {
        "http" | "http2" | "http_proxy" | "grpc" => Some(Declared::Http),
        "https" | "tls" => Some(Declared::Tls),
        "tcp" | "mongo" | "mysql" | "redis" | "hbone" | "doublehbone" => Some(Declared::Tcp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::TargetPort;

    fn port(number: u16, protocol: Option<&str>) -> ServicePort {
        let app_protocol = protocol.map(Into::into);
        ServicePort { port: number, name: "".into(), target: TargetPort::Number(number), app_protocol }
    }

    #[test]
    fn a_port_speaks_what_it_is_declared_to() {
        for (protocol, expected) in [
            ("http", Some(Declared::Http)),
            ("HTTP", Some(Declared::Http)),
            ("http-web", Some(Declared::Http)),
            ("http2", Some(Declared::Http)),
            ("grpc-web", Some(Declared::Http)),
            ("kubernetes.io/h2c", Some(Declared::Http)),
            ("kubernetes.io/ws", Some(Declared::Http)),
            ("kubernetes.io/wss", Some(Declared::Tls)),
            ("https-internal", Some(Declared::Tls)),
            ("tls", Some(Declared::Tls)),
            ("tcp", Some(Declared::Tcp)),
            ("redis", Some(Declared::Tcp)),
            ("example.com/own", None),
            ("httpx", None),
        ] {
            assert_eq!(declared(&port(8080, Some(protocol))), expected, "{protocol}");
        }
        assert_eq!(declared(&port(8080, None)), None);
        assert_eq!(declared(&port(3306, None)), Some(Declared::Tcp));
        assert_eq!(declared(&port(3306, Some("example.com/own"))), Some(Declared::Tcp));
        assert_eq!(declared(&port(3306, Some("http"))), Some(Declared::Http));
    }
}
