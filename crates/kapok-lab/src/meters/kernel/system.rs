//! bpf(2): maps, programs, and hanging programs on tracepoints.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROGRAM_LOAD: libc::c_long = 5;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapKind {
    /// By key.
    Hash = 1,
    /// By number.
    Array = 2,
    /// By number, a value for each processor.
    PerProcessorArray = 6,
    /// By key; what was not used for long makes room.
    RecentHash = 9,
}

/// What a program is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramKind {
    /// A tracepoint's record.
    Tracepoint = 5,
    /// A tracepoint's arguments.
    RawTracepoint = 17,
}

/// Memory that programs in the kernel and this process share. `K` and `V` are plain data without
/// padding.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    values: usize,
    of: std::marker::PhantomData<(K, V)>,
}

/// `union bpf_attr` for maps that are made.
#[repr(C)]
struct Create {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// `union bpf_attr` for entries of maps.
#[repr(C)]
struct Entry {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for programs, as far as it is needed.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for raw tracepoints.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    padding: u32,
}

fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<libc::c_long> {
    let attributes = (attributes as *mut A).cast::<libc::c_void>();
    // SAFETY: the kernel reads `size_of::<A>()` bytes of the attributes; what they point to is of the
    // size that they, the map or the program say, which the callers below see to.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>() as libc::c_long)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the caller has just got this descriptor from the kernel, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

impl<K: Copy, V: Copy> Map<K, V> {
    pub(super) fn new(kind: MapKind, entries: u32) -> io::Result<Map<K, V>> {
        let mut create = Create {
            kind: kind as u32,
            key_bytes: size_of::<K>() as u32,
            value_bytes: size_of::<V>() as u32,
            entries,
            flags: 0,
        };
        let fd = descriptor(bpf(MAP_CREATE, &mut create)?);
        let values = if kind == MapKind::PerProcessorArray { possible_processors()? } else { 1 };
        Ok(Map { fd, values, of: std::marker::PhantomData })
    }

    pub(super) fn set(&self, key: K, value: V) -> io::Result<()> {
        assert_eq!(self.values, 1, "only programs write a value for each processor");
        let mut entry = self.entry(&raw const key as u64, &raw const value as u64);
        bpf(MAP_UPDATE, &mut entry).map(drop)
    }

    /// The values of `key`: one for each processor, or the one.
    pub(super) fn get(&self, key: K) -> io::Result<Vec<V>> {
        assert!(
            self.values == 1 || size_of::<V>().is_multiple_of(8),
            "the kernel rounds them up to that"
        );
        // SAFETY: `V` is plain data of integers, for which zero is a value.
        let mut values: Vec<V> = vec![unsafe { zeroed() }; self.values];
        let mut entry = self.entry(&raw const key as u64, values.as_mut_ptr() as u64);
        bpf(MAP_LOOKUP, &mut entry)?;
        Ok(values)
    }

    fn entry(&self, key: u64, value: u64) -> Entry {
        Entry { map: self.fd.as_raw_fd() as u32, padding: 0, key, value, flags: 0 }
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How many values a map of one for each processor has.
fn possible_processors() -> io::Result<usize> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    // The last number, in 0 or 0-7 or 0,2-3.
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other(format!("{path} holds no range")))
}

/// Has the kernel check a program and take it.
pub(super) fn load(kind: ProgramKind, code: &[u64]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Dual MIT/GPL";
    let mut load = Load {
        kind: kind as u32,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    match bpf(PROGRAM_LOAD, &mut load) {
        Ok(fd) => Ok(descriptor(fd)),
        // What the kernel may do to nobody's program: no word of it would help.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !was_checked(code) => {
            Err(error)
        }
        Err(error) => {
            let mut log = vec![0_u8; 65_536];
            load.log_level = 1;
            load.log_bytes = size_of_val(&log[..]) as u32;
            load.log = log.as_mut_ptr() as u64;
            if bpf(PROGRAM_LOAD, &mut load).map(descriptor).is_ok() {
                return Err(error);
            }
            let text = String::from_utf8_lossy(&log);
            let text = text.trim_end_matches(['\0', '\n']);
            let last = text.rsplit('\n').find(|line| !line.starts_with("processed")).unwrap_or("");
            Err(io::Error::new(error.kind(), format!("{error} {last}").trim().to_owned()))
        }
    }
}

/// Whether a program may be loaded at all; then a refusal was about what is in it.
fn was_checked(code: &[u64]) -> bool {
    const NOTHING: [u64; 2] = [0xb7, 0x95];
    code != NOTHING && load(ProgramKind::RawTracepoint, &NOTHING).is_ok()
}

/// Hangs a program on a tracepoint of the kernel's, by name. It hangs there until this is dropped.
pub(super) fn attach_raw(name: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut open =
        Open { name: name.as_ptr() as u64, program: program.as_raw_fd() as u32, padding: 0 };
    bpf(RAW_TRACEPOINT_OPEN, &mut open).map(descriptor)
}

/// Hangs a program on the tracepoint that a perf counter counts. It hangs there until the counter is
/// dropped.
pub(super) fn attach(counter: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const SET_BPF: libc::c_ulong = 0x4004_2408;
    const ENABLE: libc::c_ulong = 0x2400;
    let number = |request, argument: libc::c_int| {
        // SAFETY: both requests take a number.
        if unsafe { libc::ioctl(counter.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    number(SET_BPF, program.as_raw_fd())?;
    number(ENABLE, 0)
}
