//! A note in the executable or library that this crate is linked into, by which `kapok doctor --libc`
//! tells Kapok's definitions from a program's own. Stripping leaves it where it is.

/// An ELF note (elf(5)) without a description.
#[repr(C, align(4))]
pub(crate) struct Note {
    name_bytes: u32,
    description_bytes: u32,
    kind: u32,
    name: [u8; 8],
}

/// Of the section that those who look for it know it by: its owner and its kind.
#[used]
#[unsafe(link_section = ".note.kapok")]
pub(crate) static NOTE: Note =
    Note { name_bytes: 6, description_bytes: 0, kind: 1, name: *b"Kapok\0\0\0" };
