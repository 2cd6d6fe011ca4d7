//! The checksum of all that livesave writes: the low half of XXH64, seed 0, which also stands at
//! the end of a zstd frame. Without special instructions it is as quick as memory, in emulators and
//! nested hosts too; CRC-32C is slower by two orders where its instruction is emulated.

use std::hash::Hasher;

use twox_hash::XxHash64;

/// The checksum of all of `bytes`.
#[must_use]
pub fn of(bytes: &[u8]) -> u32 {
    XxHash64::oneshot(0, bytes) as u32
}

/// The checksum of bytes that come in parts.
pub struct Running(XxHash64);

impl Running {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(XxHash64::with_seed(0))
    }

    /// Adds the next part.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Of all parts so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.finish() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_function_and_parts_make_the_whole() {
        // The empty input's XXH64 is 0xef46db3751d8e999.
        assert_eq!(of(b""), 0x51d8_e999);
        let bytes: Vec<u8> = (0..100_000u32)
            .map(|n| (n.wrapping_mul(n) >> 3) as u8)
            .collect();
        let mut parts = Running::new();
        for part in bytes.chunks(777) {
            parts.add(part);
        }
        assert_eq!(parts.value(), of(&bytes));
    }
}
