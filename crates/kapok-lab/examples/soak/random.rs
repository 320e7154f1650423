//! Numbers that look random and follow from a seed.

use std::time::Duration;

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A source of its own for each `stream` of one seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// One of `from` to `to`, both included.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    /// One of `from` to `to`, the small ones as often as the large ones: for lengths.
    pub(crate) fn size(&mut self, to: u64) -> usize {
        let limit = self.between(1, u64::from(to.ilog2()) + 1);
        self.between(1, to.min(1 << limit)) as usize
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.next().is_multiple_of(chances)
    }

    /// From half of `middle` to one and a half.
    pub(crate) fn around(&mut self, middle: Duration) -> Duration {
        middle.mul_f64(0.5 + (self.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// Letters alone.
    pub(crate) fn letters(&mut self, count: usize) -> String {
        self.bytes(count).into_iter().map(|byte| char::from(b'a' + byte % 26)).collect()
    }
}
