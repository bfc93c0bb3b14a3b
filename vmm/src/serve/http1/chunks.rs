//! Bodies in chunks (RFC 9112, section 7.1), read strictly, as they arrive, and written anew.

use super::fields::{NO_FIELDS, is_hop_by_hop, is_one_of, may_be_one_of, write_field};
use super::request::FORWARDED;

/// Longest chunk-size line, and most bytes of all trailers, bytes.
const LINE_MAX: usize = 8192;
/// Fields that mean nothing good behind a body (RFC 9110, section 6.5.1).
const NO_TRAILERS: &[&str] = &[
    "authorization",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "host",
    "set-cookie",
    "trailer",
    "transfer-encoding",
];

/// What comes out of a body in chunks.
pub trait ChunkSink {
    /// A chunk of this many bytes begins; none is the last one.
    fn size(&mut self, size: u64);
    /// Bytes of it.
    fn data(&mut self, bytes: &[u8]);
    /// It ends.
    fn chunk_end(&mut self);
    /// The body ends; `trailers` are whole lines.
    fn end(&mut self, trailers: &[u8]);
}

/// The bytes are not chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunks;

/// How far a body in chunks has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunks {
    state: State,
    /// Bytes left of the current chunk's data; while its size is read, the size so far.
    left: u64,
    /// Bytes of data so far.
    total: u64,
    /// Bytes of the current line.
    line: usize,
    /// The trailers so far.
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Size,
    /// Behind `;`: blanks, then a name.
    NameStart,
    Name,
    /// Behind `=`: blanks, then a token or a quoted string.
    ValueStart,
    Value,
    Quoted,
    Escaped,
    QuotedEnd,
    /// Blanks behind a name, or behind a value.
    NameEnd,
    ValueEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

impl Chunks {
    /// Take the next bytes; returns how many of them belong to the body (fewer than all where it ends inside).
    ///
    /// # Errors
    ///
    /// [`BadChunks`]; what came out until then is in order.
    pub fn take(&mut self, bytes: &[u8], sink: &mut impl ChunkSink) -> Result<usize, BadChunks> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::End => break,
                State::Data => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let piece = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                    sink.data(rest.get(..piece).unwrap_or_default());
                    self.left -= piece as u64;
                    self.total = self.total.saturating_add(piece as u64);
                    at += piece;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                }
                _ => {
                    self.step(byte, sink)?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.state == State::End
    }

    /// Bytes of data so far, and of the chunk that has been announced.
    #[must_use]
    pub fn announced(&self) -> u64 {
        if self.state == State::Data { self.total.saturating_add(self.left) } else { self.total }
    }

    fn step(&mut self, byte: u8, sink: &mut impl ChunkSink) -> Result<(), BadChunks> {
        use State as S;
        self.line += 1;
        if self.line > LINE_MAX {
            return Err(BadChunks);
        }
        self.state = match (self.state, byte) {
            (S::Size, digit) if digit.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(digit).to_digit(16).unwrap_or(0));
                self.left = self.left.checked_mul(16).and_then(|left| left.checked_add(digit)).ok_or(BadChunks)?;
                S::Size
            }
            (S::Size, b';') if self.line > 1 => S::NameStart,
            (S::Size, b'\r') if self.line > 1 => S::SizeLf,
            (S::SizeLf, b'\n') => self.begin_chunk(sink),
            (S::DataCr, b'\r') => S::DataLf,
            (S::DataLf, b'\n') => {
                sink.chunk_end();
                self.line = 0;
                S::Size
            }
            (S::TrailerStart, b'\r') => S::EndLf,
            (S::TrailerStart | S::Trailer, byte) if !matches!(byte, b'\r' | b'\n' | 0) => {
                self.trailers.push(byte);
                S::Trailer
            }
            (S::Trailer, b'\r') => S::TrailerLf,
            (S::TrailerLf, b'\n') => {
                self.trailers.extend_from_slice(b"\r\n");
                S::TrailerStart
            }
            (S::EndLf, b'\n') => {
                sink.end(&canonical_trailers(&std::mem::take(&mut self.trailers))?);
                S::End
            }
            (state, byte) => extension(state, byte)?,
        };
        Ok(())
    }

    fn begin_chunk(&mut self, sink: &mut impl ChunkSink) -> State {
        self.line = 0;
        sink.size(self.left);
        if self.left == 0 { State::TrailerStart } else { State::Data }
    }
}

/// Extensions say nothing to us, but must be what they claim to be: `*( BWS ";" BWS name [ BWS "=" BWS value ] )`.
const fn extension(state: State, byte: u8) -> Result<State, BadChunks> {
    use State as S;
    let is_blank = matches!(byte, b' ' | b'\t');
    let next = match (state, byte) {
        (S::NameStart | S::ValueStart, _) if is_blank => state,
        (S::NameStart | S::Name, byte) if is_token(byte) => S::Name,
        (S::ValueStart | S::Value, byte) if is_token(byte) => S::Value,
        (S::Name, _) if is_blank => S::NameEnd,
        (S::NameEnd, _) if is_blank => S::NameEnd,
        (S::Value | S::QuotedEnd | S::ValueEnd, _) if is_blank => S::ValueEnd,
        (S::Name | S::NameEnd, b'=') => S::ValueStart,
        (S::ValueStart, b'"') => S::Quoted,
        (S::Quoted, b'"') => S::QuotedEnd,
        (S::Quoted, b'\\') => S::Escaped,
        (S::Quoted | S::Escaped, b'\t' | b' '..=b'~' | 0x80..) => S::Quoted,
        (S::Name | S::NameEnd | S::Value | S::QuotedEnd | S::ValueEnd, b';') => S::NameStart,
        // No blanks before the end of the line: that is where parsers differ.
        (S::Name | S::Value | S::QuotedEnd, b'\r') => S::SizeLf,
        _ => return Err(BadChunks),
    };
    Ok(next)
}

const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// The trailers that may be passed on, written anew.
fn canonical_trailers(lines: &[u8]) -> Result<Vec<u8>, BadChunks> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let whole = [lines, b"\r\n"].concat();
    let mut fields = NO_FIELDS;
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&whole, &mut fields) else { return Err(BadChunks) };
    let mut output = Vec::with_capacity(lines.len());
    for field in fields.iter() {
        // Who the client is stands in the head, where this gateway has written it.
        let is_none = is_one_of(field.name, NO_TRAILERS) || may_be_one_of(field.name, FORWARDED) || is_hop_by_hop(field.name);
        if !is_none {
            write_field(field.name, field.value, &mut output);
        }
    }
    Ok(output)
}

/// Append the size line of a chunk.
pub(super) fn write_size(size: u64, output: &mut Vec<u8>) {
    let digits = (u64::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (size >> (4 * place)) & 15;
        output.push(b"0123456789abcdef"[digit as usize]);
    }
    output.extend_from_slice(b"\r\n");
}

/// Writes chunks anew: their sizes in plain hexadecimal, no extensions, no trailers that frame anything.
#[derive(Debug)]
pub struct Canonical<'a>(pub &'a mut Vec<u8>);

impl ChunkSink for Canonical<'_> {
    fn size(&mut self, size: u64) {
        write_size(size, self.0);
    }

    fn data(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn chunk_end(&mut self) {
        self.0.extend_from_slice(b"\r\n");
    }

    fn end(&mut self, trailers: &[u8]) {
        self.0.extend_from_slice(trailers);
        self.0.extend_from_slice(b"\r\n");
    }
}

/// Writes the data alone, for clients that know no chunks.
#[derive(Debug)]
pub(super) struct Plain<'a>(pub(super) &'a mut Vec<u8>);

impl ChunkSink for Plain<'_> {
    fn size(&mut self, _size: u64) {}

    fn data(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn chunk_end(&mut self) {}

    fn end(&mut self, _trailers: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(body: &[u8]) -> Result<(Vec<u8>, usize, bool), BadChunks> {
        let (mut output, mut chunks) = (Vec::new(), Chunks::default());
        let taken = chunks.take(body, &mut Canonical(&mut output))?;
        Ok((output, taken, chunks.ended()))
    }

    #[test]
    fn chunks_end_where_they_end_however_they_arrive() {
        let body = b"004;x=y ;z=\"a\\\"b\"\r\nWiki\r\nA\r\n0123456789\r\n0\r\nX-Sum: a\r\nContent-Length: 3\r\n\r\nnext";
        let wanted = b"4\r\nWiki\r\na\r\n0123456789\r\n0\r\nX-Sum: a\r\n\r\n";
        for split in 0..body.len() {
            let (mut output, mut chunks) = (Vec::new(), Chunks::default());
            let first = chunks.take(&body[..split], &mut Canonical(&mut output)).unwrap();
            let second = chunks.take(&body[first..], &mut Canonical(&mut output)).unwrap();
            assert_eq!((first + second, chunks.ended()), (body.len() - 4, true));
            assert_eq!(output, wanted, "split at {split}");
        }
    }

    #[test]
    fn what_is_not_a_chunk_is_refused() {
        let bad: [&[u8]; 20] = [
            b"4\nWiki",
            b"\r\n",
            b";x\r\n",
            b"fffffffffffffffff\r\n",
            b"0x4\r\n",
            b"+4\r\n",
            b" 4\r\n",
            b"4 \r\n",
            b"4;\r\n",
            b"4;x=\r\n",
            b"4;x\ny\r\n",
            b"4;x\ry\r\n",
            b"4;x=\"\n\"\r\n",
            b"4;x \r\n",
            b"4;x=\"a\" \r\n",
            b"4\r\nWikipedia",
            b"4\r\nWiki\n0\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\nA: b\r\n folded\r\n\r\n",
        ];
        for body in bad {
            assert_eq!(canonical(body), Err(BadChunks), "{}", body.escape_ascii());
        }
        let long = [b"4;x=".to_vec(), vec![b'a'; LINE_MAX]].concat();
        assert_eq!(canonical(&long), Err(BadChunks));
        let trailers = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(LINE_MAX / 6 + 1)].concat();
        assert_eq!(canonical(&trailers), Err(BadChunks));
    }

    #[test]
    fn sizes_are_written_in_hexadecimal() {
        for (size, wanted) in [(0, "0"), (9, "9"), (16, "10"), (255, "ff"), (u64::MAX, "ffffffffffffffff")] {
            let mut output = Vec::new();
            write_size(size, &mut output);
            assert_eq!(output, format!("{wanted}\r\n").as_bytes());
        }
    }
}
