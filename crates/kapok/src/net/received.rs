//! Bytes in a buffer that the connection did not have to keep.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use kapok_engine::Buffers;

use super::socket::Socket;
use crate::op::{self, Pooled};
use crate::runtime::Loop;

/// Memory of one's own, where the engine has none to give.
const OWN_BYTES: usize = 16 * 1024;

/// What is received at once of a stream whose peer is ahead: a buffer of the engine's would cut that into many
/// receives, each of which has the kernel look what to tell the peer.
const LARGE_BYTES: usize = 256 * 1024;

/// So many of them a thread has.
const LARGE_BUFFERS: usize = 4;

/// What one receive has brought, in a buffer that goes back to its loop when this is dropped: see
/// [`TcpStream::receive`](super::TcpStream::receive). Empty at the end of the stream.
///
/// Loops have 128 such buffers of 16 KiB, and once a connection has filled one of these and more had come, 4 of
/// 256 KiB. Do not keep them: a connection that waits, for its peer to take a reply say, waits best with
/// nothing in its hands. When all are taken, receives allocate.
///
/// It stays on its thread, to which the memory belongs:
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<kapok::net::Received>();
/// ```
pub struct Received {
    memory: Memory,
    len: usize,
}

enum Memory {
    Pooled {
        buffers: Rc<Buffers>,
        id: u16,
        /// The number of the loop whose buffers these are.
        home: u64,
    },
    Own(Box<[u8]>),
    Large(Large),
    None,
}

/// One of the thread's large buffers.
struct Large(Box<[u8]>);

/// The large buffers of a thread.
struct Shelf {
    spare: RefCell<Vec<Box<[u8]>>>,
    /// How many are not to be had: they are in somebody's hands, and perhaps for good: in those of a fiber that
    /// was left behind, or of one of the parent's after fork(2).
    taken: Cell<usize>,
}

thread_local! {
    static SHELF: Shelf = const { Shelf { spare: RefCell::new(Vec::new()), taken: Cell::new(0) } };
}

impl Large {
    /// `None` if all are taken, or if the thread ends.
    fn take() -> Option<Large> {
        SHELF
            .try_with(|shelf| {
                let taken = shelf.taken.get();
                if taken == LARGE_BUFFERS {
                    return None;
                }
                shelf.taken.set(taken + 1);
                let spare = shelf.spare.borrow_mut().pop();
                Some(Large(spare.unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice())))
            })
            .ok()
            .flatten()
    }
}

impl AsMut<[u8]> for Large {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.0);
        let _ = SHELF.try_with(|shelf| {
            shelf.taken.set(shelf.taken.get() - 1);
            shelf.spare.borrow_mut().push(memory);
        });
    }
}

impl Received {
    pub(super) fn from(socket: &Socket) -> io::Result<Received> {
        let left = socket.left();
        if left.load(Ordering::Relaxed)
            && let Some((large, len)) =
                socket.around_read(|fd| op::recv_left(fd, Large::take, left))?
        {
            let memory = if len == 0 { Memory::None } else { Memory::Large(large) };
            return Ok(Received { memory, len });
        }
        match socket.around_read(|fd| op::receive_pooled(fd, left))? {
            Pooled::Bytes { buffers, id, len, home } => {
                Ok(Received { memory: Memory::Pooled { buffers, id, home }, len })
            }
            Pooled::End => Ok(Received { memory: Memory::None, len: 0 }),
            Pooled::Unavailable => {
                let mut memory = vec![0; OWN_BYTES].into_boxed_slice();
                let len = socket.recv_stream(&mut memory, 0)?;
                Ok(Received { memory: Memory::Own(memory), len })
            }
        }
    }
}

impl Deref for Received {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: the engine has received so many bytes into this buffer, which is ours alone
            // until we give it back; its memory stays while we hold `buffers`.
            Memory::Pooled { buffers, id, .. } => unsafe {
                std::slice::from_raw_parts(buffers.start(*id).as_ptr(), self.len)
            },
            Memory::Own(memory) | Memory::Large(Large(memory)) => &memory[..self.len],
            Memory::None => &[],
        }
    }
}

impl DerefMut for Received {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as for `deref`, and borrowed exclusively.
            Memory::Pooled { buffers, id, .. } => unsafe {
                std::slice::from_raw_parts_mut(buffers.start(*id).as_ptr(), self.len)
            },
            Memory::Own(memory) | Memory::Large(Large(memory)) => &mut memory[..self.len],
            Memory::None => &mut [],
        }
    }
}

impl Drop for Received {
    #[inline]
    fn drop(&mut self) {
        let Memory::Pooled { buffers, id, home } = &self.memory else { return };
        // Elsewhere the buffer stays taken: its loop is over, or its parent's (fork), and the memory
        // goes with the last that is held of it.
        if Loop::with_current(|current| current.is_some_and(|lp| lp.id() == *home)) {
            // SAFETY: the landing that named it was ours, and this is dropped once.
            unsafe { buffers.give_back(*id) };
        }
    }
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes)", self.len)
    }
}
