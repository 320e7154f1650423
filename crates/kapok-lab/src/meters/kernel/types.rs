//! Where fields of the kernel's structures lie, as it says itself: its types in the BPF Type Format
//! (Documentation/bpf/btf.rst).

use std::fs;
use std::io;

/// Where a kernel that was built with `CONFIG_DEBUG_INFO_BTF` has them.
const KERNELS: &str = "/sys/kernel/btf/vmlinux";

/// So many names and qualifiers one type has at most.
const MOST_NAMES: usize = 64;

/// `BTF_KIND_…`: what a type is.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The types of the running kernel.
#[derive(Debug)]
pub(super) struct Types {
    bytes: Vec<u8>,
    strings: usize,
    /// Where the type of each number begins; that of 0 is `void`.
    places: Vec<usize>,
}

/// One type, as far as all are alike.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    kind: u32,
    /// How many members, parameters and so on follow.
    parts: usize,
    /// In structures, members' places are in 24 bits; else in 32.
    has_bit_fields: bool,
    /// Its size in bytes, or the number of another type.
    of: u32,
    /// Where what follows begins.
    after: usize,
}

impl Types {
    /// # Errors
    ///
    /// The kernel has none, or they are of a form that is not known.
    pub(super) fn of_the_kernel() -> io::Result<Types> {
        let bytes = fs::read(KERNELS)
            .map_err(|error| io::Error::new(error.kind(), format!("{KERNELS}: {error}")))?;
        Types::read(bytes).ok_or_else(|| unknown("they are"))
    }

    fn read(bytes: Vec<u8>) -> Option<Types> {
        const MAGIC: u32 = 0xeb9f;
        let word = |at| word(&bytes, at);
        let (magic, header) = (word(0)? & 0xffff, word(4)? as usize);
        let (first, length) = (header + word(8)? as usize, word(12)? as usize);
        let strings = header + word(16)? as usize;
        if magic != MAGIC {
            return None;
        }
        let mut types = Types { bytes, strings, places: vec![0] };
        let (mut at, end) = (first, first.checked_add(length)?);
        while at < end {
            types.places.push(at);
            let one = types.at(at)?;
            at = one.after + one.parts_bytes()?;
        }
        Some(types)
    }

    fn at(&self, place: usize) -> Option<Type> {
        let info = word(&self.bytes, place + 4)?;
        Some(Type {
            name: word(&self.bytes, place)?,
            kind: info >> 24 & 0x1f,
            parts: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 == 1,
            of: word(&self.bytes, place + 8)?,
            after: place + 12,
        })
    }

    fn number(&self, number: u32) -> Option<Type> {
        let place = *self.places.get(number as usize)?;
        if number == 0 { None } else { self.at(place) }
    }

    fn name(&self, offset: u32) -> &[u8] {
        let from = self.bytes.get(self.strings + offset as usize..).unwrap_or_default();
        from.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn named(&self, name: &str, kind: u32) -> Option<Type> {
        let all = self.places.iter().skip(1).filter_map(|&place| self.at(place));
        all.into_iter().find(|one| one.kind == kind && self.name(one.name) == name.as_bytes())
    }

    /// What a type is by another name, or with a qualifier. `None` if that goes in circles.
    fn plain(&self, number: u32) -> Option<Type> {
        let mut one = self.number(number)?;
        for _ in 0..MOST_NAMES {
            match one.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    one = self.number(one.of)?;
                }
                _ => return Some(one),
            }
        }
        None
    }

    /// Whether the programs on a tracepoint are handed a pointer to this structure and nothing else.
    pub(super) fn hands_over(&self, tracepoint: &str, structure: &str) -> bool {
        let is_so = || {
            let pointer = self.named(&format!("btf_trace_{tracepoint}"), kind::TYPEDEF)?;
            let function = self.plain(self.plain(pointer.of)?.of)?;
            // The first parameter is the kernel's own.
            let argument = self.plain(word(&self.bytes, function.after + 12)?)?;
            let handed = self.plain(argument.of)?;
            Some(
                function.kind == kind::FUNC_PROTO
                    && function.parts == 2
                    && argument.kind == kind::PTR
                    && handed.kind == kind::STRUCT
                    && self.name(handed.name) == structure.as_bytes(),
            )
        };
        is_so().unwrap_or(false)
    }

    /// The offset of `field` in `structure`, an integer which must be of `bytes`.
    pub(super) fn offset(&self, structure: &str, field: &str, bytes: u32) -> io::Result<i32> {
        let found = || {
            let whole = self.named(structure, kind::STRUCT)?;
            let places = (0..whole.parts).map(|part| whole.after + part * 12);
            let place = places.into_iter().find(|&place| {
                word(&self.bytes, place).is_some_and(|name| self.name(name) == field.as_bytes())
            })?;
            let integer = self.plain(word(&self.bytes, place + 4)?)?;
            let bits = word(&self.bytes, place + 8)?;
            // With bit fields, the upper eight bits are how many a field has: none if it is not one.
            let at = bits;
            let is_whole = !whole.has_bit_fields || bits >> 24 == 0;
            (integer.kind == kind::INT && integer.of == bytes && is_whole && at.is_multiple_of(8))
                .then_some((at / 8) as i32)
        };
        found().ok_or_else(|| unknown(&format!("{structure} with a {field} of {bytes} bytes is")))
    }
}

impl Type {
    /// How much follows it: members, parameters and so on.
    fn parts_bytes(self) -> Option<usize> {
        Some(match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.parts,
            kind::ENUM | kind::FUNC_PROTO => 8 * self.parts,
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
            kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

fn unknown(what: &str) -> io::Error {
    io::Error::other(format!("{KERNELS}: {what} not of a form that is known here"))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types as a compiler would write them: numbers are given to them in turn, from 1.
    #[derive(Default)]
    struct Written {
        types: Vec<u32>,
        strings: Vec<u8>,
    }

    impl Written {
        fn name(&mut self, name: &str) -> u32 {
            self.strings.push(0);
            self.strings.extend(name.bytes());
            (self.strings.len() - name.len()) as u32
        }

        fn add(&mut self, name: &str, kind: u32, parts: u32, of: u32, after: &[u32]) {
            let name = self.name(name);
            self.types.extend([name, kind << 24 | parts, of]);
            self.types.extend(after);
        }

        fn bytes(mut self) -> Vec<u8> {
            self.strings.push(0);
            let length = self.types.len() as u32 * 4;
            let header = [0x0001_eb9f, 24, 0, length, length, self.strings.len() as u32];
            let words = header.iter().chain(&self.types).flat_map(|word| word.to_ne_bytes());
            words.chain(self.strings).collect()
        }
    }

    fn small() -> Vec<u8> {
        let mut written = Written::default();
        written.add("unsigned char", kind::INT, 0, 1, &[8]);
        written.add("u8", kind::TYPEDEF, 0, 1, &[]);
        written.add("", kind::ARRAY, 0, 0, &[1, 1, 7]);
        let (data, opcode, half) =
            (written.name("data"), written.name("opcode"), written.name("half"));
        let members = [data, 3, 0, opcode, 2, 56, half, 2, 60];
        written.add("io_kiocb", kind::STRUCT, 3, 8, &members);
        written.add("", kind::PTR, 0, 4, &[]);
        written.add("", kind::FUNC_PROTO, 2, 0, &[0, 0, 0, 5]);
        written.add("", kind::PTR, 0, 6, &[]);
        written.add("btf_trace_new", kind::TYPEDEF, 0, 7, &[]);
        written.add("", kind::FUNC_PROTO, 3, 0, &[0, 0, 0, 5, 0, 5]);
        written.add("", kind::PTR, 0, 9, &[]);
        written.add("btf_trace_old", kind::TYPEDEF, 0, 10, &[]);
        written.add("btf_trace_round", kind::TYPEDEF, 0, 13, &[]);
        written.add("", kind::CONST, 0, 12, &[]);
        written.bytes()
    }

    #[test]
    fn fields_are_found_by_name_and_size() {
        let types = Types::read(small()).unwrap();
        assert_eq!(types.offset("io_kiocb", "opcode", 1).unwrap(), 7);
        for (structure, field, bytes) in [
            ("io_kiocb", "opcode", 2),
            ("io_kiocb", "data", 7),
            ("io_kiocb", "half", 1),
            ("u8", "opcode", 1),
        ] {
            let refused = types.offset(structure, field, bytes).unwrap_err().to_string();
            assert!(
                refused.contains(&format!("{structure} with a {field} of {bytes}")),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_tracepoint_hands_over_what_it_says() {
        let types = Types::read(small()).unwrap();
        assert!(types.hands_over("new", "io_kiocb"));
        assert!(!types.hands_over("new", "u8"));
        assert!(!types.hands_over("old", "io_kiocb"), "it has one argument more");
        assert!(!types.hands_over("none", "io_kiocb"));
        assert!(!types.hands_over("round", "io_kiocb"), "its names go in circles");
    }

    /// Wherever it ends: some types less are known, and nothing else happens.
    #[test]
    fn what_is_cut_off_is_refused_or_holds_less() {
        let whole = small();
        for length in 0..whole.len() {
            if let Some(types) = Types::read(whole[..length].to_vec()) {
                let _ =
                    (types.offset("io_kiocb", "opcode", 1), types.hands_over("new", "io_kiocb"));
            }
        }
        let mut other = whole;
        other[0] ^= 1;
        assert!(Types::read(other).is_none());
    }
}
