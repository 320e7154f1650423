//! Programs for the kernel's virtual machine (BPF), written down instruction by instruction: the few
//! that are needed are short, and a compiler for them would be asked of everybody who builds Kapok.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register. `R0` has results, `R1` to `R5` arguments, which calls destroy; `R6` to `R9` are kept
/// over calls; `FRAME` is the read-only end of the stack of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(u8);

pub(super) const R0: Register = Register(0);
pub(super) const R1: Register = Register(1);
pub(super) const R2: Register = Register(2);
pub(super) const R3: Register = Register(3);
pub(super) const R4: Register = Register(4);
pub(super) const R6: Register = Register(6);
pub(super) const R7: Register = Register(7);
pub(super) const R8: Register = Register(8);
pub(super) const FRAME: Register = Register(10);

/// How much is loaded or stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    Byte = 0x10,
    Word = 0x00,
    Double = 0x18,
}

/// A condition on a register and a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Equal = 0x10,
    NotEqual = 0x50,
    SignedAtLeast = 0x70,
    AtMost = 0xb0,
}

/// What the kernel offers to programs (bpf-helpers(7)).
#[derive(Clone, Copy, Debug)]
pub(super) enum Helper {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    Nanoseconds = 5,
    CurrentProcess = 14,
    ReadKernel = 113,
}

/// A place to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<u64>,
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, opcode: u8, to: Register, from: Register, offset: i16, number: i32) {
        let registers = u64::from(from.0) << 4 | u64::from(to.0);
        self.code.push(
            u64::from(opcode)
                | registers << 8
                | u64::from(offset as u16) << 16
                | u64::from(number as u32) << 32,
        );
    }

    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.emit(0xbf, to, from, 0, 0);
    }

    pub(super) fn set(&mut self, to: Register, number: i32) {
        self.emit(0xb7, to, R0, 0, number);
    }

    pub(super) fn add(&mut self, to: Register, number: i32) {
        self.emit(0x07, to, R0, 0, number);
    }

    pub(super) fn subtract(&mut self, to: Register, from: Register) {
        self.emit(0x1f, to, from, 0, 0);
    }

    /// Multiplies the lower halves, and leaves the lower half of that.
    pub(super) fn multiply_half(&mut self, to: Register, number: u32) {
        self.emit(0x24, to, R0, 0, number as i32);
    }

    pub(super) fn shift_right(&mut self, of: Register, bits: i32) {
        self.emit(0x77, of, R0, 0, bits);
    }

    /// Leaves the upper half of a register in its lower.
    pub(super) fn upper_half(&mut self, of: Register) {
        self.shift_right(of, 32);
    }

    /// Extends a signed number of 32 bits to 64.
    pub(super) fn extend_sign(&mut self, of: Register) {
        self.emit(0x67, of, R0, 0, 32);
        self.emit(0xc7, of, R0, 0, 32);
    }

    pub(super) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.emit(0x61 | width as u8, to, from, offset, 0);
    }

    pub(super) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.emit(0x63 | width as u8, to, from, offset, 0);
    }

    /// Adds to 64 bits in memory, atomically: a program may be preempted.
    pub(super) fn count(&mut self, to: Register, offset: i16, from: Register) {
        self.emit(0xdb, to, from, offset, 0);
    }

    pub(super) fn call(&mut self, helper: Helper) {
        self.emit(0x85, R0, R0, 0, helper as i32);
    }

    /// Asks for the entry of `map` whose key is at `key` on the stack; `R0` is its value or zero.
    pub(super) fn lookup(&mut self, map: BorrowedFd<'_>, key: i16) {
        self.map_and_key(map, key);
        self.call(Helper::Lookup);
    }

    /// `R1` and `R2` as the helpers for maps want them.
    pub(super) fn map_and_key(&mut self, map: BorrowedFd<'_>, key: i16) {
        const MAP: Register = Register(1);
        self.emit(0x18, R1, MAP, 0, map.as_raw_fd());
        self.code.push(0);
        self.copy(R2, FRAME);
        self.add(R2, i32::from(key));
    }

    /// Makes the entry of `map` whose key is at `key` on the stack what is at `value` on the stack.
    pub(super) fn update(&mut self, map: BorrowedFd<'_>, key: i16, value: i16) {
        self.map_and_key(map, key);
        self.copy(R3, FRAME);
        self.add(R3, i32::from(value));
        self.set(R4, 0);
        self.call(Helper::Update);
    }

    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    pub(super) fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    pub(super) fn jump_if(&mut self, what: Register, when: When, number: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(0x05 | when as u8, what, R0, 0, number);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(0x05, R0, R0, 0, 0);
    }

    /// Ends the program, and gives its instructions.
    ///
    /// # Panics
    ///
    /// A label was jumped to and never placed.
    pub(super) fn finish(mut self, end: Label) -> Vec<u64> {
        self.place(end);
        // With 0, perf counters on the same tracepoint would not see what passes.
        self.set(R0, 1);
        self.emit(0x95, R0, R0, 0, 0);
        for (from, label) in self.jumps {
            let to = self.places[label.0].expect("every label is placed");
            let distance = to as i64 - from as i64 - 1;
            self.code[from] |= u64::from(distance as i16 as u16) << 16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_kernel_documents_them() {
        let mut program = Assembler::default();
        let end = program.label();
        program.copy(R6, R1);
        program.load(Width::Double, R7, R6, 8);
        program.store(Width::Word, FRAME, -4, R7);
        program.jump_if(R7, When::Equal, -11, end);
        program.count(R0, 16, R1);
        assert_eq!(
            program.finish(end),
            [
                0x0000_0000_0000_16bf, // r6 = r1
                0x0000_0000_0008_6779, // r7 = *(u64 *)(r6 + 8)
                0x0000_0000_fffc_7a63, // *(u32 *)(r10 - 4) = r7
                0xffff_fff5_0001_0715, // if r7 == -11 goto +1
                0x0000_0000_0010_10db, // lock *(u64 *)(r0 + 16) += r1
                0x0000_0001_0000_00b7, // r0 = 1
                0x0000_0000_0000_0095, // exit
            ]
        );
    }
}
