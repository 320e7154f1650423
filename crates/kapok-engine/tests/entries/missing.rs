//! What kernels before 6.19 do not have: it is encoded (see `encoding`) and refused.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use kapok_engine::entry::{Entry, OPERATIONS};

use crate::places::{Place, refused_elsewhere, say};
use crate::sockets::{loopback, port};

#[test]
fn nop128() {
    refused_elsewhere(&Entry::nop128());
    let Some(mut place) = Place::ring() else { return };
    // By an older kernel because it does not know it, by a newer one because of the ring.
    assert_eq!(place.run(&Entry::nop128()), -libc::EINVAL);
    place.settled();
}

#[test]
fn uring_cmd128() {
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let command = Entry::uring_cmd128(0, near.as_raw_fd());
    refused_elsewhere(&command);
    let Some(mut place) = Place::ring() else { return };
    assert_eq!(place.run(&command), -libc::EINVAL);
    place.settled();
}

#[test]
fn zone_reset_all() {
    let file = std::env::current_exe().and_then(std::fs::File::open).unwrap();
    let command = Entry::cmd_zone_reset_all(file.as_raw_fd());
    refused_elsewhere(&command);
    let Some(mut place) = Place::ring() else { return };
    assert_eq!(place.run(&command), -libc::EOPNOTSUPP, "a file has no zones, on any kernel");
    place.settled();
}

#[test]
fn getsockname() {
    for mut place in Place::all() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ports = [client.local_addr().unwrap().port(), client.peer_addr().unwrap().port()];
        for (peer, expected) in (0..).zip(ports) {
            let (mut address, mut len) = (loopback(0), 128);
            let fd = client.as_raw_fd();
            let res = place.run(&Entry::cmd_getsockname(fd, &raw mut address, &raw mut len, peer));
            if place.is_ring() && res == -libc::EOPNOTSUPP {
                say("NOT IN THIS KERNEL: cmd_getsockname");
                continue;
            }
            assert_eq!((res, len, port(&address)), (0, 16, expected), "{}", place.name);
        }
        place.settled();
    }
}

#[test]
fn the_kernel_knows_what_the_table_says() {
    let Some(mut place) = Place::ring() else { return };
    let operations = place.uring().operations().unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let here = (parts.next().unwrap(), parts.next().unwrap());
    for row in OPERATIONS {
        // The oldest helper of an operation is as old as the operation.
        let of_opcode = OPERATIONS.iter().filter(|other| other.opcode == row.opcode);
        let first = of_opcode.map(|other| other.version()).min().unwrap();
        let known = operations.has(row.opcode);
        // Distributions bring later operations to earlier kernels.
        assert!(known || here < first, "{} of {first:?} on {release}", row.prep);
        if here < (6, 19) {
            assert!(!known || row.opcode <= 62, "{} on {release}", row.prep);
        }
    }
}
