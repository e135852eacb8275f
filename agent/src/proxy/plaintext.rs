//! Connections that reach the pod in plaintext.

use std::sync::Arc;

use culvert_core::address::ClientAddr;
use culvert_core::policy::Call;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::accept::Incoming;
use super::limits::CONNECT_TIMEOUT;
use super::live::Admission;
use super::pod::Pod;
use super::pump::{Limits, pump};
use crate::hbone::client::{connected, keepalive};
use crate::hbone::tunnel::abort;
use crate::telemetry::{ConnectionInfo, Direction, Outcome, ResponseFlags, SecurityPolicy};

/// Judges a connection without a principal, and takes it to the application if it may pass.
pub(super) fn serve(pod: &Arc<Pod>, incoming: Incoming) {
    let Some((snapshot, workload)) = pod.look() else {
        abort(&incoming.socket);
        return;
    };
    let call = Call { principal: None, source_ip: incoming.remote.ip(), destination: incoming.local };
    let decision = pod.judge(&snapshot, &workload, &call, None);
    let record = pod.shared.telemetry.connection(ConnectionInfo {
        direction: Direction::Inbound,
        source_addr: incoming.remote,
        source: snapshot.workload_by_address(incoming.remote.ip()).cloned(),
        source_identity: None,
        destination_addr: incoming.local,
        hbone_target: None,
        destination: Some(workload.clone()),
        destination_identity: Some(pod.identity.clone()),
        service: None,
        security: SecurityPolicy::Unknown,
    });
    if !decision.allowed {
        abort(&incoming.socket);
        record.close(Outcome::failed(ResponseFlags::Denied, decision.reason.to_string()));
        return;
    }
    if pod.is_full() {
        abort(&incoming.socket);
        record.close(Outcome::failed(ResponseFlags::ConnectFailure, "the pod has too many connections"));
        return;
    }
    let admission = Admission::Inbound {
        principal: None,
        client: None,
        source_ip: incoming.remote.ip(),
        destination: incoming.local,
    };
    let flow = pod.admit(&snapshot, admission, Direction::Inbound, record);
    // The application's own keepalive ends at the agent, which would answer for a client that has vanished. Refused only
    // for what is over already.
    let _ = SockRef::from(&incoming.socket).set_tcp_keepalive(&keepalive());
    let this = pod.clone();
    pod.shared.workers.get(pod.home).spawn(async move {
        let dialled = async {
            let leg = this.netns.connect_application(ClientAddr::new(incoming.remote), incoming.local)?;
            match tokio::time::timeout(CONNECT_TIMEOUT, connected(TcpStream::from_std(leg.into())?)).await {
                Ok(connected) => connected,
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            }
        };
        match dialled.await {
            Ok(server) => match TcpStream::from_std(incoming.socket) {
                Ok(client) => pump(client, server, flow, Limits::default()).await,
                Err(error) => flow.close(Outcome::error(error.to_string())),
            },
            Err(error) => {
                abort(&incoming.socket);
                let why = format!("the application at {} could not be reached: {error}", incoming.local);
                flow.close(Outcome::failed(ResponseFlags::ConnectFailure, why));
            }
        }
    });
}
