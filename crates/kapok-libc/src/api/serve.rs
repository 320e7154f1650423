//! Listeners with their handlers, and the loop that serves them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kapok::net::TcpListener;
use kapok::server::Server;
use kapok::{Kind, Runtime, foreign};

use crate::locks::PerProcess;

use super::{Pointer, failed, kapok_loop_counters, kapok_loop_options, options, status};

/// Serves one connection, on a fiber of its own: it gets the connection, and the argument that was
/// given with it. What it returns is counted as a failure unless it is 0. The connection is closed when
/// it returns, and it must not end in another way.
pub type kapok_handler =
    Option<unsafe extern "C-unwind" fn(connection: libc::c_int, arg: *mut c_void) -> libc::c_int>;

/// One that is there.
type Handler = unsafe extern "C-unwind" fn(libc::c_int, *mut c_void) -> libc::c_int;

type Start = Box<dyn FnOnce()>;

/// What this thread's next loop will run.
#[derive(Default)]
struct Waiting {
    listeners: Vec<(TcpListener, Handler, Pointer)>,
    started: Vec<Start>,
}

thread_local!(static WAITING: RefCell<Waiting> = RefCell::default());

/// Connections that handlers serve, and whether they were closed before their time. Their loops close
/// them, and nobody else: the number of one that was closed would soon be another's.
type Served = Mutex<BTreeMap<RawFd, bool>>;

static SERVED: PerProcess<Served> = {
    static FIRST: Served = Mutex::new(BTreeMap::new());
    PerProcess::new(&FIRST)
};

fn served() -> MutexGuard<'static, BTreeMap<RawFd, bool>> {
    SERVED.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the child of a fork, whose descriptors are its own to close.
pub(super) fn forget() {
    SERVED.renew(Mutex::new(BTreeMap::new()));
}

/// What closing a descriptor means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    /// It is closed.
    Closes,
    /// It is a connection that some handler serves: it is shut down.
    ShutsDown,
    /// The same, and that was done before.
    Closed,
}

/// Begins to close a descriptor, of whichever fiber and thread.
pub(super) fn close(fd: RawFd) -> Closing {
    match served().get_mut(&fd) {
        None => Closing::Closes,
        Some(closed) => {
            if std::mem::replace(closed, true) {
                Closing::Closed
            } else {
                Closing::ShutsDown
            }
        }
    }
}

/// A connection that is being served, until this is dropped.
struct Serving(RawFd);

impl Serving {
    fn new(connection: RawFd) -> Serving {
        super::prepare();
        served().insert(connection, false);
        Serving(connection)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        served().remove(&self.0);
    }
}

/// Has `f` run as a fiber of this thread's next loop.
pub(super) fn start(f: impl FnOnce() + 'static) {
    WAITING.with_borrow_mut(|waiting| waiting.started.push(Box::new(f)));
}

pub(super) fn integer_option(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: writes to a local, no more than its length.
    let res = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    if res == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// What a descriptor that is made non-blocking was before, until it is said to stay: after an error it is
/// that again.
struct Nonblocking {
    fd: RawFd,
    flags: libc::c_int,
}

impl Nonblocking {
    fn set(fd: RawFd) -> io::Result<Nonblocking> {
        // SAFETY: only numbers are passed.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Nonblocking { fd, flags })
    }

    fn stays(self) {
        std::mem::forget(self);
    }
}

impl Drop for Nonblocking {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed; whose the descriptor is knows the caller of kapok_register().
        unsafe { libc::fcntl(self.fd, libc::F_SETFL, self.flags) };
    }
}

/// Gives a listening TCP socket and its handler to the loop that this thread runs next by
/// kapok_loop(). From then on the socket is the loop's, which closes it when it ends; it is made
/// non-blocking. After an error it is still the caller's.
///
/// # Safety
///
/// `handler` may be called with `arg` on this thread. Nobody closes `listener` any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_register(
    listener: libc::c_int,
    handler: kapok_handler,
    arg: *mut c_void,
) -> libc::c_int {
    status(|| {
        let Some(handler) = handler else { return failed(libc::EINVAL) };
        if kapok::on_fiber() {
            return failed(libc::EBUSY);
        }
        if integer_option(listener, libc::SO_ACCEPTCONN)? == 0 {
            return failed(libc::EINVAL);
        }
        let domain = integer_option(listener, libc::SO_DOMAIN)?;
        if domain != libc::AF_INET && domain != libc::AF_INET6 {
            return failed(libc::EAFNOSUPPORT);
        }
        // What fails closes what it was given, which is a duplicate the first time.
        // SAFETY: an open descriptor, by the caller; the duplicate is new, and ours.
        let trial = unsafe { BorrowedFd::borrow_raw(listener) }.try_clone_to_owned()?;
        let nonblocking = Nonblocking::set(listener)?;
        drop(TcpListener::try_from(std::net::TcpListener::from(trial))?);
        nonblocking.stays();
        // SAFETY: an open descriptor, and by the caller ours from now on.
        let listener = unsafe { std::net::TcpListener::from_raw_fd(listener) };
        let listener = TcpListener::try_from(listener)?;
        WAITING.with_borrow_mut(|waiting| {
            waiting.listeners.push((listener, handler, Pointer(arg)));
        });
        Ok(())
    })
}

/// # Safety
///
/// As for [`kapok_loop`].
unsafe fn server_for(given: *const kapok_loop_options) -> io::Result<Server> {
    let first = offset_of!(kapok_loop_options, dump_on_signal) + size_of::<u32>();
    // SAFETY: by the caller; integers and pointers, for which zero is a value.
    let given = unsafe { options::read(given, first) }?;
    let mut builder = Runtime::builder();
    let mut sweep_interval = None;
    if let Some(options) = given {
        if !options.engine.is_null() {
            // SAFETY: by the caller.
            let name = unsafe { CStr::from_ptr(options.engine) }.to_string_lossy();
            if name != "auto" {
                let kind: Kind = name.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
                builder = builder.engine(kind);
            }
        }
        let given = |nanos: u64| (nanos > 0).then(|| Duration::from_nanos(nanos));
        if let Some(limit) = given(options.close_limit) {
            builder = builder.close_limit(limit);
        }
        if let Some(limit) = given(options.watchdog) {
            builder = builder.watchdog(limit);
        }
        builder = builder.dump_on_signal(options.dump_on_signal != 0);
        sweep_interval = given(options.sweep_interval);
    }
    let mut server = Server::new(builder.build()?);
    if let Some(interval) = sweep_interval {
        server.sweep_interval(interval);
    }
    Ok(server)
}

/// Runs the loop of this thread: what it was given by kapok_register() and kapok_spawn(), until
/// kapok_stop() is called or, without listeners, until the last fiber has ended. If counters is not
/// NULL it is filled in when the loop has ended.
///
/// It fails with EDEADLK on a fiber, EINVAL for options that are none, and with what the engine's making
/// says; then everything is left as it was.
///
/// # Safety
///
/// `options` is NULL or points to as many bytes as it says, with an engine that is NULL or a string;
/// `counters` likewise, and may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_loop(
    options: *const kapok_loop_options,
    counters: *mut kapok_loop_counters,
) -> libc::c_int {
    status(|| {
        if kapok::on_fiber() {
            return failed(libc::EDEADLK);
        }
        let first = offset_of!(kapok_loop_counters, sweeps) + size_of::<u64>();
        // Before anything is run: afterwards it would be too late to say no.
        // SAFETY: by the caller, here and below.
        unsafe { options::write(counters, &kapok_loop_counters::default(), first) }?;
        // SAFETY: as above.
        let server = unsafe { server_for(options) }?;
        let counted = foreign::run_server(server, |work| {
            let waiting = WAITING.take();
            for (listener, handler, arg) in waiting.listeners {
                work.register(listener, move |stream| serve(stream.as_raw_fd(), handler, arg));
            }
            for start in waiting.started {
                work.start(start);
            }
        })?;
        let counted = kapok_loop_counters {
            size: 0,
            accepted: counted.accepted,
            refused: counted.refused,
            failed: counted.failed,
            reaped: counted.reaped,
            lost_edges: counted.lost_edges,
            sweeps: counted.sweeps,
        };
        // SAFETY: as above.
        unsafe { options::write(counters, &counted, first) }
    })
}

fn serve(connection: RawFd, handler: Handler, arg: Pointer) -> io::Result<()> {
    let _serving = Serving::new(connection);
    // SAFETY: whoever registered it gave a function and the argument that it takes.
    match unsafe { handler(connection, arg.get()) } {
        0 => Ok(()),
        status => Err(io::Error::other(format!("the handler returned {status}"))),
    }
}

/// Ends the loop that calls it; called from a thread without one, every loop of the process. Its
/// listeners are closed, and fibers that are left are cancelled. What comes before a loop has begun is
/// lost.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_stop() {
    super::answer((), || {
        kapok::stop();
        Ok(())
    });
}
