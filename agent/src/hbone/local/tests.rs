//! A local stream without a tunnel: its two ends, one step at a time, and both at once.

use std::io::{IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::pipe::Pipe;
use super::*;
use crate::hbone::wake::ReadyList;
use crate::telemetry::Outcome;

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// An open stream whose tunnel is the test.
struct Scene {
    stream: LocalStream,
    end: End,
    /// What the tunnel has to attend to.
    ready: Arc<ReadyList>,
}

impl Scene {
    fn new() -> Self {
        let pipe = Arc::<Pipe>::default();
        let (stream, end) = (LocalStream::new(pipe.clone()), End(pipe));
        let ready = Arc::<ReadyList>::default();
        end.attach(ready.waker(0));
        Self { stream, end, ready }
    }

    fn give(&self, bytes: &[u8]) -> (usize, usize) {
        self.end.give(bytes, std::slice::from_ref(&(0..bytes.len())))
    }

    /// Whether the tunnel was woken since it last looked.
    fn is_tunnel_woken(&self) -> bool {
        let mut slots = Vec::new();
        self.ready.take(&mut slots);
        self.end.attach(self.ready.waker(0));
        !slots.is_empty()
    }

    fn take(&self, room: usize) -> std::io::Result<Vec<u8>> {
        let (mut one, mut two) = (vec![0; room / 2], vec![0; room - room / 2]);
        let length = self.end.read(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)])?;
        one.extend_from_slice(&two);
        one.truncate(length);
        Ok(one)
    }
}

/// Polls a future that is ready.
fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn waits<F: Future>(future: F, waker: &Arc<Woken>) -> bool {
    let waker = Waker::from(waker.clone());
    std::pin::pin!(future).poll(&mut Context::from_waker(&waker)).is_pending()
}

#[test]
fn the_window_is_returned_as_the_reader_takes_and_not_before() {
    let mut scene = Scene::new();
    assert_eq!(scene.give(&[7; 1000]), (1000, 0));
    assert_eq!(scene.end.claim().unwrap(), 0);
    assert_eq!(now(scene.stream.read(&mut [0; 10])).unwrap(), 10);
    assert_eq!(scene.end.claim().unwrap(), 10);
    now(scene.stream.read_exact(&mut [0; 990])).unwrap();
    assert_eq!(scene.end.claim().unwrap(), 990);
}

#[test]
fn the_tunnel_hears_of_what_is_read_in_large_pieces_unless_it_presses() {
    let mut scene = Scene::new();
    scene.give(&vec![7; REPORT_AT + 1000]);
    now(scene.stream.read_exact(&mut vec![0; REPORT_AT - 1])).unwrap();
    assert!(!scene.is_tunnel_woken());
    now(scene.stream.read_exact(&mut [0; 1])).unwrap();
    assert!(scene.is_tunnel_woken());
    assert_eq!(scene.end.press(true), REPORT_AT);
    now(scene.stream.read_exact(&mut [0; 1])).unwrap();
    assert!(scene.is_tunnel_woken());
}

#[test]
fn a_reader_is_woken_by_bytes_by_the_end_and_by_a_reset() {
    let told: [fn(&Scene); 3] = [
        |scene| assert_eq!(scene.give(b"x"), (1, 0)),
        |scene| scene.end.finish(),
        |scene| scene.end.abort(&Outcome::error("reset")),
    ];
    for tell in told {
        let (mut scene, woken) = (Scene::new(), Arc::<Woken>::default());
        assert!(waits(scene.stream.read(&mut [0; 1]), &woken));
        tell(&scene);
        assert_eq!(woken.times(), 1);
    }
}

#[test]
fn what_came_before_the_end_or_a_reset_is_read_first() {
    let mut scene = Scene::new();
    scene.give(b"first");
    scene.end.finish();
    let mut got = Vec::new();
    assert_eq!(now(scene.stream.read_to_end(&mut got)).unwrap(), 5);
    assert!(scene.is_tunnel_woken(), "it waits for everything to be read");

    let mut scene = Scene::new();
    scene.give(b"first");
    scene.end.abort(&Outcome::error("the node is gone"));
    now(scene.stream.read_exact(&mut [0; 5])).unwrap();
    let error = now(scene.stream.read(&mut [0; 1])).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (std::io::ErrorKind::ConnectionReset, "the node is gone"));
    assert_eq!(now(scene.stream.write(b"x")).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(now(scene.stream.shutdown()).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_writer_waits_once_its_share_is_on_the_way_and_is_woken_as_it_leaves() {
    let (mut scene, woken) = (Scene::new(), Arc::<Woken>::default());
    let (head, body) = (vec![1; 1000], vec![2; 2 * OUTGOING]);
    let cx = &mut Context::from_waker(Waker::noop());
    let slices = [IoSlice::new(&head), IoSlice::new(&body)];
    let Poll::Ready(Ok(length)) = Pin::new(&mut scene.stream).poll_write_vectored(cx, &slices) else { panic!() };
    assert_eq!(length, OUTGOING);
    assert!(scene.is_tunnel_woken());
    assert!(waits(scene.stream.write(b"more"), &woken));
    assert!(!scene.is_tunnel_woken());
    let got = scene.take(1001).unwrap();
    assert!(got[..1000] == head && got[1000] == 2);
    assert_eq!(woken.times(), 1);
    assert_eq!(now(scene.stream.write(&body)).unwrap(), 1001);
    assert!(!scene.is_tunnel_woken(), "it knows that there is something");
    assert_eq!(scene.take(2 * OUTGOING).unwrap().len(), OUTGOING);
    assert_eq!(scene.take(1).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    now(scene.stream.write(b"x")).unwrap();
    assert!(scene.is_tunnel_woken());
}

#[test]
fn our_end_comes_behind_what_was_written() {
    let mut scene = Scene::new();
    now(scene.stream.write(b"last")).unwrap();
    now(scene.stream.shutdown()).unwrap();
    assert_eq!(now(scene.stream.write(b"x")).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    drop(scene.stream);
    assert_eq!(scene.end.read(&mut [IoSliceMut::new(&mut [0; 8])]).unwrap(), 4);
    assert_eq!(scene.end.read(&mut [IoSliceMut::new(&mut [0; 8])]).unwrap(), 0);
    assert!(scene.end.claim().is_ok());
}

#[test]
fn what_is_dropped_unread_counts_as_read_and_nothing_more_is_kept() {
    let mut scene = Scene::new();
    scene.give(&[1; 300]);
    now(scene.stream.read(&mut [0; 100])).unwrap();
    scene.give(&[1; 50]);
    now(scene.stream.shutdown()).unwrap();
    scene.is_tunnel_woken();
    let Scene { stream, end, ready } = scene;
    drop(stream);
    assert!(end.is_dropped());
    assert_eq!(end.claim().unwrap(), 350);
    assert_eq!(end.give(&[1; 5], &[0..2, 3..5]), (0, 4));
    let mut slots = Vec::new();
    ready.take(&mut slots);
    assert_eq!(slots, [0]);
}

#[test]
fn dropping_it_before_its_end_is_an_error_for_the_tunnel() {
    let scene = Scene::new();
    drop(scene.stream);
    assert_eq!(scene.end.claim().unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn an_idle_stream_holds_no_buffer_and_little_else() {
    let mut scene = Scene::new();
    scene.give(&[1; 50_000]);
    now(scene.stream.read_exact(&mut vec![0; 50_000])).unwrap();
    now(scene.stream.write(&[1; 50_000])).unwrap();
    scene.take(60_000).unwrap();
    let state = scene.end.0.lock();
    assert_eq!((state.incoming.capacity(), state.outgoing.capacity()), (0, 0));
    drop(state);
    let size = size_of::<Pipe>() + size_of::<LocalStream>();
    assert!(size <= 400, "{size} bytes");
}

#[test]
fn a_peer_that_sends_byte_by_byte_makes_us_keep_little_more_than_its_bytes() {
    let scene = Scene::new();
    for _ in 0..100_000 {
        scene.give(b"x");
    }
    let state = scene.end.0.lock();
    let kept: usize = state.incoming.iter().map(Vec::capacity).sum::<usize>() + state.incoming.capacity() * 24;
    assert!(kept < 120_000, "{kept} bytes");
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
    let Scene { stream, end, ready } = Scene::new();
    let total = 3_000_000u32;
    runtime.block_on(async {
        // A tunnel that sends back what it is sent, a window of it at a time.
        let tunnel = tokio::spawn(async move {
            let waker = ready.waker(0);
            end.attach(waker.clone());
            // The window is smaller than what is reported unasked.
            end.press(true);
            let (mut buffer, mut held, mut ended) = (vec![0; 5000], 0, false);
            std::future::poll_fn(move |cx| {
                ready.register(cx.waker());
                let mut slots = Vec::new();
                ready.take(&mut slots);
                waker.attended();
                held -= end.claim().unwrap();
                while held < 20_000 && !ended {
                    match end.read(&mut [IoSliceMut::new(&mut buffer)]) {
                        Ok(0) => {
                            end.finish();
                            ended = true;
                        }
                        Ok(length) => held += end.give(&buffer, std::slice::from_ref(&(0..length))).0,
                        Err(_) => return Poll::Pending,
                    }
                }
                if ended && held == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        });
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = tokio::spawn(async move {
            let bytes: Vec<u8> = (0..total).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            for (index, chunk) in bytes.chunks(1777).enumerate() {
                write.write_all(chunk).await.unwrap();
                if index % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            write.shutdown().await.unwrap();
            bytes
        });
        let mut got = Vec::new();
        let all = async {
            read.read_to_end(&mut got).await.unwrap();
            assert!(got == writer.await.unwrap());
            tunnel.await.unwrap();
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("a wake-up was lost");
    });
}
