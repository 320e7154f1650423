//! std's own sockets on fibers: a wait suspends the fiber and not the thread.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;

#[test]
fn a_receive_suspends_the_fiber_and_not_the_thread() {
    kapok_libc::install();
    kapok::Runtime::builder().threads(1).build().unwrap().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut writer, _) = listener.accept().unwrap();
        let reads = Rc::new(Cell::new(false));
        let about_to_read = Rc::clone(&reads);
        let reading = kapok::spawn_local(move || {
            let mut buf = [0; 5];
            about_to_read.set(true);
            reader.read_exact(&mut buf).unwrap();
            buf
        });
        while !reads.get() {
            kapok::yield_now();
        }
        writer.write_all(b"float").unwrap();
        assert_eq!(&reading.join().unwrap(), b"float");
    });
    let recv = kapok_libc::hooks().find(|hook| hook.name() == "recv").unwrap();
    assert_eq!(recv.counts().suspended, 1);
}
