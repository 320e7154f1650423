//! The kernel's list of its tracepoints: their numbers and where their fields lie.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The file system that describes tracepoints: where it is mounted or, for root, a mount of it that is
/// attached nowhere and so seen by nobody.
#[derive(Debug)]
pub(super) struct Tracefs(OwnedFd);

impl Tracefs {
    /// # Errors
    ///
    /// It is mounted nowhere, or may not be looked at, and cannot be mounted by us.
    pub(super) fn open() -> io::Result<Tracefs> {
        let mut refusal = None;
        for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            let mounted = fs::read_dir(format!("{root}/events"))
                .and_then(|_| fs::File::open(root))
                .map_err(|error| io::Error::new(error.kind(), format!("{root}: {error}")));
            match mounted {
                Ok(directory) => return Ok(Tracefs(directory.into())),
                // "Permission denied" says more than "not found" where the other mount is missing.
                Err(error)
                    if refusal.is_none() || error.kind() == io::ErrorKind::PermissionDenied =>
                {
                    refusal = Some(error);
                }
                Err(_) => {}
            }
        }
        detached()
            .map(Tracefs)
            .map_err(|_| refusal.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// The number of a tracepoint, such as `sched/sched_wakeup`; it differs from kernel to kernel.
    pub(super) fn id(&self, tracepoint: &str) -> io::Result<u64> {
        let file = format!("events/{tracepoint}/id");
        let text = self.read(&file)?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{file} holds no number")))
    }

    /// Where the fields of a tracepoint lie in its record.
    pub(super) fn fields(&self, tracepoint: &str) -> io::Result<Fields> {
        self.read(&format!("events/{tracepoint}/format"))
            .map(|text| Fields { tracepoint: tracepoint.to_owned(), text })
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let name = CString::new(path).map_err(io::Error::other)?;
        // SAFETY: the path is a C string that outlives the call.
        let fd = unsafe {
            libc::openat(self.0.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(error.kind(), format!("tracefs {path}: {error}")));
        }
        // SAFETY: the call has just given us this descriptor, and nobody else knows it.
        io::read_to_string(fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// The description of one tracepoint's record.
#[derive(Debug)]
pub(super) struct Fields {
    tracepoint: String,
    text: String,
}

impl Fields {
    /// The offset of `field`, which must be of `bytes`.
    pub(super) fn offset(&self, field: &str, bytes: usize) -> io::Result<i16> {
        self.text
            .lines()
            .find_map(|line| {
                let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
                let name = parts.next()?.rsplit([' ', '*']).next()?;
                let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
                let size: usize = parts.next()?.strip_prefix("size:")?.parse().ok()?;
                (name == field && size == bytes).then_some(offset)
            })
            .ok_or_else(|| {
                io::Error::other(format!(
                    "this kernel's {} has no field {field} of {bytes} bytes",
                    self.tracepoint
                ))
            })
    }
}

fn detached() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    let system = open_by(|| {
        let name: &CStr = c"tracefs";
        // SAFETY: the name is a C string that outlives the call.
        unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), 1 as libc::c_long) }
    })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            system.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0 as libc::c_long,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only numbers are passed.
    open_by(|| unsafe {
        libc::syscall(libc::SYS_fsmount, system.as_raw_fd(), 1 as libc::c_long, 0 as libc::c_long)
    })
}

fn open_by(call: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    match call() {
        fd if fd >= 0 => {
            // SAFETY: the call has just given us this descriptor, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_and_size() {
        let fields = Fields {
            tracepoint: "a/b".into(),
            text: "name: b\nformat:\n\
                   \tfield:void * req;\toffset:16;\tsize:8;\tsigned:0;\n\
                   \tfield:u8 opcode;\toffset:32;\tsize:1;\tsigned:0;\n\
                   \tfield:char comm[16];\toffset:8;\tsize:16;\tsigned:0;\n"
                .into(),
        };
        assert_eq!(fields.offset("req", 8).unwrap(), 16);
        assert_eq!(fields.offset("opcode", 1).unwrap(), 32);
        let refused = fields.offset("opcode", 4).unwrap_err().to_string();
        assert_eq!(refused, "this kernel's a/b has no field opcode of 4 bytes");
    }
}
