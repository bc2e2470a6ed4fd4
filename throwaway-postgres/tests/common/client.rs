//! As much of PostgreSQL's protocol as the tests need.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub(crate) struct Client(TcpStream);

impl Client {
    /// `url` as this crate makes it: `postgres://user:password@host:port/database`.
    pub(crate) fn connect(url: &str) -> io::Result<Self> {
        let (login, place) = url.trim_start_matches("postgres://").split_once('@').expect("a URL");
        let (user, password) = login.split_once(':').expect("a password");
        let (host, database) = place.split_once('/').expect("a database");
        let stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut client = Self(stream);
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend(format!("user\0{user}\0database\0{database}\0\0").as_bytes());
        client.send(None, &startup)?;
        loop {
            match client.receive()? {
                (b'R', body) if body == 3_u32.to_be_bytes() => {
                    client.send(Some(b'p'), format!("{password}\0").as_bytes())?;
                }
                (b'Z', _) => return Ok(client),
                _ => {}
            }
        }
    }

    /// The first column of all rows.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        self.send(Some(b'Q'), format!("{sql}\0").as_bytes())?;
        let mut rows = Vec::new();
        loop {
            match self.receive()? {
                (b'D', row) => {
                    let length = u32::from_be_bytes(row[2..6].try_into().expect("four bytes"));
                    let value = &row[6..6 + length as usize];
                    rows.push(String::from_utf8_lossy(value).into_owned());
                }
                (b'Z', _) => return Ok(rows),
                _ => {}
            }
        }
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        self.0.write_all(&message)
    }

    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        let mut body = vec![0; length as usize - 4];
        self.0.read_exact(&mut body)?;
        match head[0] {
            b'E' => Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
            kind => Ok((kind, body)),
        }
    }
}

/// One statement on a connection of its own.
pub(crate) fn query(url: &str, sql: &str) -> io::Result<Vec<String>> {
    Client::connect(url)?.query(sql)
}
