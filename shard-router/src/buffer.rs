//! Buffers that grow with what has arrived, never with what was announced, and a shelf of them so that an idle session holds none.

/// Bytes of a buffer on the shelf: one read.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// Buffers that a shelf keeps; more are freed.
const SHELF_MAX: usize = 64;

/// Bytes that have arrived and are not consumed yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// All of these are to be consumed.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { start: 0, end: bytes.len(), bytes }
    }

    /// What is to be consumed.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether nothing is to be consumed.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// How many bytes are to be consumed.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// The first `count` bytes have been consumed.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "nobody consumes what has not arrived");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for at least one byte; doubles the buffer where it is full. The caller bounds what it lets pile up.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            // Reading into a sliver costs a system call for a few bytes.
            if self.bytes.len() - self.end < BUFFER_BYTES / 4 {
                self.bytes.resize((self.bytes.len() * 2).max(BUFFER_BYTES), 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes of the room have been filled.
    pub(crate) fn filled_more(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len(), "nobody fills more than the room");
    }

    fn is_held(&self) -> bool {
        !self.bytes.is_empty()
    }
}

/// Empty buffers of one worker, the last used one first: it is warm.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    buffers: Vec<Buffer>,
    writes: Vec<Vec<u8>>,
}

impl Shelf {
    /// Makes sure that `buffer` can be read into.
    pub(crate) fn lend(&mut self, buffer: &mut Buffer) {
        if !buffer.is_held() {
            *buffer = self.buffers.pop().unwrap_or_default();
        }
    }

    /// Takes the memory of a buffer that is empty; leaves one that is not.
    pub(crate) fn take_back(&mut self, buffer: &mut Buffer) {
        if buffer.is_empty() && buffer.is_held() {
            let buffer = std::mem::take(buffer);
            if buffer.bytes.len() <= BUFFER_BYTES && self.buffers.len() < SHELF_MAX {
                self.buffers.push(buffer);
            }
        }
    }

    /// Makes sure that `bytes` has memory to write to.
    pub(crate) fn lend_writes(&mut self, bytes: &mut Vec<u8>) {
        if bytes.capacity() == 0 {
            *bytes = self.writes.pop().unwrap_or_default();
        }
    }

    /// Takes the memory of writes that are done.
    pub(crate) fn take_back_writes(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() && bytes.capacity() > 0 {
            let bytes = std::mem::take(bytes);
            if bytes.capacity() <= BUFFER_BYTES && self.writes.len() < SHELF_MAX {
                self.writes.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(buffer: &mut Buffer, bytes: &[u8]) {
        for byte in bytes {
            buffer.room()[0] = *byte;
            buffer.filled_more(1);
        }
    }

    #[test]
    fn what_was_put_in_comes_out_in_order_across_growth() {
        let mut buffer = Buffer::default();
        let bytes: Vec<u8> = (0..3 * BUFFER_BYTES).map(|n| (n % 251) as u8).collect();
        put(&mut buffer, &bytes);
        assert_eq!(buffer.filled(), bytes);
        buffer.consume(100);
        put(&mut buffer, &[1, 2, 3]);
        assert_eq!(buffer.filled()[..10], bytes[100..110]);
        assert_eq!(buffer.len(), bytes.len() - 97);
    }

    #[test]
    fn the_shelf_takes_empty_buffers_of_the_usual_size_only() {
        let mut shelf = Shelf::default();
        let mut buffer = Buffer::default();
        shelf.lend(&mut buffer);
        put(&mut buffer, b"x");
        shelf.take_back(&mut buffer);
        assert_eq!(buffer.filled(), b"x", "what is not consumed stays");
        buffer.consume(1);
        shelf.take_back(&mut buffer);
        assert!(!buffer.is_held() && shelf.buffers.len() == 1);
        put(&mut buffer, &vec![0; 2 * BUFFER_BYTES]);
        buffer.consume(2 * BUFFER_BYTES);
        shelf.take_back(&mut buffer);
        assert_eq!(shelf.buffers.len(), 1, "a grown buffer is freed");
    }
}
