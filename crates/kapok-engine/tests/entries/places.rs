//! Where an entry is carried out: a ring, a readiness engine, a plain thread.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kapok_engine::entry::Entry;
use kapok_engine::uring::Uring;
use kapok_engine::{
    AnyEngine, Completion, Config, Engine as _, Key, Kind, Op, Submitted, Wait, sys,
};

/// How long to wait for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A submitter with its engine, or with none.
pub(crate) struct Place {
    /// What it is called in failures.
    pub(crate) name: &'static str,
    engine: Option<AnyEngine>,
    next: u32,
    /// Entries of keys that have not landed for the last time.
    lent: HashMap<Key, Box<Entry>>,
    landed: HashMap<Key, VecDeque<Completion>>,
}

impl Place {
    fn new(name: &'static str, engine: Option<AnyEngine>) -> Place {
        Place { name, engine, next: 0, lent: HashMap::new(), landed: HashMap::new() }
    }

    /// A ring, unless there is none to be had.
    pub(crate) fn ring() -> Option<Place> {
        Place::ring_with(&Config::default())
    }

    /// A ring that is made like this.
    pub(crate) fn ring_with(config: &Config) -> Option<Place> {
        match AnyEngine::new(Kind::Uring, config) {
            Ok(engine) => Some(Place::new("uring", Some(engine))),
            Err(error) => {
                assert!(
                    std::env::var_os("KAPOK_REQUIRE_URING").is_none_or(|value| value != "1"),
                    "KAPOK_REQUIRE_URING=1, and there is no ring: {error}"
                );
                say(&format!("SKIPPED on io_uring: {error}"));
                None
            }
        }
    }

    /// A readiness engine.
    pub(crate) fn readiness() -> Place {
        let engine = AnyEngine::new(Kind::Epoll, &Config::default()).expect("there is epoll");
        Place::new("epoll", Some(engine))
    }

    /// A plain thread.
    pub(crate) fn thread() -> Place {
        Place::new("thread", None)
    }

    /// All of them, the ring first if there is one.
    pub(crate) fn all() -> Vec<Place> {
        Place::ring().into_iter().chain([Place::readiness(), Place::thread()]).collect()
    }

    /// Those that have an engine.
    pub(crate) fn engines() -> Vec<Place> {
        Place::ring().into_iter().chain([Place::readiness()]).collect()
    }

    pub(crate) fn is_ring(&self) -> bool {
        matches!(self.engine, Some(AnyEngine::Uring(_)))
    }

    pub(crate) fn uring(&mut self) -> &mut Uring {
        match &mut self.engine {
            Some(AnyEngine::Uring(ring)) => ring,
            _ => panic!("{} is no ring", self.name),
        }
    }

    pub(crate) fn engine(&mut self) -> &mut AnyEngine {
        self.engine.as_mut().expect("a place with an engine")
    }

    /// Whether the operation of `entry` is to be had here. If not, it is checked that it is refused.
    pub(crate) fn has(&mut self, entry: &Entry) -> bool {
        if !self.is_ring() {
            return true;
        }
        let has = self.uring().operations().expect("the kernel says").has(entry.opcode());
        if !has {
            say(&format!("NOT IN THIS KERNEL: {}", entry.name()));
            assert_eq!(self.run(entry), -libc::EINVAL, "{}", entry.name());
        }
        has
    }

    pub(crate) fn next_key(&mut self) -> Key {
        self.next += 1;
        Key::new(self.next % 64, self.next)
    }

    /// Submits an entry. What it points to outlives its last landing, which the caller awaits.
    pub(crate) fn start(&mut self, entry: &Entry) -> Key {
        let key = self.next_key();
        let kept = Box::new(*entry);
        let op = Op::Entry { entry: &raw const *kept };
        let Some(engine) = &mut self.engine else {
            // SAFETY: the entry outlives the call, and so does what it points to.
            let res = unsafe { sys::perform(&op, true) };
            self.land(Completion { key, res, flags: 0 });
            return key;
        };
        self.lent.insert(key, kept);
        // SAFETY: the entry is kept until its key has landed; the rest is the caller's to keep, and
        // tests do.
        match unsafe { engine.submit(key, op) } {
            Submitted::Pending => {}
            Submitted::Done(res) => {
                self.lent.remove(&key);
                self.land(Completion { key, res, flags: 0 });
            }
            Submitted::DoneIn(..) => panic!("an entry has no buffer of the engine's own"),
        }
        key
    }

    /// Submits a chain on the ring, under these keys.
    pub(crate) fn start_chain(
        &mut self,
        entries: &[Entry],
        link: kapok_engine::uring::Link,
    ) -> std::io::Result<Vec<Key>> {
        let mut chain = Vec::new();
        for entry in entries {
            let key = self.next_key();
            let kept = Box::new(*entry);
            chain.push((key, &raw const *kept));
            self.lent.insert(key, kept);
        }
        // SAFETY: as in `start`.
        let submitted = unsafe { self.uring().submit_chain(&chain, link) };
        let keys: Vec<Key> = chain.into_iter().map(|(key, _)| key).collect();
        if submitted.is_err() {
            keys.iter().for_each(|key| drop(self.lent.remove(key)));
        }
        submitted.map(|()| keys)
    }

    /// Receives into one of the engine's own buffers.
    pub(crate) fn receive_pooled(&mut self, fd: i32) -> Completion {
        let key = self.next_key();
        self.lent.insert(key, Box::new(Entry::nop()));
        // SAFETY: it names no memory.
        let submitted = unsafe { self.engine().submit(key, Op::RecvPooled { fd }) };
        assert_eq!(submitted, Submitted::Pending);
        self.next(key)
    }

    fn land(&mut self, completion: Completion) {
        self.landed.entry(completion.key).or_default().push_back(completion);
    }

    /// One turn of the engine.
    pub(crate) fn turn(&mut self, wait: Wait) {
        let mut out = Vec::new();
        self.engine().turn(wait, &mut out).expect("the engine works");
        for completion in out {
            if !completion.key.is_message() {
                let kept = self.lent.contains_key(&completion.key);
                assert!(kept, "{}: {completion:?} is of no pending key", self.name);
                if completion.is_terminal() {
                    self.lent.remove(&completion.key);
                }
            }
            self.land(completion);
        }
    }

    /// What has landed of `key` so far and was not taken.
    pub(crate) fn taken(&mut self, key: Key) -> Option<Completion> {
        self.landed.get_mut(&key).and_then(VecDeque::pop_front)
    }

    /// The next landing of `key`.
    #[track_caller]
    pub(crate) fn next(&mut self, key: Key) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(completion) = self.taken(key) {
                return completion;
            }
            assert!(Instant::now() < deadline, "{}: {key:?} has not landed", self.name);
            self.turn(Wait::Until(deadline));
        }
    }

    /// The last landing of `key`, which is its next.
    #[track_caller]
    pub(crate) fn last(&mut self, key: Key) -> i32 {
        let completion = self.next(key);
        assert!(completion.is_terminal(), "{}: {completion:?} is not its last", self.name);
        assert!(
            self.landed.get(&key).is_none_or(VecDeque::is_empty),
            "{}: it landed on",
            self.name
        );
        completion.res
    }

    /// Carries an entry out that lands once.
    #[track_caller]
    pub(crate) fn run(&mut self, entry: &Entry) -> i32 {
        let key = self.start(entry);
        self.last(key)
    }

    /// The same for one that must succeed.
    #[track_caller]
    pub(crate) fn ok(&mut self, entry: &Entry) -> usize {
        let res = self.run(entry);
        let error = std::io::Error::from_raw_os_error(-res);
        assert!(res >= 0, "{} on {}: {error}", entry.name(), self.name);
        res as usize
    }

    /// The same for one that makes a descriptor.
    #[track_caller]
    pub(crate) fn descriptor(&mut self, entry: &Entry) -> OwnedFd {
        let fd = self.ok(entry) as i32;
        // SAFETY: just made, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    pub(crate) fn cancel(&mut self, key: Key) {
        self.engine().cancel(key);
    }

    /// How many keys are pending, which the engine says too.
    #[track_caller]
    pub(crate) fn settled(&mut self) {
        assert_eq!(self.lent.len(), 0, "{}: keys are pending", self.name);
        if let Some(engine) = &self.engine {
            assert_eq!(engine.in_flight(), 0, "{}", self.name);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the entries.
        self.engine = None;
    }
}

/// That `entry` is refused off io_uring, by engines and on a thread.
#[track_caller]
pub(crate) fn refused_elsewhere(entry: &Entry) {
    for mut place in [Place::readiness(), Place::thread()] {
        assert_eq!(place.run(entry), -libc::EOPNOTSUPP, "{} on {}", entry.name(), place.name);
    }
}

/// Says it where `cargo test` does not hide it.
pub(crate) fn say(what: &str) {
    let _ = std::io::stderr().write_all(format!("{what}\n").as_bytes());
}

/// A directory that is removed with all in it.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("the temporary directory can be written to");
        Directory(path)
    }

    /// A path in it, for system calls.
    pub(crate) fn path(&self, name: &str) -> CString {
        c_path(&self.0.join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths have no NUL")
}

/// Whether descriptor `fd` is close-on-exec.
pub(crate) fn is_close_on_exec(fd: i32) -> bool {
    // SAFETY: asks for flags.
    unsafe { libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
}

/// An iovec of these bytes, for reading or, if the operation does not write, of any.
pub(crate) fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// An iovec to be written to.
pub(crate) fn room(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// The header of a message of these parts, without name.
pub(crate) fn header(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeros is an empty header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len() as _;
    header
}

/// A child that ends when its standard input does, with 7.
pub(crate) fn child() -> Child {
    let script = "read line; exit 7";
    Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().expect("there is a shell")
}
