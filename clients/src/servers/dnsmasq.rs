//! dnsmasq before a name server that never answers.

use std::net::UdpSocket;
use std::time::Duration;

use super::daemon::{Daemon, Scratch, as_ordinary_user, find, free_port_of_both};

/// A name server that knows `known.test`, and passes every other question on to where nobody answers.
pub struct Dnsmasq {
    // Before the directory, so that it ends first.
    _server: Daemon,
    _scratch: Scratch,
    /// Where questions go in and nothing comes out.
    _hole: UdpSocket,
    port: u16,
}

impl Dnsmasq {
    /// Starts one, or says that something is skipped.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[track_caller]
    pub fn start() -> Option<Dnsmasq> {
        let program = find("dnsmasq", "dnsmasq-base")?;
        let scratch = Scratch::new("dnsmasq");
        let hole = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = free_port_of_both();
        let log = scratch.path().join("log");
        let mut command = as_ordinary_user(program);
        command.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
        ]);
        command.args(["--bind-interfaces", "--listen-address=127.0.0.1", "--dns-forward-max=2000"]);
        command.args(["--log-facility=-", "--address=/known.test/127.0.0.7", "--pid-file="]);
        // For both families: a question for the one that it does not know would be passed on.
        command.arg("--address=/known.test/fd00::7");
        command.arg(format!("--port={port}"));
        command
            .arg(format!("--server={}", hole.local_addr().unwrap().to_string().replace(':', "#")));
        let mut server = Daemon::start(&mut command, &log, libc::SIGTERM);
        server.until(&log, || knows(port));
        Some(Dnsmasq { _server: server, _scratch: scratch, _hole: hole, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Whether it answers a question for the address of `known.test`.
fn knows(port: u16) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05known\x04test\0\0\x01\0\x01";
    let mut answer = [0; 512];
    socket.send_to(question, ("127.0.0.1", port)).is_ok()
        && matches!(socket.recv(&mut answer), Ok(length) if answer[..length].ends_with(&[127, 0, 0, 7]))
}
