//! The address that clients know: a TCP forwarder that leads to whichever server is the primary now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Front {
    port: u16,
    /// The primary's port. Whenever it is set, all connections are cut.
    primary: watch::Sender<Option<u16>>,
    /// How many more answers to COMMIT are kept from the clients, and how many have been.
    to_withhold: Arc<AtomicUsize>,
    withheld: watch::Sender<usize>,
}

impl Front {
    pub async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let front = Self {
            port: listener.local_addr().expect("an address").port(),
            primary: watch::Sender::new(None),
            to_withhold: Arc::default(),
            withheld: watch::Sender::new(0),
        };
        let forwarder = front.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forwarder.clone().serve(client));
            }
        });
        front
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections. New ones go to this port, or are closed at once.
    pub fn lead_to(&self, primary: Option<u16>) {
        self.primary.send_replace(primary);
    }

    /// So many clients never hear of their next COMMIT. Returns when the server has answered them.
    pub async fn withhold_commits(&self, commits: usize) {
        self.to_withhold.store(commits, Ordering::SeqCst);
        self.withheld.subscribe().wait_for(|withheld| *withheld >= commits).await.expect("we are the sender");
    }

    /// Whether the answer to this COMMIT is one of those.
    fn withholds(&self) -> bool {
        self.to_withhold.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    async fn serve(self, client: TcpStream) {
        let mut primary = self.primary.subscribe();
        let Some(port) = *primary.borrow_and_update() else { return };
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        tokio::select! {
            _ = primary.changed() => {}
            () = self.forward(client, server) => {}
        }
    }

    /// Until one of the two is gone.
    async fn forward(&self, client: TcpStream, server: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let mute = AtomicBool::new(false);
        let requests = async {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                if is_commit(&buffer[..length]) {
                    mute.store(self.withholds(), Ordering::SeqCst);
                }
                if to_server.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        };
        let answers = async {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                if mute.load(Ordering::SeqCst) {
                    self.withheld.send_modify(|withheld| *withheld += 1);
                    std::future::pending::<()>().await;
                }
                if to_client.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = requests => {}
            () = answers => {}
        }
    }
}

/// A simple query of this text alone.
fn is_commit(message: &[u8]) -> bool {
    message.starts_with(b"Q") && message.ends_with(b"\0\0\x0bCOMMIT\0")
}
