//! The other server that a handler asks, by operations of the ring.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::super::backend::QUESTION;
use super::send;

/// A connection to the backend. While an operation of it is in flight ([`is_waiting`]), the kernel holds
/// its memory and it must not be dropped.
///
/// [`is_waiting`]: Backend::is_waiting
pub(super) struct Backend {
    stream: TcpStream,
    state: State,
    /// What the operations name, in a place of its own.
    memory: Box<Memory>,
}

struct Memory {
    addr: SockAddr,
    answer: [u8; QUESTION.len()],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Connecting,
    Ready,
    Asked,
}

/// How to go on with asking.
pub(super) enum Step {
    /// Submit this; its completion is for [`Backend::landed`].
    Submit(Entry),
    /// An operation is in flight.
    Wait,
}

impl Backend {
    pub(super) fn new(addr: Option<SocketAddr>) -> io::Result<Backend> {
        let addr = addr.ok_or_else(|| io::Error::other("there is no backend to ask"))?;
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        let memory = Box::new(Memory { addr: addr.into(), answer: [0; QUESTION.len()] });
        Ok(Backend { stream: socket.into(), state: State::New, memory })
    }

    /// The kernel holds memory of this.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Connecting | State::Asked)
    }

    pub(super) fn ask(&mut self) -> io::Result<Step> {
        let fd = Fd(self.stream.as_raw_fd());
        match self.state {
            State::Connecting | State::Asked => Ok(Step::Wait),
            State::New => {
                self.state = State::Connecting;
                let addr = &self.memory.addr;
                Ok(Step::Submit(opcode::Connect::new(fd, addr.as_ptr().cast(), addr.len()).build()))
            }
            State::Ready => {
                // One byte after another was answered: there is room for it.
                send(self.stream.as_fd(), &QUESTION)?;
                self.state = State::Asked;
                let answer = &mut self.memory.answer;
                let len = answer.len() as u32;
                Ok(Step::Submit(opcode::Recv::new(fd, answer.as_mut_ptr(), len).build()))
            }
        }
    }

    /// The operation has landed: whether it brought the answer.
    pub(super) fn landed(&mut self, result: i32) -> io::Result<bool> {
        let state = std::mem::replace(&mut self.state, State::Ready);
        match (state, result) {
            (State::Connecting, 0) => Ok(false),
            (State::Asked, 1..) => Ok(true),
            (State::Asked, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
            (_, result) => Err(io::Error::from_raw_os_error(-result)),
        }
    }
}
