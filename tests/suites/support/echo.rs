//! An application that sends back what it gets, and once its client is done says how much that was.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::Place;

/// The server; its threads end with the process, its connections with their clients.
pub(crate) struct Echo {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Echo {
    /// Listens on `address` in `place`.
    pub(crate) fn start(place: &Place, address: SocketAddr) -> Result<Self> {
        let listener = place.run(|| TcpListener::bind(address))?.with_context(|| format!("cannot bind {address}"))?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address, accepted })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections reached it.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Sends `length` bytes to an echo, ends its own direction, and checks that all came back and that the echo saw the
/// end: it speaks last.
pub(crate) fn exchange(to: SocketAddr, length: usize, limit: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, limit).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let sent: Arc<Vec<u8>> =
        Arc::new((0..length).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect());
    let (mut writer, written) = (stream.try_clone()?, sent.clone());
    let writing = thread::spawn(move || -> Result<()> {
        writer.write_all(&written)?;
        writer.shutdown(Shutdown::Write)?;
        Ok(())
    });
    let mut received = Vec::with_capacity(length + 100);
    let read = stream.read_to_end(&mut received);
    let got = received.len();
    read.with_context(|| format!("failed after {got} bytes back of {length}"))?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?.context("cannot send")?;
    let (echoed, farewell) = received.split_at_checked(length).with_context(|| format!("only {got} bytes back"))?;
    ensure!(echoed == &sent[..], "other bytes came back");
    let expected = farewell_of(length, checksum(&sent));
    ensure!(farewell == expected.as_bytes(), "{:?} instead of {expected:?}", String::from_utf8_lossy(farewell));
    Ok(())
}

/// Opens a connection to an echo and proves that it is through; what is left is an open, idle connection.
pub(crate) fn open(to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, limit).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    ping(&mut stream)?;
    Ok(stream)
}

/// One small exchange on an open connection.
pub(crate) fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("no echo")?;
    ensure!(&answer == b"ping", "{answer:?} instead of an echo");
    Ok(())
}

fn serve(mut stream: TcpStream) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut sum) = (0, FNV_OFFSET);
    loop {
        let read = stream.read(&mut buffer).ok()?;
        if read == 0 {
            break;
        }
        total += read;
        sum = fnv(sum, &buffer[..read]);
        stream.write_all(&buffer[..read]).ok()?;
    }
    stream.write_all(farewell_of(total, sum).as_bytes()).ok()
}

fn farewell_of(length: usize, sum: u64) -> String {
    format!("goodbye after {length} bytes, {sum:016x}\n")
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn checksum(bytes: &[u8]) -> u64 {
    fnv(FNV_OFFSET, bytes)
}

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
