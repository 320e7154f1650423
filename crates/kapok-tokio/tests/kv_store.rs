//! The key-value store, run as a program, killed in mid-write and started again.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The example's program. `cargo test -p kapok-tokio` builds the examples beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/kv_store");
    let missing =
        format!("{}: `cargo build -p kapok-tokio --examples` makes it", program.display());
    assert!(program.exists(), "{missing}");
    program
}

/// A directory of its own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-tokio-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Directory(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Killed when it is dropped, as by kill -9.
struct Server {
    child: Child,
    address: SocketAddr,
    recovered: String,
}

impl Server {
    fn start(directory: &Path) -> Server {
        let mut command = Command::new(program());
        let mut child = command.arg(directory).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = || lines.next().expect("the server has ended").unwrap();
        let recovered = line();
        let address = line().strip_prefix("listening on ").unwrap().parse().unwrap();
        Server { child, address, recovered }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client(BufReader::new(stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn ask(&mut self, request: &[u8]) -> io::Result<String> {
        self.0.get_mut().write_all(request)?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    fn put(&mut self, key: &str, value: &[u8]) -> io::Result<String> {
        let mut request = format!("PUT {key} {}\n", value.len()).into_bytes();
        request.extend(value);
        self.ask(&request)
    }

    fn delete(&mut self, key: &str) -> io::Result<String> {
        self.ask(format!("DELETE {key}\n").as_bytes())
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let line = self.ask(format!("GET {key}\n").as_bytes())?;
        if line == "NONE\n" {
            return Ok(None);
        }
        let len = line.strip_prefix("VALUE ").unwrap_or_else(|| panic!("{line}")).trim_end();
        let mut value = vec![0; len.parse().unwrap()];
        self.0.read_exact(&mut value)?;
        Ok(Some(value))
    }
}

fn scale(ci: usize, full: usize) -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => full,
        _ => ci,
    }
}

#[test]
fn values_are_put_got_and_deleted() {
    let directory = Directory::new("kv-basic");
    let server = Server::start(&directory.0);
    assert_eq!(server.recovered, "recovered 0 keys, cut 0 bytes");
    let mut client = server.client();
    assert_eq!(client.get("one").unwrap(), None);
    assert_eq!(client.put("one", b"first\nwith a line").unwrap(), "OK\n");
    assert_eq!(client.put("empty", b"").unwrap(), "OK\n");
    let large: Vec<u8> = (0..1 << 20).map(|at| (at * 7) as u8).collect();
    assert_eq!(client.put("large", &large).unwrap(), "OK\n");
    assert_eq!(server.client().get("one").unwrap().unwrap(), b"first\nwith a line");
    assert_eq!(client.get("empty").unwrap().unwrap(), b"");
    assert_eq!(client.get("large").unwrap().unwrap(), large);
    assert_eq!(client.put("one", b"second").unwrap(), "OK\n");
    assert_eq!(client.get("one").unwrap().unwrap(), b"second");
    assert_eq!(client.delete("one").unwrap(), "OK\n");
    assert_eq!(client.delete("one").unwrap(), "NONE\n");
    assert_eq!(client.get("one").unwrap(), None);
    for (request, word) in [
        (&b"HELLO world\n"[..], "neither"),
        (b"GET\n", "key"),
        (b"PUT key 1048577\n", "at most"),
        (b"PUT key many\n", "at most"),
        (&[&b"GET "[..], &[b'k'; 2000]].concat(), "line"),
    ] {
        let answer = server.client().ask(request).unwrap();
        assert!(answer.starts_with("ERROR ") && answer.contains(word), "{answer}");
    }
    assert_eq!(client.get("empty").unwrap().unwrap(), b"");
}

/// What a client knows of its keys: what was answered for, and what it had asked for when the server died.
#[derive(Default)]
struct Known {
    values: HashMap<String, Option<Vec<u8>>>,
    asked: Option<(String, Option<Vec<u8>>)>,
}

impl Known {
    /// Changes keys until the server is gone.
    fn change(&mut self, client: &mut Client, random: &mut fastrand::Rng, name: usize) -> usize {
        let mut answered = 0;
        loop {
            let key = format!("{name}-{}", random.u32(..40));
            let value = random.u32(..4).ne(&0).then(|| vec![random.u8(..); random.usize(..20_000)]);
            self.asked = Some((key.clone(), value.clone()));
            let answer = match &value {
                Some(value) => client.put(&key, value),
                None => client.delete(&key),
            };
            match answer.as_deref() {
                Ok("OK\n" | "NONE\n") => {}
                Ok(other) => panic!("{other}"),
                Err(_) => return answered,
            }
            answered += 1;
            self.values.insert(key, value);
            self.asked = None;
        }
    }

    fn check(&mut self, client: &mut Client) {
        // What was asked for and not answered is there, or it is not.
        if let Some((key, value)) = self.asked.take() {
            let found = client.get(&key).unwrap();
            if found == value {
                self.values.insert(key, value);
            }
        }
        for (key, value) in &self.values {
            assert!(&client.get(key).unwrap() == value, "{key} is not what was answered for");
        }
    }
}

#[test]
fn what_was_answered_for_is_there_after_a_kill() {
    const CLIENTS: usize = 4;
    let directory = Directory::new("kv-kill");
    let mut known: Vec<Known> = (0..CLIENTS).map(|_| Known::default()).collect();
    let mut random = fastrand::Rng::with_seed(11);
    let mut answered = 0;
    for cycle in 0..scale(6, 200) {
        let server = Server::start(&directory.0);
        for known in &mut known {
            known.check(&mut server.client());
        }
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| server.client()).collect();
        std::thread::scope(|scope| {
            let changing: Vec<_> = known
                .iter_mut()
                .zip(&mut clients)
                .enumerate()
                .map(|(name, (known, client))| {
                    let mut random = fastrand::Rng::with_seed((cycle * CLIENTS + name) as u64);
                    scope.spawn(move || known.change(client, &mut random, name))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(50 + random.u64(..150)));
            drop(server);
            answered += changing.into_iter().map(|one| one.join().unwrap()).sum::<usize>();
        });
    }
    assert!(answered > 20, "only {answered} were answered");
    let server = Server::start(&directory.0);
    for known in &mut known {
        known.check(&mut server.client());
    }
}

#[test]
fn a_record_that_was_torn_is_cut_off_and_all_before_it_kept() {
    let directory = Directory::new("kv-torn");
    let mut ends = Vec::new();
    {
        let server = Server::start(&directory.0);
        let mut client = server.client();
        for number in 0..20u8 {
            client.put(&format!("key-{number}"), &vec![number; 1000]).unwrap();
            ends.push(std::fs::metadata(directory.log()).unwrap().len());
        }
    }
    let whole = std::fs::read(directory.log()).unwrap();
    assert_eq!(whole.len() as u64, ends[19]);
    let torn = |content: &[u8], keys: usize, cut: usize| {
        std::fs::write(directory.log(), content).unwrap();
        let server = Server::start(&directory.0);
        assert_eq!(server.recovered, format!("recovered {keys} keys, cut {cut} bytes"));
        let mut client = server.client();
        for number in 0..20u8 {
            let expected = (usize::from(number) < keys).then(|| vec![number; 1000]);
            assert_eq!(client.get(&format!("key-{number}")).unwrap(), expected);
        }
        // And it goes on from there.
        assert_eq!(client.put("more", b"more").unwrap(), "OK\n");
        drop(server);
        let server = Server::start(&directory.0);
        assert_eq!(server.client().get("more").unwrap().unwrap(), b"more");
        assert_eq!(server.recovered, format!("recovered {} keys, cut 0 bytes", keys + 1));
    };
    torn(&whole, 20, 0);
    // In the head, in the key, in the value of the last one.
    for left in [1, 5, 11, 14, 500] {
        torn(&whole[..ends[18] as usize + left], 19, left);
    }
    // A bit that has changed, and rubbish behind the end.
    let mut changed = whole.clone();
    changed[ends[9] as usize + 600] ^= 4;
    torn(&changed, 10, whole.len() - ends[9] as usize);
    torn(&[&whole[..], &[0xff; 3000]].concat(), 20, 3000);
    torn(&[&whole[..], &[0; 3000]].concat(), 20, 3000);
}

#[test]
fn a_log_that_is_mostly_dead_is_made_anew() {
    let directory = Directory::new("kv-compact");
    {
        let server = Server::start(&directory.0);
        let mut client = server.client();
        for number in 0..60u8 {
            client.put(&format!("key-{}", number % 5), &vec![number; 100_000]).unwrap();
        }
        client.delete("key-0").unwrap();
    }
    let before = std::fs::metadata(directory.log()).unwrap().len();
    for _ in 0..2 {
        let server = Server::start(&directory.0);
        assert_eq!(server.recovered, "recovered 4 keys, cut 0 bytes");
        let mut client = server.client();
        assert_eq!(client.get("key-0").unwrap(), None);
        for number in 1..5u8 {
            let expected = vec![55 + number; 100_000];
            assert_eq!(client.get(&format!("key-{number}")).unwrap().unwrap(), expected);
        }
    }
    let after = std::fs::metadata(directory.log()).unwrap().len();
    assert!(before > 6_000_000 && after < 500_000, "{before} bytes before, {after} after");
}
