//! A TCP proxy in front of PostgreSQL that fails exactly where it is told to.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::frames::Frame;

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The application.
    Client,
    /// PostgreSQL.
    Server,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Which connection through this proxy, counted from 0.
    pub connection: usize,
    /// Who sent it.
    pub side: Side,
    /// Which one of this side on this connection, counted from 0; the connection's start counts too.
    pub nth: usize,
    /// Its name in PostgreSQL's documentation, with the SQL of a `Query` or `Parse` and the tag of a
    /// `CommandComplete`: `Query: COMMIT`.
    pub label: String,
}

/// On which side of a message a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edge {
    /// The message itself does not get through any more.
    Before,
    /// The message gets through, and nothing after it.
    After,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection ends, for both ends.
    Cut,
    /// The connection ends, and no other one can be made until [`Proxy::heal`].
    Outage,
    /// From here on everything on this connection vanishes, also that an end hangs up, and no end hears of it, until
    /// [`Proxy::heal`] cuts it.
    BlackHole,
    /// Nothing of this connection moves until [`Proxy::heal`]; then everything arrives, late.
    Stall,
    /// This direction pauses for so long, once.
    Delay(Duration),
    /// The server does not run the statement of this `Execute` or `Query`, and answers with an error of this SQLSTATE. Its
    /// transaction is aborted. Only at [`Edge::Before`].
    Refuse(&'static str),
}

/// A proxy on 127.0.0.1, which ends with this value.
///
/// It must run on the runtime of the test. It speaks no TLS to either end.
pub struct Proxy {
    shared: Arc<Shared>,
    options: PgConnectOptions,
    listener: AbortHandle,
}

type Matches = Box<dyn Fn(&Message) -> bool + Send>;

struct Shared {
    armed: Mutex<Vec<(Fault, Edge, Matches)>>,
    log: Mutex<Vec<Message>>,
    hits: watch::Sender<usize>,
    /// How many connections were turned away.
    refused: watch::Sender<usize>,
    /// No connection gets through.
    outage: watch::Sender<bool>,
    links: Mutex<Vec<Arc<Link>>>,
}

/// One connection: the same state for both directions.
struct Link {
    number: usize,
    state: watch::Sender<Flow>,
    /// What the server's next error is to say.
    refusal: Mutex<Option<&'static str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Stalled,
    Swallowed,
    Cut,
}

impl Proxy {
    /// Starts a proxy to the server of these options.
    ///
    /// # Errors
    ///
    /// No port of 127.0.0.1 is free, or the options name a socket file, which cannot be replaced by the proxy's port.
    pub async fn start(server: &PgConnectOptions) -> io::Result<Self> {
        if server.get_socket().is_some() || server.get_host().starts_with('/') {
            return Err(io::Error::other(
                "the proxy needs a server that listens on TCP, not on a socket file",
            ));
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let options =
            server.clone().host("127.0.0.1").port(listener.local_addr()?.port()).ssl_mode(PgSslMode::Disable);
        let shared = Arc::new(Shared {
            armed: Mutex::default(),
            log: Mutex::default(),
            hits: watch::Sender::new(0),
            refused: watch::Sender::new(0),
            outage: watch::Sender::new(false),
            links: Mutex::default(),
        });
        let server = (server.get_host().to_owned(), server.get_port());
        let listener = tokio::spawn(Arc::clone(&shared).listen(listener, server)).abort_handle();
        Ok(Self { shared, options, listener })
    }

    /// Where to connect to: the server's options, through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The fault happens at the first message that matches, once. Several may be armed.
    ///
    /// `matches` must not call this proxy.
    pub fn arm(&self, fault: Fault, edge: Edge, matches: impl Fn(&Message) -> bool + Send + 'static) {
        lock(&self.shared.armed).push((fault, edge, Box::new(matches)));
    }

    /// Waits until so many faults have happened, in all since the start.
    pub async fn hit(&self, times: usize) {
        // The sender lives as long as this value.
        let _ = self.shared.hits.subscribe().wait_for(|hits| *hits >= times).await;
    }

    /// How many faults have happened.
    pub fn hits(&self) -> usize {
        *self.shared.hits.borrow()
    }

    /// Waits until so many connections were refused during outages, in all since the start.
    pub async fn refused(&self, times: usize) {
        let _ = self.shared.refused.subscribe().wait_for(|refused| *refused >= times).await;
    }

    /// Every connection that there is becomes a [`Fault::BlackHole`]. New ones get through.
    pub fn swallow(&self) {
        for link in lock(&self.shared.links).iter() {
            link.become_(Flow::Swallowed);
        }
    }

    /// Ends the fault: an outage is over, what was stalled arrives, and what was in a black hole is cut. Nothing is
    /// armed any more.
    pub fn heal(&self) {
        lock(&self.shared.armed).clear();
        self.shared.outage.send_replace(false);
        for link in lock(&self.shared.links).iter() {
            link.state.send_modify(|state| match state {
                Flow::Stalled => *state = Flow::Open,
                Flow::Swallowed => *state = Flow::Cut,
                Flow::Open | Flow::Cut => {}
            });
        }
    }

    /// Cuts every connection, and lets none through until [`heal`](Self::heal).
    pub fn outage(&self) {
        self.shared.begin_outage();
    }

    /// Everything that was sent so far, also what did not arrive.
    pub fn conversation(&self) -> Vec<Message> {
        lock(&self.shared.log).clone()
    }

    /// Forgets what was sent so far, and the connections that have ended: for a proxy that runs for long.
    pub fn forget(&self) {
        lock(&self.shared.log).clear();
        lock(&self.shared.links).retain(|link| Arc::strong_count(link) > 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.shared.begin_outage();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.options.get_port()).finish_non_exhaustive()
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, listener: TcpListener, server: (String, u16)) {
        let mut number = 0;
        while let Ok((client, _)) = listener.accept().await {
            if *self.outage.borrow() {
                self.refused.send_modify(|refused| *refused += 1);
                continue;
            }
            let state = watch::Sender::new(Flow::Open);
            let link = Arc::new(Link { number, state, refusal: Mutex::default() });
            number += 1;
            lock(&self.links).push(Arc::clone(&link));
            tokio::spawn(Arc::clone(&self).connect(client, server.clone(), link));
        }
    }

    async fn connect(self: Arc<Self>, mut client: TcpStream, server: (String, u16), link: Arc<Link>) {
        // An end that hangs up here is one of the things that happen.
        let Ok(first) = first_message(&mut client).await else { return };
        let Ok(server) = TcpStream::connect(server).await else { return };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
        }
        let (from_client, to_client) = split(client);
        let (from_server, to_server) = split(server);
        tokio::join!(
            self.forward(&link, Side::Client, first, from_client, to_server),
            self.forward(&link, Side::Server, None, from_server, to_client),
        );
    }

    /// Forwards one direction. `first` has been read already.
    async fn forward(
        &self,
        link: &Link,
        side: Side,
        mut first: Option<Frame>,
        mut from: ReadHalf<impl AsyncRead>,
        mut to: WriteHalf<impl AsyncWrite>,
    ) {
        for nth in 0.. {
            let frame = match first.take() {
                Some(frame) => Some(frame),
                None => {
                    tokio::select! {
                        frame = Frame::read(&mut from, true) => frame.ok().flatten(),
                        () = link.cut() => None,
                    }
                }
            };
            let Some(mut frame) = frame else { break };
            let message = Message { connection: link.number, side, nth, label: frame.label(side) };
            lock(&self.log).push(message.clone());
            if let Some(Fault::Refuse(sqlstate)) = self.strike(link, Edge::Before, &message).await {
                *lock(&link.refusal) = Some(sqlstate);
                frame = frame.spoiled();
            }
            if frame.is_error_of(side)
                && let Some(sqlstate) = lock(&link.refusal).take()
            {
                frame = Frame::error(sqlstate);
            }
            match link.passes().await {
                Flow::Open if to.write_all(&frame.bytes).await.is_err() => break,
                Flow::Open => {
                    self.strike(link, Edge::After, &message).await;
                }
                Flow::Cut => break,
                Flow::Swallowed | Flow::Stalled => {}
            }
        }
        // That this end has hung up is a message too.
        link.hangs_up().await;
        let _ = to.shutdown().await;
        // Reading on keeps what is still in the kernel's buffers from turning the end into a reset, which could
        // overtake a message that was delivered.
        let mut rest = [0; 1024];
        while side == Side::Server && from.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    }

    /// Lets the armed fault happen if this is its place.
    async fn strike(&self, link: &Link, edge: Edge, message: &Message) -> Option<Fault> {
        let fault = {
            let mut armed = lock(&self.armed);
            let place = armed.iter().position(|(_, at, matches)| *at == edge && matches(message))?;
            armed.remove(place).0
        };
        match fault {
            Fault::Cut => link.become_(Flow::Cut),
            Fault::Outage => self.begin_outage(),
            Fault::BlackHole => link.become_(Flow::Swallowed),
            Fault::Stall => link.become_(Flow::Stalled),
            Fault::Delay(_) | Fault::Refuse(_) => {}
        }
        self.hits.send_modify(|hits| *hits += 1);
        if let Fault::Delay(pause) = fault {
            tokio::time::sleep(pause).await;
        }
        Some(fault)
    }

    fn begin_outage(&self) {
        self.outage.send_replace(true);
        for link in lock(&self.links).iter() {
            link.become_(Flow::Cut);
        }
    }
}

impl Link {
    fn become_(&self, state: Flow) {
        self.state.send_replace(state);
    }

    /// Waits while the connection is stalled.
    async fn passes(&self) -> Flow {
        self.wait(|state| *state != Flow::Stalled).await
    }

    /// Waits until it may be seen that an end has hung up.
    async fn hangs_up(&self) {
        self.wait(|state| matches!(state, Flow::Open | Flow::Cut)).await;
    }

    async fn cut(&self) {
        self.wait(|state| *state == Flow::Cut).await;
    }

    async fn wait(&self, until: impl FnMut(&Flow) -> bool) -> Flow {
        // The sender is in `self`.
        self.state.subscribe().wait_for(until).await.map_or(Flow::Cut, |state| *state)
    }
}

/// The first message that is PostgreSQL's: a wish for encryption is denied.
async fn first_message(client: &mut TcpStream) -> io::Result<Option<Frame>> {
    loop {
        let frame = Frame::read(client, false).await?;
        if !frame.as_ref().is_some_and(Frame::asks_for_encryption) {
            return Ok(frame);
        }
        client.write_all(b"N").await?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves a half-changed value behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
