//! A request's body on its way to the program.

use super::buffer::Buffer;
use super::http1::{BodyLength, Canonical, ChunkSink, Chunks};
use crate::linux::Kernel;
use crate::linux::file::stream_host::StreamHandle;

/// Most bytes given to a stream at once.
const PIECE: usize = 256 << 10;

/// How the body ends.
#[derive(Debug)]
enum Framing {
    /// After so many more bytes.
    Known(u64),
    /// As its chunks say.
    Chunked(Chunks),
}

/// A body, of which the bytes that are not chunks stay in the connection's input until the program takes them.
#[derive(Debug)]
pub(super) struct Upload {
    framing: Framing,
    /// Chunks that were read and written anew.
    ready: Buffer,
    /// Longest body, bytes.
    most: u64,
}

impl Upload {
    /// For the body of a request.
    ///
    /// # Errors
    ///
    /// 413 where it says that it is longer than `most` bytes.
    pub(super) fn new(body: BodyLength, most: u64) -> Result<Self, u16> {
        let framing = match body {
            BodyLength::Known(length) if length > most => return Err(413),
            BodyLength::Known(length) => Framing::Known(length),
            BodyLength::Chunked => Framing::Chunked(Chunks::default()),
        };
        Ok(Self { framing, ready: Buffer::default(), most })
    }

    /// Read chunks from the input, until about `room` bytes wait for the program.
    ///
    /// # Errors
    ///
    /// The status for the client: 400 where they are not chunks, 413 where they are too many.
    pub(super) fn collect(&mut self, input: &mut Buffer, room: usize) -> Result<(), u16> {
        let Framing::Chunked(chunks) = &mut self.framing else { return Ok(()) };
        while !chunks.ended() && !input.is_empty() && self.ready.len() < room {
            let bytes = input.bytes();
            let piece = bytes.get(..bytes.len().min(PIECE)).unwrap_or_default();
            let taken = chunks.take(piece, &mut Canonical(self.ready.tail())).map_err(|_| 400_u16)?;
            if chunks.announced() > self.most {
                return Err(413);
            }
            input.consume(taken);
        }
        Ok(())
    }

    /// Whether the body is here, or `wanted` bytes of it.
    pub(super) fn is_here(&self, input: &Buffer, wanted: usize) -> bool {
        match &self.framing {
            Framing::Known(left) => input.len() as u64 >= (*left).min(wanted as u64),
            Framing::Chunked(chunks) => chunks.ended() || self.ready.len() >= wanted,
        }
    }

    /// Whether the client has more of it to send.
    pub(super) fn wants_more(&self, input: &Buffer) -> bool {
        match &self.framing {
            Framing::Known(left) => *left > input.len() as u64,
            Framing::Chunked(chunks) => !chunks.ended(),
        }
    }

    /// Bytes that wait here, beside those in the input.
    pub(super) const fn held(&self) -> usize {
        self.ready.len()
    }

    /// Bytes of the input that belong to it.
    pub(super) fn bytes_in(&self, input: &Buffer) -> usize {
        match &self.framing {
            Framing::Known(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(input.len()),
            Framing::Chunked(_) => 0,
        }
    }

    /// Move bytes to the program; whether any moved.
    pub(super) fn feed(&mut self, kernel: &mut Kernel, stream: StreamHandle, input: &mut Buffer) -> bool {
        let count = match &mut self.framing {
            Framing::Known(0) => return false,
            Framing::Known(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(PIECE);
                let count = push(kernel, stream, input, most);
                *left -= count as u64;
                count
            }
            Framing::Chunked(_) => push(kernel, stream, &mut self.ready, PIECE),
        };
        count > 0
    }

    /// Whether everything that came has been given to the program.
    pub(super) fn is_given(&self, input: &Buffer) -> bool {
        self.ready.is_empty() && self.bytes_in(input) == 0
    }

    /// The program wants no more of it: drop what is here. Whether the next request begins behind it.
    pub(super) fn skip(&mut self, input: &mut Buffer) -> bool {
        self.ready.clear();
        match &mut self.framing {
            Framing::Known(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                input.consume(count);
                *left -= count as u64;
                *left == 0
            }
            Framing::Chunked(chunks) => {
                if let Ok(taken) = chunks.take(input.bytes(), &mut Nothing) {
                    input.consume(taken);
                    return chunks.ended() && chunks.announced() <= self.most;
                }
                false
            }
        }
    }
}

/// Give a stream what it takes of at most `most` bytes.
pub(super) fn push(kernel: &mut Kernel, stream: StreamHandle, source: &mut Buffer, most: usize) -> usize {
    if source.is_empty() {
        return 0;
    }
    let bytes = source.bytes();
    let count = kernel.stream_push(stream, bytes.get(..bytes.len().min(most)).unwrap_or_default());
    source.consume(count);
    count
}

/// Chunks that nobody wants.
struct Nothing;

impl ChunkSink for Nothing {
    fn size(&mut self, _size: u64) {}

    fn data(&mut self, _bytes: &[u8]) {}

    fn chunk_end(&mut self) {}

    fn end(&mut self, _trailers: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::default();
        buffer.tail().extend_from_slice(bytes);
        buffer
    }

    #[test]
    fn a_body_is_here_when_it_is_whole_or_enough() {
        let upload = Upload::new(BodyLength::Known(10), 100).unwrap();
        assert!(!upload.is_here(&buffer(b"12345"), 8));
        assert!(upload.is_here(&buffer(b"12345678"), 8));
        assert!(upload.wants_more(&buffer(b"12345678")));
        assert!(!upload.wants_more(&buffer(b"1234567890GET")));
        let mut upload = Upload::new(BodyLength::Chunked, 100).unwrap();
        let mut input = buffer(b"3\r\nabc\r\n");
        upload.collect(&mut input, 100).unwrap();
        assert_eq!((upload.is_here(&input, 100), upload.is_here(&input, 8)), (false, true));
        input.tail().extend_from_slice(b"0\r\n\r\nGET");
        upload.collect(&mut input, 100).unwrap();
        assert!(upload.is_here(&input, 100) && !upload.wants_more(&input));
        assert_eq!(input.bytes(), b"GET");
    }

    #[test]
    fn what_is_too_long_or_no_body_is_refused() {
        assert_eq!(Upload::new(BodyLength::Known(101), 100).err(), Some(413));
        let mut upload = Upload::new(BodyLength::Chunked, 100).unwrap();
        assert_eq!(upload.collect(&mut buffer(b"65\r\n"), 100), Err(413));
        let mut upload = Upload::new(BodyLength::Chunked, 100).unwrap();
        assert_eq!(upload.collect(&mut buffer(b"x"), 100), Err(400));
    }

    #[test]
    fn what_the_program_left_is_skipped() {
        let mut input = buffer(b"12345GET");
        assert!(Upload::new(BodyLength::Known(5), 100).unwrap().skip(&mut input));
        assert_eq!(input.bytes(), b"GET");
        let mut input = buffer(b"3\r\nabc\r\n0\r\n\r\nGET");
        assert!(Upload::new(BodyLength::Chunked, 100).unwrap().skip(&mut input));
        assert_eq!(input.bytes(), b"GET");
        assert!(!Upload::new(BodyLength::Known(5), 100).unwrap().skip(&mut input));
    }
}
