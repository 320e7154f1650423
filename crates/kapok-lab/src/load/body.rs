//! What the bodies of HTTP replies are held against: the first one, byte for byte.
//!
//! It is kept whole, once for all connections and threads of a run, and every other body is compared with
//! it as it comes: that costs one pass over what was read, and no memory.
//!
//! A body that differs is wrong where it is known that bodies do not change: who asks has said how long
//! they are, or the first one is that of Kapok's own servers. Otherwise it may be that of a page with the
//! time in it, and is only counted.

use std::mem;
use std::sync::{Arc, OnceLock};

use super::traffic::Fault;
use crate::serve::MAX_BYTES;

/// What a body of Kapok's own servers is, over and over.
const OURS: &[u8] = b"Hello, World!";

/// The first body of a run, as soon as it is whole.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstBody(Arc<OnceLock<Kept>>);

#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    is_ours: bool,
}

/// The bodies of one thread's replies.
#[derive(Debug)]
pub(super) struct Bodies {
    first: FirstBody,
    /// What has come of the first one, on whichever connection was ahead, until it is whole.
    coming: Vec<u8>,
    /// The length that all have: that of the first, unless it was known before.
    length: Option<usize>,
    /// All must be like the first one.
    must_be_alike: bool,
}

impl Bodies {
    pub(super) fn new(length: Option<usize>, first: FirstBody) -> Bodies {
        Bodies { first, coming: Vec::new(), length, must_be_alike: length.is_some() }
    }

    /// The length that all have; 0 before the first was announced.
    pub(super) fn length(&self) -> usize {
        self.length.unwrap_or(0)
    }

    /// Checks the length that a head announces.
    pub(super) fn announce(&mut self, length: usize) -> Result<(), Fault> {
        let first = self.first.0.get().map_or(length, |kept| kept.bytes.len());
        let expected = *self.length.get_or_insert(first);
        if length != expected {
            return Err(Fault(format!("Content-Length {length} instead of {expected}")));
        }
        if length > MAX_BYTES {
            return Err(Fault(format!("a body of {length} bytes: at most {MAX_BYTES}")));
        }
        Ok(())
    }

    /// Compares the next `bytes` of a body, from its byte `at` on, and says whether they are those of the
    /// first.
    pub(super) fn verify(&mut self, at: usize, bytes: &[u8]) -> Result<bool, Fault> {
        if self.first.0.get().is_none() {
            self.keep(at, bytes);
        }
        let (first, must_be_alike) = match self.first.0.get() {
            Some(kept) => (&kept.bytes[..], self.must_be_alike || kept.is_ours),
            None => (&self.coming[..], self.must_be_alike),
        };
        // Threads that began at once may have agreed on a body of another length.
        let expected = first.get(at..at + bytes.len()).unwrap_or_default();
        if bytes == expected {
            return Ok(true);
        }
        let wrong = bytes.iter().zip(expected).position(|(byte, expected)| byte != expected);
        match wrong {
            Some(wrong) if must_be_alike => Err(Fault(format!(
                "byte {} of the body is {:#04x} and {:#04x} in the first reply",
                at + wrong,
                bytes[wrong],
                expected[wrong]
            ))),
            _ => Ok(false),
        }
    }

    /// Keeps what no connection has had before. There are no gaps: each has come to its byte `at` by those
    /// before it.
    fn keep(&mut self, at: usize, bytes: &[u8]) {
        let known = (self.coming.len() - at).min(bytes.len());
        self.coming.extend_from_slice(&bytes[known..]);
        if Some(self.coming.len()) == self.length {
            let bytes = mem::take(&mut self.coming);
            let is_ours = bytes.iter().eq(OURS.iter().cycle().take(bytes.len()));
            // Another thread may have been faster.
            let _ = self.first.0.set(Kept { bytes, is_ours });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a body in pieces of `cut` bytes.
    fn verify(bodies: &mut Bodies, body: &[u8], cut: usize) -> Result<bool, Fault> {
        bodies.announce(body.len())?;
        let mut alike = true;
        for (number, piece) in body.chunks(cut).enumerate() {
            alike &= bodies.verify(number * cut, piece)?;
        }
        Ok(alike)
    }

    fn body(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found_however_the_body_is_cut() {
        let good = body(1000);
        for cut in [1, 7, 64, 1000] {
            for wrong in [0, 6, 7, 500, 999] {
                let mut bad = good.clone();
                bad[wrong] ^= 1;

                let mut known = Bodies::new(Some(1000), FirstBody::default());
                assert!(verify(&mut known, &good, 64).unwrap());
                let fault = verify(&mut known, &bad, cut).unwrap_err();
                assert!(fault.0.starts_with(&format!("byte {wrong} ")), "{}", fault.0);
                assert!(verify(&mut known, &good, cut).unwrap());

                let mut unknown = Bodies::new(None, FirstBody::default());
                assert!(verify(&mut unknown, &good, 64).unwrap());
                assert!(!verify(&mut unknown, &bad, cut).unwrap(), "byte {wrong}");
                assert!(verify(&mut unknown, &good, cut).unwrap());
            }
        }
    }

    #[test]
    fn bodies_of_our_own_servers_do_not_change() {
        for length in [1, 13, 14, 1800] {
            let ours: Vec<u8> = OURS.iter().copied().cycle().take(length).collect();
            let mut bodies = Bodies::new(None, FirstBody::default());
            assert!(verify(&mut bodies, &ours, 100).unwrap());
            let mut other = ours.clone();
            other[length - 1] ^= 0x20;
            let fault = verify(&mut bodies, &other, 100).unwrap_err();
            assert!(fault.0.starts_with(&format!("byte {} ", length - 1)), "{}", fault.0);
        }
    }

    #[test]
    fn connections_that_begin_at_once_make_one_first_body() {
        let good = body(100);
        let mut bodies = Bodies::new(Some(100), FirstBody::default());
        bodies.announce(100).unwrap();
        for (at, until) in [(0, 10), (0, 30), (10, 20), (30, 90), (20, 95), (95, 100), (90, 100)] {
            assert!(bodies.verify(at, &good[at..until]).unwrap(), "{at} to {until}");
        }
        assert!(bodies.verify(40, &[0]).is_err());
    }

    #[test]
    fn threads_of_a_run_have_the_same_first_body() {
        let first = FirstBody::default();
        let mut one = Bodies::new(None, first.clone());
        let mut two = Bodies::new(None, first.clone());
        let mut three = Bodies::new(None, first);
        assert!(verify(&mut one, &body(100), 100).unwrap());
        let mut other = body(100);
        other[50] ^= 1;
        assert!(!verify(&mut two, &other, 100).unwrap());
        let fault = verify(&mut three, &body(99), 100).unwrap_err();
        assert_eq!(fault.0, "Content-Length 99 instead of 100");
    }

    #[test]
    fn a_body_that_nobody_would_keep_is_refused() {
        let fault = Bodies::new(None, FirstBody::default()).announce(MAX_BYTES + 1).unwrap_err();
        assert!(fault.0.contains("at most"), "{}", fault.0);
    }
}
