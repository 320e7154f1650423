//! Bytes in a buffer that the connection did not have to keep.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use kapok_engine::Buffers;

use super::socket::Socket;
use crate::op::{self, Pooled};
use crate::runtime::Loop;

/// Memory of one's own, where the engine has none to give.
const OWN_BYTES: usize = 16 * 1024;

/// What one receive has brought, in a buffer that goes back to its loop when this is dropped: see
/// [`TcpStream::receive`](super::TcpStream::receive). Empty at the end of the stream.
///
/// Loops have 128 such buffers. Do not keep them: a connection that waits, for its peer to take a
/// reply say, waits best with nothing in its hands. When all are taken, receives allocate.
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
    None,
}

impl Received {
    pub(super) fn from(socket: &Socket) -> io::Result<Received> {
        match socket.around_read(op::receive_pooled)? {
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
            Memory::Own(memory) => &memory[..self.len],
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
            Memory::Own(memory) => &mut memory[..self.len],
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
