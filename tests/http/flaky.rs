//! A network that loses what a payment cannot afford to lose: a proxy that understands just enough of HTTP/1.1 to decide about each
//! exchange by itself.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Pass,
    /// The server is closed on in the middle of the request.
    CutRequest,
    /// The server is closed on when it has the whole request.
    HangUp,
    /// The server answers, and nothing of it arrives.
    LoseResponse,
    /// The server answers, and a part of it arrives.
    CutResponse,
    /// The server gets the request twice at once. One of the answers arrives.
    TwiceAtOnce,
    /// The server gets the request again when it has answered. The second answer arrives.
    TwiceInTurn,
}

impl Fate {
    pub const ALL: [Self; 7] = [
        Self::Pass,
        Self::CutRequest,
        Self::HangUp,
        Self::LoseResponse,
        Self::CutResponse,
        Self::TwiceAtOnce,
        Self::TwiceInTurn,
    ];

    /// Of the server's answers, well over a third are lost.
    fn choose(rng: &mut Rng) -> Self {
        match rng.u8(..100) {
            0..32 => Self::Pass,
            32..42 => Self::CutRequest,
            42..50 => Self::HangUp,
            50..72 => Self::LoseResponse,
            72..90 => Self::CutResponse,
            90..96 => Self::TwiceAtOnce,
            _ => Self::TwiceInTurn,
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub fates: BTreeMap<Fate, u32>,
    /// Whole responses that the server gave, by status and by whether they say that they are replays.
    pub responses: BTreeMap<(u16, bool), u32>,
}

impl Counts {
    pub fn of(&self, fate: Fate) -> u32 {
        self.fates.get(&fate).copied().unwrap_or_default()
    }
}

/// The proxy. The fate of a request is decided by the seed, its key, and how often that key has been seen, so that the order
/// in which clients run decides nothing.
pub struct Flaky {
    server: SocketAddr,
    seed: u64,
    keys: Mutex<HashMap<String, Rng>>,
    counts: Mutex<Counts>,
}

impl Flaky {
    /// A proxy in front of the server, and its address.
    pub async fn start(server: SocketAddr, seed: u64) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self { server, seed, keys: Mutex::default(), counts: Mutex::default() });
        let accepting = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = Arc::clone(&accepting);
                // An error is a connection that has ended, which is what all of this is about.
                tokio::spawn(async move { proxy.serve(client).await.is_ok() });
            }
        });
        (proxy, address)
    }

    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    /// One exchange after the other, until one of them closes the connection.
    async fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        loop {
            let request = Message::read(&mut client).await?;
            let mut rng = self.rng_for(&request);
            let fate = Fate::choose(&mut rng);
            *self.counts.lock().unwrap().fates.entry(fate).or_default() += 1;
            match fate {
                Fate::Pass => client.write_all(&self.exchange(&request).await?.bytes).await?,
                Fate::CutRequest => {
                    let until = request.body + rng.usize(..request.bytes.len() - request.body);
                    return self.send(&request.bytes[..until]).await.map(drop);
                }
                Fate::HangUp => return self.send(&request.bytes).await.map(drop),
                Fate::LoseResponse => return self.exchange(&request).await.map(drop),
                Fate::CutResponse => {
                    let response = self.exchange(&request).await?;
                    return client.write_all(&response.bytes[..rng.usize(1..response.bytes.len())]).await;
                }
                Fate::TwiceAtOnce => {
                    let (one, other) = tokio::try_join!(self.exchange(&request), self.exchange(&request))?;
                    client.write_all(if rng.bool() { &one.bytes } else { &other.bytes }).await?;
                }
                Fate::TwiceInTurn => {
                    self.exchange(&request).await?;
                    client.write_all(&self.exchange(&request).await?.bytes).await?;
                }
            }
        }
    }

    /// A number of its own for each time that a key is seen.
    fn rng_for(&self, request: &Message) -> Rng {
        let key = request.header("idempotency-key").expect("a key").to_owned();
        let mut hasher = DefaultHasher::new();
        (self.seed, &key).hash(&mut hasher);
        self.keys.lock().unwrap().entry(key).or_insert_with(|| Rng::with_seed(hasher.finish())).fork()
    }

    async fn exchange(&self, request: &Message) -> io::Result<Message> {
        let response = Message::read(&mut self.send(&request.bytes).await?).await?;
        let seen = (response.status(), response.header("idempotent-replayed") == Some("true"));
        *self.counts.lock().unwrap().responses.entry(seen).or_default() += 1;
        Ok(response)
    }

    async fn send(&self, bytes: &[u8]) -> io::Result<TcpStream> {
        let mut server = TcpStream::connect(self.server).await?;
        server.write_all(bytes).await?;
        Ok(server)
    }
}

/// A request or a response, with a `Content-Length`.
struct Message {
    bytes: Vec<u8>,
    /// Where the body begins.
    body: usize,
}

impl Message {
    async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut message = Self { bytes: Vec::new(), body: 0 };
        loop {
            if let Some(at) = message.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                message.body = at + 4;
                let length: usize = message.header("content-length").expect("a length").parse().unwrap();
                if message.bytes.len() == message.body + length {
                    return Ok(message);
                }
            }
            if stream.read_buf(&mut message.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.bytes[..self.body]).expect("a head in ASCII");
        let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    fn status(&self) -> u16 {
        String::from_utf8_lossy(&self.bytes[9..12]).parse().expect("a status")
    }
}
