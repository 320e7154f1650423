//! System calls without the C library: no errno, no cancellation point, and no function of a name that
//! somebody may have come before.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;

/// Makes a system call: its result, or `-errno`.
///
/// # Safety
///
/// What the call named by `number` asks of its arguments.
#[inline]
pub unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let res: isize;
    // SAFETY: the kernel's convention: it clobbers nothing but what is named, and writes only where
    // the arguments say, which is the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => res,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            in("x8") number as isize,
            inlateout("x0") a as isize => res,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    // By the C library, where nobody comes before it.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let saved = super::errno();
        // SAFETY: by the caller.
        let done = unsafe { libc::syscall(number, a, b, c, d, e, f) } as isize;
        res = if done == -1 { -(super::errno() as isize) } else { done };
        super::set_errno(saved);
    }
    res
}
