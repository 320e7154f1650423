//! What is known of an ELF file without running it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::read::{Object, ObjectSection, ReadCache, ReadRef};

/// The kind of the note that the crate `kapok-libc` leaves.
const NOTE: u32 = 1;

/// An ELF file of 64 bits.
#[derive(Debug)]
pub(crate) struct Image {
    /// The loader it asks for (`PT_INTERP`). Without it nothing can be preloaded.
    pub(crate) loader: Option<PathBuf>,
    /// Functions that it takes from others.
    pub(crate) imports: BTreeSet<String>,
    /// Functions that it has for others.
    pub(crate) exports: BTreeSet<String>,
    /// It looks its own names up in itself first (`DT_SYMBOLIC`, `DF_SYMBOLIC`).
    pub(crate) symbolic: bool,
    /// It has thread-local variables of its own (`PT_TLS`).
    pub(crate) thread_locals: bool,
    /// Kapok's definitions are in it: it links the crate `kapok-libc`, which leaves a note.
    pub(crate) kapok: bool,
    /// Made by Go's toolchain.
    pub(crate) go: bool,
    machine: u16,
}

/// Why a file is not an [`Image`].
#[derive(Debug)]
pub(crate) enum NoImage {
    /// It could not be read.
    Unreadable(io::Error),
    /// It is something else, a script perhaps.
    NotElf,
    /// It is of 32 bits.
    Narrow,
    /// It is damaged.
    Broken(object::Error),
}

impl std::fmt::Display for NoImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoImage::Unreadable(error) => write!(f, "it cannot be read: {error}"),
            NoImage::NotElf => f.write_str("it is no ELF file"),
            NoImage::Narrow => f.write_str("it is a program of 32 bits, and the library has 64"),
            NoImage::Broken(error) => write!(f, "it is damaged: {error}"),
        }
    }
}

impl Image {
    pub(crate) fn read(path: &Path) -> Result<Image, NoImage> {
        // Reads what is looked at: programs may be large.
        let cache = ReadCache::new(File::open(path).map_err(NoImage::Unreadable)?);
        let mut ident = [0; 5];
        match ReadRef::read_bytes_at(&cache, 0, ident.len() as u64) {
            Ok(bytes) => ident.copy_from_slice(bytes),
            Err(()) => return Err(NoImage::NotElf),
        }
        if ident[..4] != elf::ELFMAG {
            return Err(NoImage::NotElf);
        }
        if ident[4] != elf::ELFCLASS64 {
            return Err(NoImage::Narrow);
        }
        Image::parse(&cache).map_err(NoImage::Broken)
    }

    fn parse<'data, R: ReadRef<'data>>(data: R) -> object::Result<Image> {
        let file = ElfFile64::<object::Endianness, R>::parse(data)?;
        let endian = file.endian();
        let mut image = Image {
            loader: None,
            imports: BTreeSet::new(),
            exports: BTreeSet::new(),
            symbolic: false,
            thread_locals: false,
            kapok: false,
            go: false,
            machine: file.elf_header().e_machine(endian),
        };
        for segment in file.elf_program_headers() {
            image.thread_locals |=
                segment.p_type(endian) == elf::PT_TLS && segment.p_memsz(endian) > 0;
            if let Some(loader) = segment.interpreter(endian, data)? {
                image.loader = Some(PathBuf::from(text(loader)));
            }
            if let Some(mut notes) = segment.notes(endian, data)? {
                while let Some(note) = notes.next()? {
                    image.kapok |= note.name() == b"Kapok" && note.n_type(endian) == NOTE;
                }
            }
            for entry in segment.dynamic(endian, data)?.unwrap_or_default() {
                let value: u64 = entry.d_val(endian);
                match entry.tag32(endian) {
                    Some(elf::DT_SYMBOLIC) => image.symbolic = true,
                    Some(elf::DT_FLAGS) => {
                        image.symbolic |= value & u64::from(elf::DF_SYMBOLIC) != 0;
                    }
                    _ => {}
                }
            }
        }
        image.imports = file.imports()?.iter().map(|import| text(import.name())).collect();
        image.exports = file.exports()?.iter().map(|export| text(export.name())).collect();
        image.go = file.sections().any(|section| {
            section.name().is_ok_and(|name| name == ".go.buildinfo" || name == ".note.go.buildid")
        });
        Ok(image)
    }

    /// Whether it is for the machine that this program is for.
    pub(crate) fn is_for_this_machine(&self) -> bool {
        let ours = match std::env::consts::ARCH {
            "x86_64" => elf::EM_X86_64,
            "aarch64" => elf::EM_AARCH64,
            _ => return true,
        };
        self.machine == ours
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
