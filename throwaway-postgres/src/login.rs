//! Whether a server lets us in: the shortest possible conversation in PostgreSQL's protocol.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PROTOCOL_3_0: u32 = 196_608;

/// Logs in with `password` and out again. `Ok` proves two things: the server takes connections,
/// and it is ours, not another one that happens to listen on this port.
pub(crate) fn log_in(port: u16, password: &str) -> io::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut server = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;

    let mut startup = PROTOCOL_3_0.to_be_bytes().to_vec();
    startup.extend(b"user\0postgres\0database\0postgres\0\0");
    send(&mut server, None, &startup)?;
    expect_authentication(&mut server, 3)?; // wants the password in clear text
    send(&mut server, Some(b'p'), format!("{password}\0").as_bytes())?;
    expect_authentication(&mut server, 0)?; // we are in
    send(&mut server, Some(b'X'), &[])
}

fn send(server: &mut TcpStream, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
    let mut message: Vec<u8> = kind.into_iter().collect();
    let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
    message.extend(length.to_be_bytes());
    message.extend(body);
    server.write_all(&message)
}

fn expect_authentication(server: &mut TcpStream, step: u32) -> io::Result<()> {
    let mut head = [0; 5];
    server.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let mut body = vec![0; (u32::from_be_bytes(length).saturating_sub(4) as usize).min(4096)];
    server.read_exact(&mut body)?;
    if kind == b'R' && body == step.to_be_bytes() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&body).replace('\0', " ");
    Err(io::Error::other(format!("unexpected answer {}: {text}", char::from(kind))))
}
