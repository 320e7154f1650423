//! Which function of the C library a thread is in, by the names that the library exports, and by its
//! symbols where a function has tail-called another of its own.
//!
//! A backtrace shows what the library calls inside, and of a stripped one not even that. What says why a
//! fiber blocks is the function that was called: fgets(3) and not the read behind it.

use super::backtrace::Symbols;

/// The function of the C library in which the innermost of these return addresses are, that is the
/// outermost of those in a row; the outermost that has a name. None: the innermost is elsewhere.
#[cfg(target_os = "linux")]
pub(super) fn called(frames: &[usize], symbols: &mut Symbols) -> Option<String> {
    // A function of it that everybody has.
    let library = object(libc::getpid as *const () as usize)?.0;
    let own = frames.iter().map_while(|&address| {
        let (start, name) = object(address - 1)?;
        (start == library).then_some((address, name))
    });
    let own: Vec<_> = own.collect();
    let named = own
        .into_iter()
        .rev()
        .find_map(|(address, exported)| exported.or_else(|| symbols.outermost_name(address)))?;
    Some(named.trim_start_matches('_').to_owned())
}

/// Where the object begins that an address is in, and the exported function before the address.
#[cfg(target_os = "linux")]
fn object(address: usize) -> Option<(usize, Option<String>)> {
    // SAFETY: plain data, for which zero is a value; it is written before it is read.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        let known = libc::dladdr(std::ptr::without_provenance(address), &raw mut found) != 0;
        let name = |at: *const std::ffi::c_char| {
            (!at.is_null()).then(|| std::ffi::CStr::from_ptr(at).to_string_lossy().into_owned())
        };
        known.then(|| (found.dli_fbase.addr(), name(found.dli_sname)))
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn called(_: &[usize], _: &mut Symbols) -> Option<String> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn names_the_outermost_function_in_a_row() {
        let [getpid, fgets, ours] = [
            libc::getpid as *const () as usize,
            libc::fgets as *const () as usize,
            called as *const () as usize,
        ];
        let mut symbols = Symbols::default();
        let mut in_order = |frames: &[usize]| {
            called(&frames.iter().map(|at| at + 1).collect::<Vec<_>>(), &mut symbols)
        };
        // The C library may have another name for the same function.
        let named =
            |found: Option<String>, name: &str| found.is_some_and(|found| found.contains(name));
        assert!(named(in_order(&[getpid]), "getpid"));
        assert!(named(in_order(&[getpid, fgets, ours]), "fgets"));
        assert!(named(in_order(&[getpid, ours, fgets]), "getpid"));
        assert_eq!(in_order(&[ours, fgets]), None);
    }
}
