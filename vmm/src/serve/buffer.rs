//! Bytes between a socket and a stream: appended behind, taken in front.

/// A buffer that is not moved for each piece that leaves it.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// What is before has left.
    start: usize,
}

/// What has left is given back to the buffer once it is this much, bytes.
const SLACK: usize = 256 << 10;

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where to append.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        if self.start >= SLACK {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// The first `count` bytes leave.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Give memory back, if there is more of it than `most` bytes and nothing in it.
    pub(super) fn trim(&mut self, most: usize) {
        if self.is_empty() && self.bytes.capacity() > most {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_of_their_coming() {
        let mut buffer = Buffer::default();
        for turn in 0..100_u8 {
            buffer.tail().extend(std::iter::repeat_n(turn, 10_000));
            let (first, count) = (buffer.bytes()[0], buffer.len() / 2);
            assert!(first <= turn);
            buffer.consume(count);
        }
        assert!(buffer.len() <= 20_000 && buffer.bytes.len() < 2 * SLACK);
        assert_eq!(buffer.bytes().last(), Some(&99));
        buffer.consume(usize::MAX);
        assert!(buffer.is_empty());
        buffer.trim(100);
        assert_eq!(buffer.bytes.capacity(), 0);
    }
}
