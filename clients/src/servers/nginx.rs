//! nginx with TLS, before a page that lets its readers wait.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::daemon::{Daemon, Scratch, as_ordinary_user, find, free_port, prepare};

/// How long the slow page takes.
const SLOW: Duration = Duration::from_millis(300);

/// An nginx, whose `/` is answered at once with `quick`, `/slow` after 300 ms with `slow`, and `/never`
/// not within any time that a test takes.
pub struct Nginx {
    // Before the directory and what is behind it, so that it ends first.
    _server: Daemon,
    _behind: Behind,
    scratch: Scratch,
    port: u16,
}

impl Nginx {
    /// Starts one, or says that something is skipped.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[track_caller]
    pub fn start() -> Option<Nginx> {
        let program = find("nginx", "nginx-light")?;
        let openssl = find("openssl", "openssl")?;
        let scratch = Scratch::new("nginx");
        certify(&openssl, &scratch);
        let behind = Behind::start();
        let port = free_port();
        let here = scratch.path().display();
        let configuration = scratch.write(
            "nginx.conf",
            &format!(
                "daemon off; pid {here}/pid; error_log {here}/errors; worker_processes 1;\n\
                 events {{ worker_connections 512; }}\n\
                 http {{\n\
                 access_log off;\n\
                 client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
                 fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi;\n\
                 scgi_temp_path {here}/scgi;\n\
                 server {{\n\
                 listen 127.0.0.1:{port} ssl;\n\
                 ssl_certificate {here}/certificate.pem; ssl_certificate_key {here}/key.pem;\n\
                 default_type text/plain;\n\
                 location = / {{ return 200 quick; }}\n\
                 location / {{ proxy_pass http://127.0.0.1:{}; proxy_read_timeout 600s; }}\n\
                 }}\n}}\n",
                behind.port
            ),
        );
        let log = scratch.path().join("log");
        let mut command = as_ordinary_user(program);
        command.arg("-c").arg(configuration).arg("-e");
        command.arg(scratch.path().join("errors"));
        let mut server = Daemon::start(&mut command, &log, libc::SIGTERM);
        server.until(&log, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Nginx { _server: server, _behind: behind, scratch, port })
    }

    /// Its port on 127.0.0.1; it speaks TLS, for `localhost` and `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate to trust, as PEM.
    pub fn certificate(&self) -> PathBuf {
        self.scratch.path().join("certificate.pem")
    }
}

/// Signs a certificate with its own key.
fn certify(openssl: &Path, scratch: &Scratch) {
    prepare(
        as_ordinary_user(openssl)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"])
            .args(["subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext"])
            .args(["basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(scratch.path().join("key.pem"))
            .arg("-out")
            .arg(scratch.path().join("certificate.pem")),
    );
    // Old versions of openssl(1) add what they find in their configuration.
    let mut shown = Command::new(openssl);
    shown.args(["x509", "-noout", "-text", "-in"]).arg(scratch.path().join("certificate.pem"));
    let text = shown.output().unwrap().stdout;
    assert!(!String::from_utf8_lossy(&text).contains("CA:TRUE"), "a server may not be a CA");
}

/// The server that nginx passes requests on to.
struct Behind {
    port: u16,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Behind {
    fn start() -> Behind {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let accepting = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                thread::spawn(move || answer(stream));
            }
        });
        Behind { port, over, accepting: Some(accepting) }
    }
}

/// One request; errors are the client's to notice.
fn answer(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let Ok(read) = stream.read(&mut request) else { return };
    if request[..read].starts_with(b"GET /never") {
        // Until nginx leaves.
        let _ = stream.read(&mut request);
        return;
    }
    thread::sleep(SLOW);
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nslow");
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}
