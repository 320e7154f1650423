//! Generators that ssh starts, as the chapter has it.

use std::env;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{KAPOK, Server, assert_sum, chapter, join, refused, text, with};

/// Where sshd wants an empty directory if it is root's.
const EMPTY: &str = "/run/sshd";

/// An sshd of our own on a port of the loopback address, which lets in whoever runs this. Dropping it
/// ends it.
struct Sshd {
    child: Child,
    /// Its keys, what it is told and what it says.
    directory: PathBuf,
    /// The empty directory had to be made.
    made: bool,
}

impl Sshd {
    fn start(program: &Path) -> Sshd {
        let directory = env::temp_dir().join(format!("kapok-ssh-{}", process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(directory.join(key));
            assert!(keygen.stdin(Stdio::null()).status().unwrap().success());
        }
        // SAFETY: geteuid takes nothing.
        let is_root = unsafe { libc::geteuid() } == 0;
        let made = is_root && fs::create_dir(EMPTY).is_ok();
        let Some((child, port)) = (0..5).find_map(|_| Sshd::listen(program, &directory)) else {
            panic!("sshd does not listen: {}", said(&directory));
        };
        let place = directory.display();
        let config = format!(
            "Host a b\n\
             HostName 127.0.0.1\n\
             Port {port}\n\
             IdentityFile {place}/user\n\
             IdentitiesOnly yes\n\
             IdentityAgent none\n\
             StrictHostKeyChecking no\n\
             UserKnownHostsFile {place}/known_hosts\n\
             ConnectTimeout 20\n\
             LogLevel ERROR\n"
        );
        fs::write(directory.join("ssh_config"), config).unwrap();
        Sshd { child, directory, made }
    }

    /// Starts it on a port that was free a moment ago; somebody else may have taken it since.
    fn listen(program: &Path, directory: &Path) -> Option<(Child, u16)> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = directory.display();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\n\
             HostKey {place}/host\n\
             AuthorizedKeysFile {place}/user.pub\n\
             AuthenticationMethods publickey\n\
             PermitRootLogin prohibit-password\n\
             PidFile none\n\
             StrictModes no\n\
             UsePAM no\n"
        );
        fs::write(directory.join("sshd_config"), config).unwrap();
        let mut child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(directory.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(20) {
            if said(directory).contains("Server listening on 127.0.0.1") {
                return Some((child, port));
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// A command line of the chapter, with what there is here in place of its addresses and numbers.
    fn here(&self, command: &str, server: &Server) -> String {
        let ssh = format!("ssh -F {}/ssh_config", self.directory.display());
        let changes: &[(&str, &str)] = &[
            ("ssh", &ssh),
            ("kapok", KAPOK),
            ("10.0.0.1:8080", &server.addr),
            ("1000", "4"),
            ("10", "0.4"),
        ];
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        with(&words, changes).join(" ")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
        if self.made {
            let _ = fs::remove_dir(EMPTY);
        }
    }
}

/// What an sshd has said.
fn said(directory: &Path) -> String {
    text(&fs::read(directory.join("log")).unwrap_or_default())
}

/// Where sshd is, if it and its client are here. It must be started by its whole path.
fn sshd() -> Option<PathBuf> {
    let places = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
    let found = places.into_iter().map(PathBuf::from).find(|place| place.exists());
    let has_client = Command::new("ssh").arg("-V").output().is_ok();
    let found = found.filter(|_| has_client);
    if found.is_none() {
        let required = env::var_os("KAPOK_REQUIRE_SSH").is_some_and(|value| value == "1");
        assert!(!required, "no sshd and ssh, and KAPOK_REQUIRE_SSH=1");
        eprintln!("SKIPPED: no sshd and ssh (apt install openssh-server openssh-client)");
    }
    found
}

#[test]
fn generators_that_ssh_starts_make_the_sum_of_their_loads() {
    let Some(program) = sshd() else { return };
    let sshd = Sshd::start(&program);
    let server = Server::start(&[]);
    let chapter = chapter();
    let lines = chapter.lines().filter_map(|line| line.trim().strip_prefix("--join '"));
    let commands: Vec<String> =
        lines.map(|line| sshd.here(line.split('\'').next().unwrap(), &server)).collect();
    assert_eq!(commands.len(), 2, "{commands:?}");

    let joined = join(&commands, &["--json", "--wait", "40"]);
    let complaints = format!("{}{}", text(&joined.stderr), said(&sshd.directory));
    assert_eq!(joined.status.code(), Some(0), "{complaints}");
    let joined: Value = serde_json::from_slice(&joined.stdout).unwrap();
    assert_eq!(joined["parts"].as_array().unwrap().len(), 2);
    assert_eq!(joined["connections"], 8);
    assert_sum(&joined);
    assert_eq!(complaints.matches("Accepted publickey").count(), 2, "{complaints}");

    // Who is not let in is named, with what ssh says.
    let [good, bad] = &commands[..] else { panic!("{commands:?}") };
    let bad = bad.replacen("ssh ", "ssh -o PubkeyAuthentication=no ", 1);
    let said = refused(&join(&[good.clone(), bad], &["--wait", "40"]));
    assert!(said.contains("generator 2") && said.contains("Permission denied"), "{said}");
}
