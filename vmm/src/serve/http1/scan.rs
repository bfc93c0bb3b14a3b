//! Where the head of a request ends, found as it arrives: each byte is looked at once.

use super::Refusal;

/// How far a head has been looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// Everything before is in order.
    at: usize,
    /// Where the current line begins.
    line: usize,
}

impl HeadScan {
    /// Look at what has come since the last time; `bytes` begin with the head. Returns the length of the head once it is whole.
    ///
    /// # Errors
    ///
    /// 400 where a line does not end in CR LF, where CR, LF or NUL stand elsewhere, or where a line is folded (obs-fold).
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            if self.line > 0 && self.line == self.at && matches!(bytes.get(self.line), Some(b' ' | b'\t')) {
                return Err(Refusal(400));
            }
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some(found) = memchr::memchr3(b'\r', b'\n', 0, rest) else {
                self.at = bytes.len();
                return Ok(None);
            };
            let at = self.at + found;
            match (bytes.get(at), bytes.get(at + 1)) {
                (Some(b'\r'), Some(b'\n')) if at == self.line => return Ok(Some(at + 2)),
                (Some(b'\r'), Some(b'\n')) => (self.at, self.line) = (at + 2, at + 2),
                (Some(b'\r'), None) => {
                    self.at = at;
                    return Ok(None);
                }
                _ => return Err(Refusal(400)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_arrives() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET";
        for split in 0..head.len() {
            let mut scan = HeadScan::default();
            let first = scan.end(&head[..split]).unwrap();
            assert_eq!(first, (split >= head.len() - 3).then_some(head.len() - 3));
            assert_eq!(scan.end(head).unwrap(), Some(head.len() - 3), "split at {split}");
        }
    }

    #[test]
    fn lines_that_two_parsers_could_read_differently_are_refused_however_they_arrive() {
        let bad: [&[u8]; 8] = [
            b"GET / HTTP/1.1\nHost: x\n\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\tfolded\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\n",
        ];
        for head in bad {
            for split in 0..head.len() {
                let mut scan = HeadScan::default();
                let found = scan.end(&head[..split]).and_then(|_| scan.end(head));
                assert_eq!(found, Err(Refusal(400)), "{} split at {split}", head.escape_ascii());
            }
        }
    }
}
