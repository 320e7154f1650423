//! Blocks that say where they belong and who wrote them.
//!
//! A sector of 512 bytes is 64 words: who wrote it (a seed), where it belongs (its offset in the file),
//! and 62 that follow from the two. A block that came from elsewhere, or of which a part is missing,
//! does not pass for the right one. Each sector is judged by what it says itself: a file may have been
//! written by several, in blocks of other sizes.

/// The unit of the pattern, in bytes; blocks are multiples of it.
pub const SECTOR: usize = 512;

const WORD: usize = size_of::<u64>();

/// What no file has by accident: the upper half of every seed.
const MARK: u64 = 0x6b61_706f << 32;

/// Who writes: a number that the blocks of one writer have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The seed with this number.
    #[must_use]
    pub const fn new(number: u32) -> Seed {
        Seed(MARK | number as u64)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
}

/// The word at `place` of the sector at `offset`.
#[inline]
fn word(seed: u64, offset: u64, place: usize) -> u64 {
    match place {
        0 => seed,
        1 => offset,
        _ => (seed ^ offset.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * place as u64),
    }
}

/// Writes the pattern for `offset` into a block of whole sectors.
pub fn fill(block: &mut [u8], offset: u64, seed: Seed) {
    for (sector, offset) in block.chunks_exact_mut(SECTOR).zip((offset..).step_by(SECTOR)) {
        for (place, bytes) in sector.chunks_exact_mut(WORD).enumerate() {
            bytes.copy_from_slice(&word(seed.0, offset, place).to_ne_bytes());
        }
    }
}

fn at(sector: &[u8], place: usize) -> u64 {
    let mut bytes = [0; WORD];
    bytes.copy_from_slice(&sector[place * WORD..][..WORD]);
    u64::from_ne_bytes(bytes)
}

/// Who wrote a block, every byte of which is as it must be at `offset`; `None` if that is not so, or if
/// several wrote it.
#[must_use]
pub fn writer(block: &[u8], offset: u64) -> Option<Seed> {
    let seed = (block.len() >= SECTOR).then(|| at(block, 0))?;
    let one_wrote_it = block.chunks_exact(SECTOR).all(|sector| at(sector, 0) == seed);
    (one_wrote_it && is_right(block, offset)).then_some(Seed(seed))
}

/// Whether every byte of a block is as it must be at `offset`. Its sectors may have several writers: it
/// was written in smaller blocks than it is read in, or in larger ones of which another replaced a part.
#[must_use]
pub fn is_right(block: &[u8], offset: u64) -> bool {
    check(block, offset, 0..SECTOR / WORD)
}

/// The same by the first words and the last word of each sector.
#[must_use]
#[inline]
pub fn is_right_at_a_glance(block: &[u8], offset: u64) -> bool {
    check(block, offset, [1, SECTOR / WORD - 1].into_iter())
}

#[inline]
fn check(block: &[u8], offset: u64, places: impl Iterator<Item = usize> + Clone) -> bool {
    block.len() >= SECTOR
        && block.chunks_exact(SECTOR).zip((offset..).step_by(SECTOR)).all(|(sector, offset)| {
            let seed = at(sector, 0);
            seed >> 32 == MARK >> 32
                && places.clone().all(|place| at(sector, place) == word(seed, offset, place))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: u64 = 3 << 20;

    #[test]
    fn a_block_is_known_by_its_writer_and_its_place() {
        let mut block = vec![0; 4096];
        assert_eq!(writer(&block, OFFSET), None, "zeros");
        fill(&mut block, OFFSET, Seed::new(7));
        assert_eq!(writer(&block, OFFSET), Some(Seed::new(7)));
        assert!(is_right(&block, OFFSET) && is_right_at_a_glance(&block, OFFSET));
        assert_eq!(writer(&block, OFFSET + 512), None, "of another place");
        assert!(!is_right_at_a_glance(&block, OFFSET + 4096), "of another place");
    }

    #[test]
    fn every_byte_counts() {
        let mut block = vec![0; 1024];
        fill(&mut block, OFFSET, Seed::new(u32::MAX));
        for at in 0..block.len() {
            block[at] ^= 0x10;
            assert_eq!(writer(&block, OFFSET), None, "byte {at}");
            assert!(!is_right(&block, OFFSET), "byte {at}");
            block[at] ^= 0x10;
        }
        assert!(writer(&block, OFFSET).is_some());
    }

    #[test]
    fn a_block_of_several_writers_is_right_and_nobodys() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        fill(&mut old, OFFSET, Seed::new(1));
        fill(&mut new, OFFSET, Seed::new(2));
        for sectors in 1..8 {
            let mut both = new.clone();
            both[..sectors * SECTOR].copy_from_slice(&old[..sectors * SECTOR]);
            assert_eq!(writer(&both, OFFSET), None, "after {sectors}");
            assert!(is_right(&both, OFFSET) && is_right_at_a_glance(&both, OFFSET));
            // But not a sector of two: the words that are looked at have the seed in them.
            let tear = sectors * SECTOR - SECTOR / 2;
            both[..tear].copy_from_slice(&old[..tear]);
            both[tear..].copy_from_slice(&new[tear..]);
            assert!(!is_right(&both, OFFSET) && !is_right_at_a_glance(&both, OFFSET));
        }
    }
}
