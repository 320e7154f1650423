use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use kapok_engine::entry::Entry;

use crate::places::{Place, refused_elsewhere, say};

const GROUP: u16 = 5;
const EACH: usize = 16;

#[test]
fn provided_and_removed() {
    let mut memory = vec![b'-'; 4 * EACH];
    let provide = |memory: &mut [u8], first| {
        let count = (memory.len() / EACH) as u16;
        Entry::provide_buffers(memory.as_mut_ptr(), EACH as u32, count, GROUP, first)
    };
    refused_elsewhere(&provide(&mut memory, 0));
    refused_elsewhere(&Entry::remove_buffers(1, GROUP));
    let Some(mut place) = Place::ring() else { return };
    let (near, mut far) = UnixStream::pair().unwrap();
    assert_eq!(place.ok(&provide(&mut memory, 10)), 0);
    let receive =
        Entry::recv(near.as_raw_fd(), std::ptr::null_mut(), EACH, 0).with_buffer_group(GROUP);
    for (at, word) in ["one", "two"].iter().enumerate() {
        far.write_all(word.as_bytes()).unwrap();
        let key = place.start(&receive);
        let landed = place.next(key);
        assert_eq!((landed.res, landed.is_terminal()), (word.len() as i32, true));
        let id = landed.buffer().expect("it names its buffer");
        assert!((10..14).contains(&id), "buffer {id} of lap {at}");
        let start = usize::from(id - 10) * EACH;
        assert_eq!(&memory[start..start + word.len()], word.as_bytes());
    }
    // Two are the kernel's still.
    assert_eq!(place.ok(&Entry::remove_buffers(9, GROUP)), 2);
    far.write_all(b"x").unwrap();
    assert_eq!(place.run(&receive), -libc::ENOBUFS);
    place.settled();
}

#[test]
fn bundles() {
    const BYTES: usize = 4;
    let (near, mut far) = UnixStream::pair().unwrap();
    let send = Entry::send_bundle(near.as_raw_fd(), 0, 0);
    refused_elsewhere(&send);
    refused_elsewhere(&send.with_buffer_group(GROUP));
    let Some(mut place) = Place::ring() else { return };
    let buffers = place.uring().add_buffers(GROUP, BYTES as u32).unwrap();
    for id in 0..128 {
        // SAFETY: the kernel reads them when something is sent, and nobody else has them.
        unsafe { buffers.start(id).as_ptr().write_bytes(id as u8, BYTES) };
    }
    let key = place.start(&send.with_buffer_group(GROUP));
    let landed = place.next(key);
    if landed.res == -libc::EINVAL {
        say("NOT IN THIS KERNEL: send_bundle");
        return;
    }
    // Several buffers with one entry: all there are, or as much as the socket takes.
    let first = landed.buffer().unwrap_or_else(|| panic!("{landed:?} names no buffer"));
    assert!(landed.res as usize > BYTES && landed.is_terminal(), "{landed:?}");
    let mut bytes = vec![0; landed.res as usize];
    far.read_exact(&mut bytes).unwrap();
    let ids: Vec<u8> = bytes.chunks(BYTES).map(|chunk| chunk[0]).collect();
    assert!(bytes.chunks(BYTES).all(|chunk| chunk == [chunk[0]; BYTES]), "{bytes:?}");
    assert_eq!(u16::from(ids[0]), first, "the first is named");
    let different: std::collections::BTreeSet<u8> = ids.iter().copied().collect();
    assert_eq!(different.len(), ids.len(), "each is sent once");
    place.settled();
}
