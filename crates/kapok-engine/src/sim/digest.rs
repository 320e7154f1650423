//! A digest of all that happened, by which two runs are told apart.

use crate::sim::random::mix;

/// Not cryptographic: nobody tries to deceive it.
pub(super) struct Digest {
    state: u64,
    events: u64,
}

impl Digest {
    pub(super) fn new(seed: u64) -> Digest {
        Digest { state: mix(seed), events: 0 }
    }

    pub(super) fn of(bytes: &[u8]) -> u64 {
        let mut digest = Digest::new(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            digest.add(u64::from_le_bytes(word));
        }
        digest.state
    }

    fn add(&mut self, word: u64) {
        self.state = mix(self.state.rotate_left(5) ^ word);
    }

    /// Takes in one event.
    pub(super) fn event(&mut self, words: &[u64]) {
        self.events += 1;
        words.iter().for_each(|&word| self.add(word));
    }

    pub(super) fn value(&self) -> u64 {
        self.state
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }
}
