//! Receives: their order, `MSG_WAITALL`, the end of a stream and what can hide it.

use super::*;

over_all! {
    parked_receives_are_served_in_order,
    a_receive_of_all_waits_for_all_and_ends_with_what_there_is,
    the_end_of_a_stream_that_came_with_its_last_bytes_is_seen,
    urgent_data_does_not_hide_what_is_behind_it,
    passed_descriptors_do_not_hide_what_is_behind_them,
}

mod over_all {
    use super::*;

    pub(super) fn parked_receives_are_served_in_order<S: Selector>() {
        for owned in [false, true] {
            let (mut near, far) = tcp_pair();
            let _adopted = owned.then(|| Adopted::new(&far));
            let mut engine = Ready::<S>::new().unwrap();
            let mut bufs = [[0u8; 2]; 3];
            for (index, buf) in (0..).zip(&mut bufs) {
                assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
            }
            assert_eq!(engine.in_flight(), 3);
            assert_quiet(&mut engine);
            near.write_all(b"abc").unwrap();
            assert_eq!(land(&mut engine, 2), [(0, 2), (1, 1)]);
            assert_quiet(&mut engine);
            near.write_all(b"d").unwrap();
            assert_eq!(land(&mut engine, 1), [(2, 1)]);
            assert_eq!(bufs, [*b"ab", *b"c\0", *b"d\0"]);
            assert_eq!(engine.in_flight(), 0);
        }
    }

    pub(super) fn a_receive_of_all_waits_for_all_and_ends_with_what_there_is<S: Selector>() {
        for owned in [false, true] {
            let (mut near, far) = tcp_pair();
            let _adopted = owned.then(|| Adopted::new(&far));
            let mut engine = Ready::<S>::new().unwrap();
            let mut buf = [0u8; 6];
            let op = recv(&far, &mut buf, libc::MSG_WAITALL);
            near.write_all(b"ab").unwrap();
            assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
            near.write_all(b"cd").unwrap();
            assert_quiet(&mut engine);
            near.write_all(b"efgh").unwrap();
            assert_eq!(land(&mut engine, 1), [(0, 6)]);
            assert_eq!(&buf, b"abcdef");
            assert_eq!(submit(&mut engine, 1, op), Submitted::Pending);
            engine.cancel(key(1));
            assert_eq!(land(&mut engine, 1), [(1, 2)], "what was received is not taken back");
            near.write_all(b"ij").unwrap();
            drop(near);
            assert_eq!(result(&mut engine, op), 2);
            assert_eq!(result(&mut engine, op), 0);
        }
        // The flag means nothing to datagrams.
        let (near, far) = UnixDatagram::pair().unwrap();
        near.send(b"xyz").unwrap();
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 8];
        let op = recv(&far, &mut buf, libc::MSG_WAITALL);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Done(3));
    }

    pub(super) fn the_end_of_a_stream_that_came_with_its_last_bytes_is_seen<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        for round in 0..3 {
            assert_eq!(submit(&mut engine, 0, op), Submitted::Pending, "{round}");
            near.write_all(b"hello").unwrap();
            assert_eq!(land(&mut engine, 1), [(0, 5)]);
            // That was short, so the next one is not even attempted.
            assert!(!engine.table.entry(far.as_raw_fd()).unwrap().readable);
        }
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        near.write_all(b"bye").unwrap();
        drop(near);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(land(&mut engine, 1), [(0, 3)]);
        assert_eq!(result(&mut engine, op), 0);
        assert_eq!(result(&mut engine, op), 0);
    }

    pub(super) fn urgent_data_does_not_hide_what_is_behind_it<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        near.write_all(b"before").unwrap();
        let urgent =
            Op::Send { fd: near.as_raw_fd(), buf: b"!".as_ptr(), len: 1, flags: libc::MSG_OOB };
        // SAFETY: the byte is static.
        assert_eq!(unsafe { perform(&urgent, true) }, 1);
        near.write_all(b"after").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(land(&mut engine, 1), [(0, 6)]);
        assert_eq!(result(&mut engine, op), 5);
        assert_eq!(&buf[..5], b"after");
    }

    pub(super) fn passed_descriptors_do_not_hide_what_is_behind_them<S: Selector>() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        send_descriptor(&near, b"with", 0);
        near.write_all(b"behind").unwrap();
        assert_eq!(land(&mut engine, 1), [(0, 4)]);
        assert_eq!(result(&mut engine, op), 6);
    }

    fn send_descriptor(over: &UnixStream, bytes: &[u8], fd: RawFd) {
        let mut part =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = [0u64; 8];
        // SAFETY: a header over locals that outlive the call; the control buffer is aligned and has
        // room for one descriptor.
        unsafe {
            let mut msg: libc::msghdr = std::mem::zeroed();
            msg.msg_iov = &raw mut part;
            msg.msg_iovlen = 1;
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            let op = Op::SendMsg { fd: over.as_raw_fd(), msg: &raw const msg, flags: 0 };
            assert_eq!(perform(&op, true), bytes.len() as i32);
        }
    }
}
