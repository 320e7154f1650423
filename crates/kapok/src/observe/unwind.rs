//! Walks the frames of a copied stack, by the unwind information of the program as it is loaded.

use std::ops::{Deref, Range};
use std::sync::Arc;

use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};

use super::backtrace::MAX_FRAMES;

#[cfg(target_arch = "aarch64")]
use framehop::aarch64::{
    CacheAarch64 as Cache, UnwindRegsAarch64, UnwinderAarch64 as NativeUnwinder,
};
#[cfg(target_arch = "x86_64")]
use framehop::x86_64::{CacheX86_64 as Cache, UnwindRegsX86_64, UnwinderX86_64 as NativeUnwinder};

/// What a walk begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) fp: u64,
    /// Where there is one.
    pub(super) lr: u64,
}

/// The addresses of the calls on `stack`, a copy of what was at `registers.sp`, the innermost first:
/// where calls return to, and for the first the address after the one that was interrupted.
pub(super) fn frames(registers: Registers, stack: &[u8]) -> Vec<usize> {
    let mut unwinder: NativeUnwinder<Section> = NativeUnwinder::new();
    for module in modules() {
        unwinder.add_module(module);
    }
    let Registers { ip, sp, fp, lr } = registers;
    #[cfg(target_arch = "x86_64")]
    let native = {
        let _ = lr;
        UnwindRegsX86_64::new(ip, sp, fp)
    };
    #[cfg(target_arch = "aarch64")]
    let native = UnwindRegsAarch64::new(lr, sp, fp);
    let mut read_word = |address: u64| {
        let start = address.checked_sub(sp).and_then(|start| usize::try_from(start).ok());
        let word = start.and_then(|start| stack.get(start..start.checked_add(8)?));
        word.and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes).ok_or(())
    };
    let mut cache = Cache::<_>::new();
    let mut walk = unwinder.iter_frames(ip, native, &mut cache, &mut read_word);
    let mut frames = Vec::new();
    // Where the copy ends, or nothing is known of a function, so do the frames.
    while let Ok(Some(frame)) = walk.next() {
        frames.push(match frame {
            FrameAddress::InstructionPointer(address) => address as usize + 1,
            FrameAddress::ReturnAddress(address) => address.get() as usize,
        });
        if frames.len() == MAX_FRAMES {
            break;
        }
    }
    frames
}

/// A copy of a part of a loaded object, which may be unloaded at any time.
#[derive(Clone, Default)]
struct Section(Arc<[u8]>);

impl Deref for Section {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The program and its libraries, as far as they have an index of unwind information.
fn modules() -> Vec<Module<Section>> {
    unsafe extern "C" fn each(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        modules: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes an object that stays loaded while this runs, and what it
        // was given.
        let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Vec<Module<Section>>>()) };
        // SAFETY: as above.
        modules.extend(unsafe { module(info) });
        0
    }
    let mut modules = Vec::new();
    // SAFETY: `each` has the type of its argument, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut modules).cast()) };
    modules
}

/// # Safety
///
/// `info` is of an object that is loaded and stays so for the call.
unsafe fn module(info: &libc::dl_phdr_info) -> Option<Module<Section>> {
    // SAFETY: by the caller.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let loaded: Vec<Range<u64>> = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD)
        .map(|header| header.p_vaddr..header.p_vaddr + header.p_memsz)
        .collect();
    let index = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME)?;
    let segment = loaded.iter().find(|segment| segment.contains(&index.p_vaddr))?;
    let copy = |range: &Range<u64>| {
        let start =
            std::ptr::with_exposed_provenance::<u8>((info.dlpi_addr + range.start) as usize);
        // SAFETY: by the caller: a part of a loaded segment, which is readable where unwind
        // information is.
        Section(
            unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) }.into(),
        )
    };
    let index = index.p_vaddr..index.p_vaddr + index.p_memsz;
    let hdr = copy(&index);
    // The pointer to .eh_frame in the only encoding that linkers write: relative to itself, four
    // bytes, signed.
    const RELATIVE_I32: u8 = 0x1b;
    let offset = match hdr.get(..8)? {
        [1, RELATIVE_I32, _, _, offset @ ..] => i32::from_ne_bytes(offset.try_into().ok()?),
        _ => return None,
    };
    let start = (index.start + 4).checked_add_signed(offset.into())?;
    // Its length is nowhere; it ends by itself before its segment does.
    let eh_frame = segment.contains(&start).then_some(start..segment.end)?;
    let span = loaded.iter().map(|one| one.start).min()?..loaded.iter().map(|one| one.end).max()?;
    Some(Module::new(
        String::new(),
        info.dlpi_addr + span.start..info.dlpi_addr + span.end,
        info.dlpi_addr,
        ExplicitModuleSectionInfo {
            base_svma: 0,
            eh_frame: Some(copy(&eh_frame)),
            eh_frame_svma: Some(eh_frame),
            eh_frame_hdr: Some(hdr),
            eh_frame_hdr_svma: Some(index),
            ..ExplicitModuleSectionInfo::default()
        },
    ))
}
