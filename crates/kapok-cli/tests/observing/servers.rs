//! Servers to look at, and clients for them.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const KAPOK: &str = env!("CARGO_BIN_EXE_kapok");

/// What an echo server is sent.
pub(crate) const MESSAGE: &[u8] = &[7; 64];

/// How long anything may take on a machine with other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether `program` is installed. If not, a newcomer's run says so and goes on; CI's does not.
pub(crate) fn is_there(program: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&paths)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory| directory.join(program).exists());
    assert!(found || env::var_os("CI").is_none(), "{program} is missing: see CONTRIBUTING.md");
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: this takes root");
    }
    root
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn kapok(arguments: &[&str]) -> Output {
    Command::new(KAPOK).args(arguments).env("NO_COLOR", "1").output().unwrap()
}

/// A server of any kind, killed at the end.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) addr: String,
    directory: Option<PathBuf>,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kapok serve` on a model.
    pub(crate) fn kapok(model: &str) -> Server {
        Server::by(Command::new(KAPOK).args(["serve", "--addr", "127.0.0.1:0", "--model", model]))
    }

    /// A command that prints where it listens.
    pub(crate) fn by(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Server { child, addr, directory: None }
    }

    pub(crate) fn redis() -> Option<Server> {
        Server::redis_of(None)
    }

    /// As another user, which takes root.
    pub(crate) fn redis_of(user: Option<u32>) -> Option<Server> {
        is_there("redis-server").then(|| {
            let port = free_port();
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1"]);
            if let Some(user) = user {
                command.uid(user).gid(user).current_dir("/");
            }
            Server::accepting(command, port, None)
        })
    }

    /// A master and a worker, without anything of the system's configuration.
    pub(crate) fn nginx() -> Option<Server> {
        Server::nginx_of(None)
    }

    /// Both of them as another user, which takes root.
    pub(crate) fn nginx_of(user: Option<u32>) -> Option<Server> {
        is_there("nginx").then(|| {
            let port = free_port();
            let directory = scratch("nginx");
            let here = directory.display();
            let configuration = format!(
                "daemon off; master_process on; worker_processes 1; pid {here}/pid;\n\
                 error_log {here}/error; events {{ worker_connections 256; }}\n\
                 http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {here}; proxy_temp_path {here}; \
                 fastcgi_temp_path {here}; uwsgi_temp_path {here}; scgi_temp_path {here};\n\
                 server {{ listen 127.0.0.1:{port}; location / {{ return 200 'hello'; }} }} }}\n"
            );
            fs::write(directory.join("conf"), configuration).unwrap();
            let mut command = Command::new(
                Some("/usr/sbin/nginx").filter(|path| Path::new(path).exists()).unwrap_or("nginx"),
            );
            command.arg("-c").arg(directory.join("conf")).arg("-p").arg(&directory);
            if let Some(user) = user {
                command.uid(user).gid(user).current_dir("/");
            }
            Server::accepting(command, port, Some(directory))
        })
    }

    fn accepting(mut command: Command, port: u16, directory: Option<PathBuf>) -> Server {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let addr = format!("127.0.0.1:{port}");
        let mut server = Server { child, addr, directory };
        let begun = Instant::now();
        while TcpStream::connect(&server.addr).is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not accept");
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} has ended: {ended:?}");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let begun = Instant::now();
        // A master that is killed would leave its workers.
        while begun.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A directory that anybody may read.
pub(crate) fn scratch(what: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = env::temp_dir().join(format!("kapok-{what}-{}-{}", std::process::id(), free_port()));
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends `request` and awaits `bytes` of reply, so often.
pub(crate) fn exchange(stream: &mut TcpStream, request: &[u8], bytes: usize, times: usize) {
    let mut reply = vec![0; bytes];
    for _ in 0..times {
        stream.write_all(request).unwrap();
        stream.read_exact(&mut reply).unwrap();
    }
}

/// A client that keeps a server busy until it is dropped.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<()>>,
}

impl Busy {
    pub(crate) fn with(mut stream: TcpStream, request: &'static [u8], bytes: usize) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let client = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    exchange(&mut stream, request, bytes, 1);
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        Busy { stop, client: Some(client) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.client.take().map(JoinHandle::join);
        // A failed exchange is a failed test, unless one fails already.
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// Waits until `is` holds.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        thread::sleep(Duration::from_millis(10));
    }
}
