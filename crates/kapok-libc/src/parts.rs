//! Scattered buffers: what is left of them once some bytes were moved.

use libc::iovec;

/// The most parts that the kernel takes.
const MOST_PARTS: usize = libc::UIO_MAXIOV as usize;

/// The parts of a buffer from some byte on.
pub(crate) struct Rest(Vec<iovec>);

impl Rest {
    /// # Safety
    ///
    /// There are `count` parts at `parts`.
    pub(crate) unsafe fn new(parts: *const iovec, count: usize, mut skip: usize) -> Rest {
        let mut rest = Vec::with_capacity(count);
        for index in 0..count {
            // SAFETY: by the caller.
            let part = unsafe { parts.add(index).read() };
            let skipped = skip.min(part.iov_len);
            skip -= skipped;
            if skipped < part.iov_len {
                rest.push(iovec {
                    iov_base: part.iov_base.wrapping_byte_add(skipped),
                    iov_len: part.iov_len - skipped,
                });
            }
        }
        Rest(rest)
    }

    pub(crate) fn parts(&mut self) -> (*mut iovec, usize) {
        (self.0.as_mut_ptr(), self.0.len())
    }
}

/// How many bytes the parts have together; none if there are more parts than the kernel takes.
///
/// # Safety
///
/// There are `count` parts at `parts`, or it is null.
pub(crate) unsafe fn total(parts: *const iovec, count: usize) -> usize {
    if parts.is_null() || count > MOST_PARTS {
        return 0;
    }
    (0..count).fold(0, |sum: usize, index| {
        // SAFETY: by the caller.
        sum.saturating_add(unsafe { (*parts.add(index)).iov_len })
    })
}
