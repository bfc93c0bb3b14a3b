//! The head of a request: what the client wants of us, and the canonical head that the program is given.

use std::net::IpAddr;

use httparse::Header;

use super::fields::{Connection, Framing, NO_FIELDS, is_hop_by_hop, is_one_of, may_be_one_of, write_decimal, write_field};
use super::target::{Target, is_host};
use super::{HeadScan, Refusal};

/// Fields to which this gateway adds who the client is.
pub(super) const FORWARDED: &[&str] = &["forwarded", "x-forwarded-for"];

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// A known number of bytes; none is 0.
    Known(u64),
    /// Chunks.
    Chunked,
}

/// A request whose head is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Bytes of the client's head.
    pub head_bytes: usize,
    /// How the body ends.
    pub body: BodyLength,
    /// The minor version of the client's HTTP/1.
    pub version: u8,
    /// The method is HEAD: the response has no body.
    pub is_head: bool,
    /// The client would send another request on this connection.
    pub keep_alive: bool,
    /// The client asks for another protocol (RFC 9110, section 7.8).
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

/// What is expected of a request, and done with it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Longest head, bytes; 431.
    pub head_bytes_max: usize,
    /// Tell the program who the client is, in Forwarded and X-Forwarded-For. `Some(None)` where that is unknown.
    pub forwarded_for: Option<Option<IpAddr>>,
}

/// Parse the head at the beginning of `bytes`, and append to `canonical` what the program is given instead: the fields of the
/// connection gone, its own framing, and `Connection: close`.
///
/// `Ok(None)` where it is not complete yet; `scan` remembers how far it has been looked at.
///
/// # Errors
///
/// [`Refusal`] with the status for the client; its connection has to close.
pub fn parse_request(bytes: &[u8], scan: &mut HeadScan, rules: &Rules, canonical: &mut Vec<u8>) -> Result<Option<Request>, Refusal> {
    let end = scan.end(bytes)?;
    if end.unwrap_or(bytes.len()) > rules.head_bytes_max {
        return Err(Refusal(431));
    }
    let Some(head) = end.and_then(|end| bytes.get(..end)) else { return Ok(None) };
    let mut fields = NO_FIELDS;
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal(400)),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal(431)),
        // A line with more blanks than two has no version in the first place.
        Err(httparse::Error::Version) => return Err(Refusal(if blanks_of_first_line(head) == 2 { 505 } else { 400 })),
        Err(_) => return Err(Refusal(400)),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else { return Err(Refusal(400)) };
    let target = Target::parse(method, target)?;
    let seen = Seen::of(parsed.headers)?;
    if seen.hosts > 1 || version == 1 && seen.hosts != 1 {
        return Err(Refusal(400));
    }
    let upgrade = seen.connection.upgrade && seen.has_upgrade && version == 1;
    let body = seen.body(version)?;

    canonical.reserve(head.len() + 64);
    write_request_line(method, &target, version, canonical);
    write_fields(parsed.headers, &seen, &target, rules, canonical);
    match body {
        BodyLength::Chunked => canonical.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        BodyLength::Known(length) if seen.framing.length.is_some() => {
            canonical.extend_from_slice(b"Content-Length: ");
            write_decimal(length, canonical);
            canonical.extend_from_slice(b"\r\n");
        }
        BodyLength::Known(_) => {}
    }
    if let Some(client) = rules.forwarded_for {
        write_forwarded(parsed.headers, client, canonical);
    }
    if upgrade {
        write_upgrade(parsed.headers, canonical);
    }
    canonical.extend_from_slice(if upgrade { b"Connection: Upgrade\r\n\r\n" } else { b"Connection: close\r\n\r\n" });
    Ok(Some(Request {
        head_bytes: head.len(),
        body,
        version,
        is_head: method == "HEAD",
        keep_alive: !seen.connection.close && (version == 1 || seen.connection.keep_alive),
        upgrade,
        expects_continue: seen.expects_continue && version == 1,
    }))
}

fn blanks_of_first_line(head: &[u8]) -> usize {
    head.iter().take_while(|&&byte| byte != b'\r').filter(|&&byte| byte == b' ').count()
}

/// What the fields of a request say to us.
#[derive(Debug, Default)]
struct Seen<'a> {
    framing: Framing,
    connection: Connection<'a>,
    hosts: usize,
    has_upgrade: bool,
    expects_continue: bool,
}

impl<'a> Seen<'a> {
    fn of(fields: &[Header<'a>]) -> Result<Self, Refusal> {
        let mut seen = Self::default();
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if seen.framing.read(field.name, field.value) {
            } else if is("host") {
                seen.hosts += 1;
                if !is_host(field.value) {
                    return Err(Refusal(400));
                }
            } else if is("connection") {
                seen.connection.read(field.value)?;
            } else if is("upgrade") {
                seen.has_upgrade = true;
            } else if is("expect") {
                seen.expects_continue = field.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
            }
        }
        Ok(seen)
    }

    fn body(&self, version: u8) -> Result<BodyLength, Refusal> {
        // Both a length and chunks, two lengths, chunks in HTTP/1.0: what an attacker sends.
        if self.framing.contradicts_itself() || self.framing.chunked && version == 0 {
            return Err(Refusal(400));
        }
        if self.framing.other_coding {
            return Err(Refusal(501));
        }
        Ok(if self.framing.chunked { BodyLength::Chunked } else { BodyLength::Known(self.framing.length.unwrap_or(0)) })
    }
}

fn write_request_line(method: &str, target: &Target<'_>, version: u8, canonical: &mut Vec<u8>) {
    canonical.extend_from_slice(method.as_bytes());
    canonical.push(b' ');
    canonical.extend_from_slice(target.path.as_bytes());
    canonical.extend_from_slice(if version == 0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
}

/// The fields that are meant for the program, in their order.
fn write_fields(fields: &[Header<'_>], seen: &Seen<'_>, target: &Target<'_>, rules: &Rules, canonical: &mut Vec<u8>) {
    if let Some(authority) = target.authority {
        write_field("Host", authority.as_bytes(), canonical);
    }
    for field in fields {
        let is_ours = is_hop_by_hop(field.name)
            || is_one_of(field.name, &["expect", "content-length", "transfer-encoding"])
            || seen.connection.names(field.name)
            || target.authority.is_some() && field.name.eq_ignore_ascii_case("host")
            || rules.forwarded_for.is_some() && may_be_one_of(field.name, FORWARDED);
        if !is_ours {
            write_field(field.name, field.value, canonical);
        }
    }
}

/// Who the client is, behind what the request says of those before it: one field each, so that nobody reads half of it.
fn write_forwarded(fields: &[Header<'_>], client: Option<IpAddr>, canonical: &mut Vec<u8>) {
    let client = client.map(|address| address.to_canonical());
    let plain = client.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    let element = match client {
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\";proto=http"),
        _ => format!("for={plain};proto=http"),
    };
    for (name, value) in [("X-Forwarded-For", plain), ("Forwarded", element)] {
        canonical.extend_from_slice(name.as_bytes());
        canonical.extend_from_slice(b": ");
        for field in fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name) && !field.value.is_empty()) {
            canonical.extend_from_slice(field.value);
            canonical.extend_from_slice(b", ");
        }
        canonical.extend_from_slice(value.as_bytes());
        canonical.extend_from_slice(b"\r\n");
    }
}

fn write_upgrade(fields: &[Header<'_>], canonical: &mut Vec<u8>) {
    for field in fields.iter().filter(|field| field.name.eq_ignore_ascii_case("upgrade")) {
        write_field("Upgrade", field.value, canonical);
    }
}
