//! Answers of our own.

/// What the host answers where the program does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// One line for people.
    pub body: &'static str,
    /// The connection stays open.
    pub keeps: bool,
    /// The request was HEAD: the body is left out.
    pub is_head: bool,
    /// The minor version of the client's HTTP/1.
    pub version: u8,
}

impl Answer {
    /// An answer after which the connection closes.
    #[must_use]
    pub const fn last(status: u16, body: &'static str) -> Self {
        Self { status, body, keeps: false, is_head: false, version: 1 }
    }

    /// Append it.
    pub fn write(&self, output: &mut Vec<u8>) {
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n",
            self.status,
            reason(self.status),
            self.body.len()
        );
        output.extend_from_slice(head.as_bytes());
        if self.status == 503 {
            output.extend_from_slice(b"Retry-After: 1\r\n");
        }
        match (self.keeps, self.version) {
            (false, _) => output.extend_from_slice(b"Connection: close\r\n"),
            (true, 0) => output.extend_from_slice(b"Connection: keep-alive\r\n"),
            (true, _) => {}
        }
        output.extend_from_slice(b"\r\n");
        if !self.is_head {
            output.extend_from_slice(self.body.as_bytes());
        }
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Bad Gateway",
    }
}
