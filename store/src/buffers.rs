//! Buffers for what is read of a pack in one go, used again: a fresh one of 1 MiB is fresh pages, and the kernel takes longer to make
//! those than to copy into them (a fifth of the processor time of a restore from a directory).
//!
//! A buffer comes back when the last of the frames in it is dropped. Memory: at most [`KEPT`] buffers, each as long as its longest read.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers kept for the next reads: two for each of the threads that fill a restore's memory on a small machine.
const KEPT: usize = 4;
/// Shorter reads take memory of the heap, which is mapped already: from this length on glibc maps
/// fresh memory (M_MMAP_THRESHOLD).
const LEAST_BYTES: usize = 128 << 10;
/// Longer ones are rare, and their memory is let go.
const MOST_BYTES: usize = 2 << 20;

/// Free buffers.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer in use.
struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.0.lock().unwrap_or_else(PoisonError::into_inner); // it is a list of equals
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Buffers {
    /// Bytes that `read` fills, all of them.
    pub(crate) fn filled<E>(self: &Arc<Self>, len: usize, read: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
        if !(LEAST_BYTES..=MOST_BYTES).contains(&len) {
            let mut bytes = vec![0; len];
            read(&mut bytes)?;
            return Ok(Bytes::from(bytes));
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = Buffer { bytes: kept.unwrap_or_default(), len, home: self.clone() };
        if buffer.bytes.len() < len {
            buffer.bytes.resize(len, 0);
        }
        read(&mut buffer.bytes[..len])?;
        Ok(Bytes::from_owner(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_its_last_part_is_dropped() {
        let buffers = Arc::new(Buffers::default());
        let filled = |len: usize, byte: u8| {
            let fill = |into: &mut [u8]| -> Result<(), ()> {
                into.fill(byte);
                Ok(())
            };
            buffers.filled(len, fill).expect("filled")
        };
        let first = filled(LEAST_BYTES, 1);
        let (part, at) = (first.slice(10..20), first.as_ptr());
        drop(first);
        let second = filled(MOST_BYTES, 2);
        assert_ne!(second.as_ptr(), at, "a part of it is in use");
        assert_eq!(part, [1; 10][..]);
        drop(part);
        let third = filled(LEAST_BYTES, 3);
        assert_eq!(third.as_ptr(), at);
        assert_eq!((third.len(), second.len()), (LEAST_BYTES, MOST_BYTES));
        assert!(second.iter().all(|byte| *byte == 2) && third.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn no_more_are_kept_than_are_of_use() {
        let buffers = Arc::new(Buffers::default());
        let filled: Vec<_> = (0..2 * KEPT).map(|_| buffers.filled(LEAST_BYTES, |_| Ok::<_, ()>(())).expect("filled")).collect();
        drop(filled);
        assert_eq!(buffers.0.lock().expect("not poisoned").len(), KEPT);
        assert!(buffers.filled(LEAST_BYTES, |_| Err(())).is_err());
        assert_eq!(buffers.0.lock().expect("not poisoned").len(), KEPT, "a failed read gives its buffer back");
    }
}
