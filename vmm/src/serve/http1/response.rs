//! The response of a program, of which nothing is believed, made into one that the client cannot misunderstand.
//!
//! The head is written anew: the status line, the fields that are meant for the client, and the framing that we chose. The body is
//! passed on as it comes. What is behind the end of the response is dropped; what breaks off before its end is never completed.

use httparse::Header;

use super::chunks::{Canonical, Chunks, Plain, write_size};
use super::fields::{Connection, Framing, NO_FIELDS, is_hop_by_hop, is_one_of, write_decimal, write_field};

/// Longest head of a response, bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What only we may say of a run, where we do.
const OUR_FIELDS: &[&str] = &["kvmserver-vm", "kvmserver-counters"];

/// What the client of a response has asked for and can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The minor version of its HTTP/1: below 1 it knows neither chunks nor interim responses.
    pub version: u8,
    /// The request was HEAD.
    pub is_head: bool,
    /// It has asked for another protocol.
    pub upgrade: bool,
    /// `kvmserver-vm` and `kvmserver-counters` are ours.
    pub timing: bool,
}

/// Why a response cannot be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadResponse(pub &'static str);

/// What has become of a response when the program's stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is whole.
    Whole,
    /// Nothing of it came.
    Nothing,
    /// It breaks off.
    Cut,
}

/// How the body comes, and how it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    /// So many bytes are left, on both sides.
    Length(u64),
    /// Chunks come, chunks go out.
    Chunks(Chunks),
    /// Chunks come, what is in them goes out until the connection closes.
    Unchunked(Chunks),
    /// It ends where the program closes its stream; chunks go out.
    Rechunked,
    /// It ends where the program closes its stream, and the client's connection with it.
    UntilClose,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Head,
    Body(Body),
    /// Another protocol: bytes, until both have closed.
    Switched,
    End,
}

/// A response on its way from the program to the client.
#[derive(Debug)]
pub struct Response {
    client: Client,
    /// The connection may go on; settled when the head is written.
    pub keeps: bool,
    /// Fields to add to the head, each with its line end.
    pub extra: Vec<u8>,
    state: State,
    /// A head that came in pieces.
    head: Vec<u8>,
    scan: EndScan,
    /// The head of the final response has been written.
    has_begun: bool,
}

impl Response {
    /// For the response to a request.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, keeps: false, extra: Vec::new(), state: State::Head, head: Vec::new(), scan: EndScan::default(), has_begun: false }
    }

    /// Bytes that are passed on as they are, in both directions.
    #[must_use]
    pub fn raw() -> Self {
        let client = Client { version: 1, is_head: false, upgrade: false, timing: false };
        Self { state: State::Switched, has_begun: true, ..Self::new(client) }
    }

    /// Take what the program wrote; what the client gets of it is appended to `output`.
    ///
    /// # Errors
    ///
    /// [`BadResponse`] where it is not HTTP/1; what was appended until then is in order.
    pub fn take(&mut self, mut bytes: &[u8], output: &mut Vec<u8>) -> Result<(), BadResponse> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Head => bytes = self.take_head(bytes, output)?,
                State::Body(_) => return self.take_body(bytes, output),
                State::Switched => {
                    output.extend_from_slice(bytes);
                    return Ok(());
                }
                State::End => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the framing says that it is whole.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// Whether bytes of the final response have been written: there is no going back to an answer of ours.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether both sides have gone over to another protocol.
    #[must_use]
    pub fn has_switched(&self) -> bool {
        self.state == State::Switched
    }

    /// Whether the client takes the end of the connection for the end of the response: one that breaks off must not end so.
    #[must_use]
    pub const fn ends_by_closing(&self) -> bool {
        matches!(self.state, State::Body(Body::UntilClose | Body::Unchunked(_)))
    }

    /// The program has closed its stream.
    pub fn close(&mut self, output: &mut Vec<u8>) -> Ending {
        match &self.state {
            State::Head if self.head.is_empty() => Ending::Nothing,
            State::Head => Ending::Cut,
            State::Body(Body::Rechunked) => {
                output.extend_from_slice(b"0\r\n\r\n");
                self.state = State::End;
                Ending::Whole
            }
            State::Body(Body::UntilClose) | State::Switched => {
                self.state = State::End;
                Ending::Whole
            }
            State::Body(_) => Ending::Cut,
            State::End => Ending::Whole,
        }
    }

    /// Take bytes of a head; returns those behind it.
    fn take_head<'a>(&mut self, bytes: &'a [u8], output: &mut Vec<u8>) -> Result<&'a [u8], BadResponse> {
        if self.head.is_empty()
            && let Some(end) = self.scan.end(bytes)
        {
            // The usual case: it is whole, and needs no copy.
            let (head, rest) = bytes.split_at(end);
            self.finish_head(head, output)?;
            return Ok(rest);
        }
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        if let Some(end) = self.scan.end(&self.head) {
            let head = std::mem::take(&mut self.head);
            self.finish_head(head.get(..end).unwrap_or_default(), output)?;
            return Ok(bytes.get(end.saturating_sub(before)..).unwrap_or_default());
        }
        if self.head.len() > HEAD_BYTES_MAX {
            return Err(BadResponse("the head of its response is too long"));
        }
        Ok(&[])
    }

    fn finish_head(&mut self, head: &[u8], output: &mut Vec<u8>) -> Result<(), BadResponse> {
        self.scan = EndScan::default();
        if head.len() > HEAD_BYTES_MAX {
            return Err(BadResponse("the head of its response is too long"));
        }
        let mut fields = NO_FIELDS;
        let mut parsed = httparse::Response::new(&mut fields);
        if !matches!(parsed.parse(head), Ok(httparse::Status::Complete(_))) {
            return Err(BadResponse("its response has no valid head"));
        }
        let (Some(status @ 100..=599), Some(reason)) = (parsed.code, parsed.reason) else {
            return Err(BadResponse("its response has no valid status"));
        };
        let head = Head::of(status, reason, parsed.headers)?;
        match status {
            101 => self.switch(&head, output),
            100..200 => {
                // We have answered the expectation ourselves, and HTTP/1.0 knows no interim responses.
                if status != 100 && self.client.version > 0 {
                    head.write(None, self.client.timing, output);
                    output.extend_from_slice(b"\r\n");
                }
                Ok(())
            }
            _ => self.begin(&head, output),
        }
    }

    fn switch(&mut self, head: &Head<'_, '_>, output: &mut Vec<u8>) -> Result<(), BadResponse> {
        if !self.client.upgrade {
            return Err(BadResponse("it switches protocols without being asked"));
        }
        head.write(None, self.client.timing, output);
        for field in head.fields.iter().filter(|field| field.name.eq_ignore_ascii_case("upgrade")) {
            write_field("Upgrade", field.value, output);
        }
        output.extend_from_slice(b"Connection: Upgrade\r\n");
        output.append(&mut self.extra);
        output.extend_from_slice(b"\r\n");
        (self.has_begun, self.keeps, self.state) = (true, false, State::Switched);
        Ok(())
    }

    /// Write the head of the final response, with the framing that suits the client.
    fn begin(&mut self, head: &Head<'_, '_>, output: &mut Vec<u8>) -> Result<(), BadResponse> {
        if head.framing.other_coding {
            return Err(BadResponse("its response has a transfer coding that is not known"));
        }
        let is_bodiless = self.client.is_head || matches!(head.status, 204 | 304);
        let knows_chunks = self.client.version > 0;
        self.state = match (is_bodiless, head.framing.chunked, head.framing.length) {
            (true, ..) | (false, false, Some(0)) => State::End,
            (_, true, _) if knows_chunks => State::Body(Body::Chunks(Chunks::default())),
            (_, true, _) => State::Body(Body::Unchunked(Chunks::default())),
            (_, _, Some(length)) => State::Body(Body::Length(length)),
            (_, _, None) if knows_chunks => State::Body(Body::Rechunked),
            (_, _, None) => State::Body(Body::UntilClose),
        };
        // A body without a length, for a client that knows no other way.
        self.keeps &= !self.ends_by_closing();
        head.write(head.framing.length.filter(|_| head.status != 204), self.client.timing, output);
        if matches!(self.state, State::Body(Body::Chunks(_) | Body::Rechunked)) {
            output.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        match (self.keeps, knows_chunks) {
            (false, _) => output.extend_from_slice(b"Connection: close\r\n"),
            (true, false) => output.extend_from_slice(b"Connection: keep-alive\r\n"),
            (true, true) => {}
        }
        output.append(&mut self.extra);
        output.extend_from_slice(b"\r\n");
        self.has_begun = true;
        Ok(())
    }

    fn take_body(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), BadResponse> {
        let State::Body(body) = &mut self.state else { return Ok(()) };
        let has_ended = match body {
            Body::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                output.extend_from_slice(bytes.get(..count).unwrap_or_default());
                *left -= count as u64;
                *left == 0
            }
            Body::Chunks(chunks) => {
                chunks.take(bytes, &mut Canonical(output)).map_err(|_| BAD_CHUNKS)?;
                chunks.ended()
            }
            Body::Unchunked(chunks) => {
                chunks.take(bytes, &mut Plain(output)).map_err(|_| BAD_CHUNKS)?;
                chunks.ended()
            }
            Body::Rechunked => {
                write_size(bytes.len() as u64, output);
                output.extend_from_slice(bytes);
                output.extend_from_slice(b"\r\n");
                false
            }
            Body::UntilClose => {
                output.extend_from_slice(bytes);
                false
            }
        };
        if has_ended {
            self.state = State::End;
        }
        Ok(())
    }
}

const BAD_CHUNKS: BadResponse = BadResponse("its response has chunks that are none");

/// A parsed head.
struct Head<'f, 'b> {
    status: u16,
    reason: &'b str,
    fields: &'f [Header<'b>],
    framing: Framing,
    connection: Connection<'b>,
}

impl<'f, 'b> Head<'f, 'b> {
    fn of(status: u16, reason: &'b str, fields: &'f [Header<'b>]) -> Result<Self, BadResponse> {
        let mut head = Self { status, reason, fields, framing: Framing::default(), connection: Connection::default() };
        for field in fields {
            if !head.framing.read(field.name, field.value) && field.name.eq_ignore_ascii_case("connection") {
                let read = head.connection.read(field.value);
                read.map_err(|_| BadResponse("its response has too many options of the connection"))?;
            }
        }
        if head.framing.contradicts_itself() {
            return Err(BadResponse("its response contradicts itself about the length of its body"));
        }
        Ok(head)
    }

    /// Append the status line and the fields that are meant for the client; `length` stands where the program has put its own.
    fn write(&self, length: Option<u64>, timing: bool, output: &mut Vec<u8>) {
        output.reserve(256);
        output.extend_from_slice(b"HTTP/1.1 ");
        write_decimal(u64::from(self.status), output);
        output.push(b' ');
        output.extend_from_slice(self.reason.as_bytes());
        output.extend_from_slice(b"\r\n");
        let mut length = length;
        for field in self.fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                if let Some(length) = length.take() {
                    output.extend_from_slice(b"Content-Length: ");
                    write_decimal(length, output);
                    output.extend_from_slice(b"\r\n");
                }
                continue;
            }
            let is_ours = is_hop_by_hop(field.name)
                || field.name.eq_ignore_ascii_case("transfer-encoding")
                || timing && is_one_of(field.name, OUR_FIELDS)
                || self.connection.names(field.name);
            if !is_ours {
                write_field(field.name, field.value, output);
            }
        }
    }
}

/// Finds the end of a head as it arrives. Programs may end their lines with a bare LF: the client never sees them.
#[derive(Debug, Clone, Copy, Default)]
struct EndScan {
    at: usize,
}

impl EndScan {
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(found) = bytes.get(self.at..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let next = self.at + found + 1;
            match (bytes.get(next), bytes.get(next + 1)) {
                (Some(b'\n'), _) => return Some(next + 1),
                (Some(b'\r'), Some(b'\n')) => return Some(next + 2),
                // What decides is not here yet.
                (None, _) | (Some(b'\r'), None) => {
                    self.at = next - 1;
                    return None;
                }
                _ => self.at = next,
            }
        }
        self.at = bytes.len();
        None
    }
}
