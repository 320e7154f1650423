//! Who has thread-locals that threads which are fibers share.

use std::ffi::{CStr, c_int, c_void};
use std::io::Write;
use std::sync::Once;

/// Says so, once, as the first thread becomes a fiber. What is loaded later is not seen.
pub(super) fn warn() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        let objects = objects();
        if !objects.is_empty() {
            let _ = writeln!(
                std::io::stderr(),
                "kapok: threads are fibers, which share these objects' thread-local variables: {}",
                objects.join(", ")
            );
        }
    });
}

/// Loaded objects with thread-locals (`PT_TLS`), but for the C library, whose errno is looked after, its
/// loader, and Kapok.
fn objects() -> Vec<String> {
    struct Found {
        objects: Vec<String>,
        ours: *const c_void,
    }
    unsafe extern "C" fn look(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes an object, with its headers, and what we have passed.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<Found>()) };
        // SAFETY: as above.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let has = |address: u64| {
            headers.iter().any(|header| {
                let begin = object.dlpi_addr.wrapping_add(header.p_vaddr);
                header.p_type == libc::PT_LOAD && (begin..begin + header.p_memsz).contains(&address)
            })
        };
        let has_locals =
            headers.iter().any(|header| header.p_type == libc::PT_TLS && header.p_memsz > 0);
        if !has_locals || has(found.ours.addr() as u64) {
            return 0;
        }
        // SAFETY: a string of the loader's.
        let name = unsafe { CStr::from_ptr(object.dlpi_name) }.to_string_lossy();
        let file = name.rsplit('/').next().unwrap_or_default();
        if !["libc.so", "ld-linux", "ld64.so", "libpthread.so"]
            .iter()
            .any(|known| file.starts_with(known))
        {
            let name = if name.is_empty() { "the program itself" } else { &name };
            found.objects.push(name.to_owned());
        }
        0
    }
    let mut found = Found { objects: Vec::new(), ours: warn as *const c_void };
    // SAFETY: the function takes what is passed with it, a local.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found.objects
}
