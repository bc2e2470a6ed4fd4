//! A TCP proxy that lets everything through, later, and counts what PostgreSQL is asked.
//!
//! With threads instead of tokio, whose clock ticks in milliseconds.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// It works until the process ends.
pub struct Proxy {
    address: SocketAddr,
    round_trips: Arc<AtomicU64>,
}

impl Proxy {
    /// Half of the delay on the way to the server, half on the way back.
    pub fn to(server: SocketAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let proxy = Self { address: listener.local_addr()?, round_trips: Arc::default() };
        let round_trips = Arc::clone(&proxy.round_trips);
        thread::spawn(move || {
            for client in listener.incoming() {
                // A client that is gone already, or a server that is: the client sees its connection end.
                let _ = client.and_then(|client| join(client, server, delay / 2, &round_trips));
            }
        });
        Ok(proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often a client of PostgreSQL's protocol has asked and waited for an answer (Sync, Query).
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::SeqCst)
    }
}

fn join(
    client: TcpStream,
    server: SocketAddr,
    delay: Duration,
    round_trips: &Arc<AtomicU64>,
) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    let round_trips = Arc::clone(round_trips);
    let mut frames = Frames::default();
    let count = move |bytes: &[u8]| {
        round_trips.fetch_add(frames.round_trips(bytes), Ordering::SeqCst);
    };
    thread::spawn(move || pump(client, server, delay, count));
    thread::spawn(move || pump(server_too, client_too, delay, |_| ()));
    Ok(())
}

/// Until an end hangs up; then the other one hears of it.
fn pump(mut from: TcpStream, to: TcpStream, delay: Duration, mut seen: impl FnMut(&[u8])) {
    let mut bytes = vec![0; 64 * 1024];
    let (late, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let mut now = to;
    let mut later = (!delay.is_zero()).then(|| now.try_clone()).and_then(Result::ok);
    let writer = later.take().map(|mut to| {
        thread::spawn(move || {
            for (when, bytes) in due {
                thread::sleep(when.saturating_duration_since(Instant::now()));
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
        })
    });
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        seen(&bytes[..count]);
        let passed_on = match &writer {
            Some(_) => late.send((Instant::now() + delay, bytes[..count].to_vec())).is_ok(),
            None => now.write_all(&bytes[..count]).is_ok(),
        };
        if !passed_on {
            break;
        }
    }
    drop(late);
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let _ = now.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The messages of a PostgreSQL client, as far as they are to be told apart.
#[derive(Default)]
struct Frames {
    /// The first message has no type.
    started: bool,
    header: Vec<u8>,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Frames {
    /// How many end here for which the client waits for an answer.
    fn round_trips(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                bytes = &bytes[here..];
                continue;
            }
            let whole = if self.started { 5 } else { 4 };
            let here = (whole - self.header.len()).min(bytes.len());
            self.header.extend(&bytes[..here]);
            bytes = &bytes[here..];
            if self.header.len() == whole {
                let length: [u8; 4] = self.header[whole - 4..].try_into().expect("four bytes");
                found += u64::from(self.started && matches!(self.header[0], b'S' | b'Q'));
                self.left = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                self.started = true;
                self.header.clear();
            }
        }
        found
    }
}
