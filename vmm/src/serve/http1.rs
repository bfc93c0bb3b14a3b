//! HTTP/1.1 framing, strict (RFC 9112), without I/O: where a request ends, what the guest is given, where a response ends.
//!
//! httparse does the heads; it accepts a bare LF as line end, which we refuse (request smuggling lives there).

use memchr::memmem;

/// Largest request head, bytes; 431.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header fields; 431.
const HEADERS_MAX: usize = 128;
/// Most options in the Connection fields of a request; 431. Each is compared with each field.
const CONNECTION_OPTIONS_MAX: usize = 32;
/// Fields that stay although a request names them as options of the connection: they are meant for the program, so no honest
/// client names them. Whoever could take them away, behind the back of a proxy that set or checked them, would choose how a body is
/// framed and read, which site answers, and as whom.
const NEVER_OPTIONS: &[&str] =
    &["authorization", "cache-control", "cookie", "forwarded", "host", "origin", "referer", "transfer-encoding", "via", "x-real-ip"];
/// The same, by how their names begin.
const NEVER_OPTION_PREFIXES: &[&str] = &["content-", "sec-", "x-forwarded-"];

/// Why a request is refused: the status that the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub u16);

/// How a message's body is delimited (RFC 9112, section 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A known number of bytes; none is 0.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Until the connection closes (responses only, and upgraded connections).
    UntilClose,
}

/// A request whose head is here.
#[derive(Debug)]
pub struct Request {
    /// What the guest is given instead of the client's head: hop-by-hop fields gone, `Connection: close` in their place.
    pub head: Vec<u8>,
    /// Bytes of the client's head.
    pub head_bytes: usize,
    /// How the body ends.
    pub body: Body,
    /// The method is HEAD: the response has no body.
    pub is_head: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

/// Parse a request head.
///
/// `Ok(None)` where it is not complete yet.
///
/// # Errors
///
/// [`Refusal`] with the status for the client.
pub fn parse_request(bytes: &[u8]) -> Result<Option<Request>, Refusal> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
        // A head that is not one must be refused before it is complete.
        check_line_ends(bytes, false)?;
        return if bytes.len() > HEAD_BYTES_MAX { Err(Refusal(431)) } else { Ok(None) };
    };
    if end > HEAD_BYTES_MAX {
        return Err(Refusal(431));
    }
    let head = &bytes[..end];
    check_line_ends(head, true)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal(400)),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal(431)),
        Err(httparse::Error::Version) => return Err(Refusal(505)),
        Err(_) => return Err(Refusal(400)),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else { return Err(Refusal(400)) };
    let fields = Fields::of(request.headers)?;
    if version == 1 && fields.hosts != 1 || fields.hosts > 1 {
        return Err(Refusal(400));
    }
    let body = fields.request_body(version)?;
    let upgrade = fields.upgrade && version == 1;
    let mut canonical = Vec::with_capacity(head.len() + 32);
    canonical.extend_from_slice(format!("{method} {target} HTTP/1.{version}\r\n").as_bytes());
    let options = connection_options(request.headers)?;
    let is_dropped = |name: &str| is_hop_by_hop(name) || is_connection_option(name, &options);
    for header in request.headers.iter().filter(|header| upgrade || !is_dropped(header.name)) {
        canonical.extend_from_slice(header.name.as_bytes());
        canonical.extend_from_slice(b": ");
        canonical.extend_from_slice(header.value);
        canonical.extend_from_slice(b"\r\n");
    }
    canonical.extend_from_slice(if upgrade { b"\r\n" } else { b"Connection: close\r\n\r\n" });
    Ok(Some(Request {
        head: canonical,
        head_bytes: end,
        body: if upgrade { Body::UntilClose } else { body },
        is_head: method == "HEAD",
        expects_continue: fields.expects_continue && version == 1,
    }))
}

/// Every line ends in CR LF, and no CR or NUL stands elsewhere; no line is folded.
fn check_line_ends(head: &[u8], complete: bool) -> Result<(), Refusal> {
    for at in memchr::memchr3_iter(b'\r', b'\n', 0, head) {
        let next = head.get(at + 1);
        let fine = match head[at] {
            b'\r' => next == Some(&b'\n') || next.is_none() && !complete,
            b'\n' => at > 0 && head[at - 1] == b'\r' && !matches!(next, Some(b' ' | b'\t')),
            _ => false,
        };
        if !fine {
            return Err(Refusal(400));
        }
    }
    Ok(())
}

fn is_hop_by_hop(name: &str) -> bool {
    ["connection", "keep-alive", "proxy-connection", "te", "upgrade", "expect"].iter().any(|hop| name.eq_ignore_ascii_case(hop))
}

/// The options in all Connection fields: names of fields that are not for the program (RFC 9110, section 7.6.1).
fn connection_options<'a>(headers: &[httparse::Header<'a>]) -> Result<Vec<&'a [u8]>, Refusal> {
    let mut options = Vec::new();
    for header in headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection")) {
        for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty()) {
            if options.len() == CONNECTION_OPTIONS_MAX {
                return Err(Refusal(431));
            }
            options.push(option);
        }
    }
    Ok(options)
}

fn is_connection_option(name: &str, options: &[&[u8]]) -> bool {
    let begins_with = |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    options.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
        && !NEVER_OPTIONS.iter().any(|never| name.eq_ignore_ascii_case(never))
        && !NEVER_OPTION_PREFIXES.iter().any(begins_with)
}

/// What the framing of a message depends on.
#[derive(Debug, Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    other_coding: bool,
    hosts: usize,
    upgrade: bool,
    expects_continue: bool,
    has_connection: bool,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let length = parse_length(header.value).ok_or(Refusal(400))?;
                if fields.length.is_some_and(|known| known != length) {
                    return Err(Refusal(400));
                }
                fields.length = Some(length);
            } else if is("transfer-encoding") {
                if fields.chunked || fields.other_coding || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    fields.other_coding = true;
                } else {
                    fields.chunked = true;
                }
            } else if is("host") {
                fields.hosts += 1;
            } else if is("upgrade") {
                fields.upgrade = true;
            } else if is("expect") {
                fields.expects_continue = header.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
            } else if is("connection") {
                fields.has_connection = true;
            }
        }
        Ok(fields)
    }

    fn request_body(&self, version: u8) -> Result<Body, Refusal> {
        if self.other_coding {
            return Err(Refusal(501));
        }
        if self.chunked {
            // Both, or chunks in HTTP/1.0: what an attacker sends.
            return if self.length.is_some() || version == 0 { Err(Refusal(400)) } else { Ok(Body::Chunked(Chunks::default())) };
        }
        Ok(Body::Length(self.length.unwrap_or(0)))
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Finds the end of a chunked body, byte by byte, strictly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunks {
    state: ChunkState,
    /// Bytes left of the current chunk's data.
    left: u64,
    /// Bytes of the current line.
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ChunkState {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

/// Longest chunk-size line, and longest trailer line, bytes.
const CHUNK_LINE_MAX: usize = 8192;

impl Chunks {
    /// Take the next bytes; returns how many of them belong to the body (fewer than all where it ends inside).
    ///
    /// # Errors
    ///
    /// 400 where they are not chunks.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkState::End {
            if self.state == ChunkState::Data {
                let piece = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= piece as u64;
                at += piece;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.state == ChunkState::End
    }

    fn step(&mut self, byte: u8) -> Result<(), Refusal> {
        use ChunkState as S;
        self.line += 1;
        if self.line > CHUNK_LINE_MAX {
            return Err(Refusal(400));
        }
        self.state = match (self.state, byte) {
            (S::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
                self.left = self.left.checked_mul(16).and_then(|left| left.checked_add(digit)).ok_or(Refusal(400))?;
                S::Size
            }
            (S::Size, b';') if self.line > 1 => S::Extension,
            (S::Size, b'\r') if self.line > 1 => S::SizeEnd,
            (S::Extension, b'\r') => S::SizeEnd,
            (S::Extension, b'\n' | 0) => return Err(Refusal(400)),
            (S::Extension, _) => S::Extension,
            (S::SizeEnd, b'\n') => {
                self.line = 0;
                if self.left == 0 { S::TrailerStart } else { S::Data }
            }
            (S::DataCr, b'\r') => S::DataLf,
            (S::DataLf, b'\n') => {
                self.line = 0;
                S::Size
            }
            (S::TrailerStart, b'\r') => S::EndLf,
            (S::TrailerStart | S::Trailer, byte) if byte != b'\r' && byte != b'\n' && byte != 0 => S::Trailer,
            (S::Trailer, b'\r') => S::TrailerLf,
            (S::TrailerLf, b'\n') => {
                self.line = 0;
                S::TrailerStart
            }
            (S::EndLf, b'\n') => S::End,
            _ => return Err(Refusal(400)),
        };
        Ok(())
    }
}

/// Watches what a guest writes, to know when its response is complete.
#[derive(Debug)]
pub struct ResponseFrame {
    head: Vec<u8>,
    body: Option<Body>,
    taken: u64,
    is_head: bool,
    opaque: bool,
}

impl ResponseFrame {
    /// For the response to a request; `is_head` for HEAD, `opaque` for an upgraded connection.
    #[must_use]
    pub const fn new(is_head: bool, opaque: bool) -> Self {
        Self { head: Vec::new(), body: None, taken: 0, is_head, opaque }
    }

    /// Take what the guest wrote; returns what the client is to get.
    ///
    /// A complete head gets a `Connection: close` field if it has no Connection field: the connection will close.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.opaque {
            return bytes.to_vec();
        }
        let mut rest = bytes.to_vec();
        let mut output = Vec::with_capacity(bytes.len() + 32);
        while self.body.is_none() && !rest.is_empty() {
            self.head.append(&mut rest);
            let Some(end) = memmem::find(&self.head, b"\r\n\r\n").map(|at| at + 4) else {
                if self.head.len() > HEAD_BYTES_MAX {
                    self.give_up(&mut output);
                }
                return output;
            };
            rest = self.head.split_off(end);
            self.take_head(&mut output);
        }
        self.count(&rest);
        output.extend(rest);
        output
    }

    /// Not HTTP, or a head without end: whatever comes is passed on until the guest closes.
    fn give_up(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.head);
        self.body = Some(Body::UntilClose);
    }

    fn take_head(&mut self, output: &mut Vec<u8>) {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = matches!(response.parse(&self.head), Ok(httparse::Status::Complete(_)));
        let (Some(status), true) = (response.code, parsed) else { return self.give_up(output) };
        let Ok(fields) = Fields::of(response.headers) else { return self.give_up(output) };
        if (100..200).contains(&status) && status != 101 {
            output.append(&mut self.head);
            return;
        }
        self.body = Some(match status {
            101 => Body::UntilClose,
            204 | 304 => Body::Length(0),
            _ if self.is_head => Body::Length(0),
            _ if fields.chunked => Body::Chunked(Chunks::default()),
            _ if fields.other_coding => Body::UntilClose,
            _ => fields.length.map_or(Body::UntilClose, Body::Length),
        });
        let end = self.head.len() - 2;
        output.extend_from_slice(&self.head[..end]);
        if !fields.has_connection && status != 101 {
            output.extend_from_slice(b"Connection: close\r\n");
        }
        output.extend_from_slice(b"\r\n");
        self.head.clear();
    }

    fn count(&mut self, bytes: &[u8]) {
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        if let Some(Body::Chunked(chunks)) = &mut self.body
            && chunks.take(bytes).is_err()
        {
            self.body = Some(Body::UntilClose);
        }
    }

    /// Whether the framing says that the response is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.body {
            Some(Body::Length(length)) => self.taken >= *length,
            Some(Body::Chunked(chunks)) => chunks.ended(),
            Some(Body::UntilClose) | None => false,
        }
    }

    /// Bytes of a head that is not complete, which the client has not got.
    #[must_use]
    pub fn held_back(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.head)
    }
}

/// A short answer of our own, after which the connection closes.
#[must_use]
pub fn own_response(status: u16, body: &str) -> Vec<u8> {
    let reason = match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Bad Gateway",
    };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &[u8]) -> Option<u16> {
        parse_request(request).err().map(|Refusal(status)| status)
    }

    #[test]
    fn a_request_is_made_canonical() {
        let request = parse_request(b"GET /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\nrest").unwrap().unwrap();
        assert_eq!(request.head, b"GET /a?b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        assert_eq!(request.body, Body::Length(0));
        assert!(parse_request(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        assert_eq!(status(b"GET / HTTP/1.1\nHost: x\n\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), Some(400));
        assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), Some(400));
        assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(400));
        assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"), Some(501));
        assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 1\r\n\r\n"), Some(400));
        assert_eq!(status(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Some(505));
    }

    #[test]
    fn fields_named_as_options_of_the_connection_end_here() {
        let head = |fields: &str| {
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            let head = parse_request(request.as_bytes()).unwrap().unwrap().head;
            String::from_utf8(head).unwrap()
        };
        let rest = "GET / HTTP/1.1\r\nHost: x\r\nB: 2\r\nConnection: close\r\n\r\n";
        assert_eq!(head("Connection: a\r\nA: 1\r\nB: 2\r\n"), rest);
        assert_eq!(head("A: 1\r\nconnection: keep-alive,, A ,TE\r\nB: 2\r\nTE: x\r\na: 3\r\n"), rest);
        assert_eq!(head("Connection: a\r\nB: 2\r\nC: 1\r\nConnection: c\r\n"), rest);
        // Only whole names.
        assert!(head("Connection: a b, aa, \r\nA: 1\r\n").contains("A: 1\r\n"));
    }

    #[test]
    fn a_client_cannot_name_away_what_the_program_relies_on() {
        let request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nCookie: s=1\r\nX-Forwarded-For: 192.0.2.1\r\n\
            Content-Type: text/plain\r\nAuthorization: y\r\n\
            Connection: host, content-length, Cookie, X-FORWARDED-FOR, content-type, authorization, close\r\n\r\nabc";
        let request = parse_request(request).unwrap().unwrap();
        assert_eq!(request.body, Body::Length(3));
        let head = String::from_utf8(request.head).unwrap();
        for field in
            ["Host: x", "Content-Length: 3", "Cookie: s=1", "X-Forwarded-For: 192.0.2.1", "Content-Type: text/plain", "Authorization: y"]
        {
            assert!(head.contains(&format!("\r\n{field}\r\n")), "{field}");
        }
        let chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n0\r\n\r\n";
        let request = parse_request(chunked).unwrap().unwrap();
        assert_eq!(request.body, Body::Chunked(Chunks::default()));
        assert!(memmem::find(&request.head, b"\r\nTransfer-Encoding: chunked\r\n").is_some());
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: {}\r\n\r\n", "a,".repeat(CONNECTION_OPTIONS_MAX + 1));
        assert_eq!(status(many.as_bytes()), Some(431));
    }

    #[test]
    fn chunks_end_where_they_end() {
        let mut chunks = Chunks::default();
        let body = b"4;x=y\r\nWiki\r\n0\r\nTrailer: a\r\n\r\nnext";
        for split in 0..body.len() {
            let mut chunks = Chunks::default();
            let first = chunks.take(&body[..split]).unwrap();
            let second = chunks.take(&body[split..]).unwrap();
            assert_eq!((first + second, chunks.ended()), (body.len() - 4, true));
        }
        assert_eq!(chunks.take(b"4\nWiki"), Err(Refusal(400)));
        assert_eq!(Chunks::default().take(b"\r\n"), Err(Refusal(400)));
        assert_eq!(Chunks::default().take(b"fffffffffffffffff\r\n"), Err(Refusal(400)));
    }

    #[test]
    fn a_response_is_complete_by_its_framing() {
        let mut frame = ResponseFrame::new(false, false);
        assert_eq!(frame.take(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"), b"");
        assert_eq!(frame.take(b"\r\nab"), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nab");
        assert!(!frame.is_complete());
        frame.take(b"c");
        assert!(frame.is_complete());
        let mut frame = ResponseFrame::new(true, false);
        frame.take(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
        assert!(frame.is_complete());
        let mut frame = ResponseFrame::new(false, false);
        frame.take(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        assert!(frame.is_complete());
        let mut frame = ResponseFrame::new(false, false);
        frame.take(b"HTTP/1.0 200 OK\r\n\r\nabc");
        assert!(!frame.is_complete());
    }
}
