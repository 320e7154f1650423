//! Telling Valgrind where stacks are.
//!
//! Valgrind takes a large jump of the stack pointer for a switch of stacks, and a small one for a
//! frame that grows or goes. Neighbouring fiber stacks are near enough to be mistaken, and then what
//! lies between is taken for undefined. A client request (`valgrind.h`) names a stack: a sequence of
//! instructions that does nothing on a processor and that Valgrind knows.

/// `VG_USERREQ__STACK_REGISTER`.
const STACK_REGISTER: usize = 0x1501;

/// Says that these addresses are a stack. Never taken back: slots are never unmapped.
pub(super) fn register(range: std::ops::Range<usize>) {
    // Lowest and highest byte.
    request([STACK_REGISTER, range.start, range.end - 1, 0, 0, 0]);
}

/// A request with its arguments. The answer is 0 outside of Valgrind.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn request(arguments: [usize; 6]) -> usize {
    let mut answer = 0;
    // SAFETY: outside of Valgrind the rotations add up to whole turns, and exchanging a register with
    // itself does nothing; inside, it reads the arguments and writes the answer.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inlateout("rdx") answer,
            options(nostack),
        );
    }
    answer
}

/// A request with its arguments. The answer is 0 outside of Valgrind.
#[cfg(all(target_arch = "aarch64", not(miri)))]
fn request(arguments: [usize; 6]) -> usize {
    let mut answer = 0;
    // SAFETY: as for x86-64.
    unsafe {
        std::arch::asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            in("x4") arguments.as_ptr(),
            inlateout("x3") answer,
            options(nostack),
        );
    }
    answer
}

/// Valgrind is not asked here.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn request(_arguments: [usize; 6]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_valgrind_a_request_does_nothing() {
        // `VG_USERREQ__RUNNING_ON_VALGRIND`.
        assert_eq!(request([0x1001, 0, 0, 0, 0, 0]), 0);
        register(0x1000..0x2000);
    }
}
