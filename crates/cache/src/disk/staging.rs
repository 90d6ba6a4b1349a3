//! Memory that direct I/O accepts: aligned to a block, by allocating one block more and slicing.

use super::block;

/// One extent of memory, aligned to [`BLOCK_BYTES`](super::BLOCK_BYTES).
pub(super) struct Staging {
    memory: Vec<u8>,
    first: usize,
    len: usize,
}

impl Staging {
    pub(super) fn new(len: usize) -> Self {
        let memory = vec![0; len + block()];
        // A vector that is neither grown nor moved out of keeps its address.
        let address = memory.as_ptr().addr();
        let first = address.next_multiple_of(block()) - address;
        Self { memory, first, len }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.first..self.first + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_lies_on_a_block_and_stays_there_when_it_is_moved() {
        let mut kept: Vec<Staging> = [4096, 8192, 1 << 20].map(Staging::new).into();
        for staging in &mut kept {
            let len = staging.len;
            assert!(staging.bytes_mut().as_ptr().addr().is_multiple_of(4096));
            assert_eq!(staging.bytes_mut().len(), len);
        }
    }
}
