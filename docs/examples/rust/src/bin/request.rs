//! A server that answers every request with the storage program's next number: `request PORT`.

use std::io::{BufRead, BufReader, Error, Result, Write};
use std::net::{TcpListener, TcpStream};

fn answer(mut client: TcpStream) -> Result<()> {
    for line in BufReader::new(&client).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let (status, body) = match kvmserverguest::call("count", 64) {
        Ok(number) => ("200 OK", number),
        Err(error) => ("503 Service Unavailable", error.to_string().into_bytes()),
    };
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    client.write_all(&body)
}

fn main() -> Result<()> {
    if kvmserverguest::available() == 0 {
        return Err(Error::other("not inside kvmserver"));
    }
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| Error::other("usage: request PORT"))?;
    for client in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        answer(client?)?;
    }
    Ok(())
}
