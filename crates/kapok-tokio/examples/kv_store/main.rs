//! A key-value store over TCP: `kv_store DIRECTORY [ADDRESS]`.
//!
//! tokio has the connections, the pool of I/O threads the disk. All values lie in one log, to which one
//! task appends; reads go to it at an offset, many at a time. What was answered with `OK` is on the
//! device, and there again after a crash.
//!
//! ```text
//! PUT key length\n bytes    → OK\n
//! GET key\n                 → VALUE length\n bytes, or NONE\n
//! DELETE key\n              → OK\n, or NONE\n
//! ```
//!
//! Anything else is answered with `ERROR reason\n`, and the connection closed.

mod log;
mod record;
mod store;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use kapok_pool::Pool;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::record::{MOST_KEY_BYTES, MOST_VALUE_BYTES};
use crate::store::Store;

/// The longest line: a word, a key, a length.
const MOST_LINE_BYTES: u64 = MOST_KEY_BYTES as u64 + 32;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), address) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: kv_store DIRECTORY [ADDRESS]");
        return ExitCode::from(2);
    };
    let address = address.unwrap_or_else(|| "127.0.0.1:0".into());
    let Ok(address) = address.parse() else {
        eprintln!("kv_store: {address:?} is no address like 127.0.0.1:7000");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().enable_time().build();
    match runtime.and_then(|runtime| runtime.block_on(serve(directory.into(), address))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv_store: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(directory: PathBuf, address: SocketAddr) -> io::Result<()> {
    let pool = Pool::builder().build()?;
    let (store, recovered) = Store::open(&pool, &directory).await?;
    println!("recovered {} keys, cut {} bytes", recovered.keys, recovered.cut);
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let store = store.clone();
                tokio::spawn(async move {
                    // A client that went away is no concern of others.
                    let _ = converse(stream, &store).await;
                });
            }
            Err(error) => {
                // There are no descriptors, or the client is gone again.
                eprintln!("kv_store: accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

/// Answers what one client asks, one after the other.
async fn converse(mut stream: TcpStream, store: &Store) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut reader).take(MOST_LINE_BYTES).read_until(b'\n', &mut line).await?;
        if count == 0 {
            return Ok(());
        }
        let answer = match Request::parse(&line) {
            Ok(Request::Get(key)) => match store.get(key).await {
                Ok(Some(value)) => {
                    let mut answer = format!("VALUE {}\n", value.len()).into_bytes();
                    answer.extend(value);
                    Ok(answer)
                }
                Ok(None) => Ok(b"NONE\n".to_vec()),
                Err(error) => Err(error.to_string()),
            },
            Ok(Request::Put(key, len)) => {
                let mut value = vec![0; len];
                reader.read_exact(&mut value).await?;
                store.put(key, value).await.map(|()| b"OK\n".to_vec())
            }
            Ok(Request::Delete(key)) => store
                .delete(key)
                .await
                .map(|was_there| if was_there { b"OK\n".to_vec() } else { b"NONE\n".to_vec() }),
            Err(why) => Err(why),
        };
        match answer {
            Ok(answer) => writer.write_all(&answer).await?,
            Err(why) => return writer.write_all(format!("ERROR {why}\n").as_bytes()).await,
        }
    }
}

enum Request<'l> {
    Get(&'l [u8]),
    Put(&'l [u8], usize),
    Delete(&'l [u8]),
}

impl Request<'_> {
    fn parse(line: &[u8]) -> Result<Request<'_>, String> {
        let line = line.strip_suffix(b"\n").ok_or("a line without an end, or too long a one")?;
        let mut words = line.split(|&byte| byte == b' ');
        let (word, key, len) = (words.next(), words.next().unwrap_or_default(), words.next());
        if key.is_empty() || key.len() > MOST_KEY_BYTES || words.next().is_some() {
            return Err(format!("a key has 1 to {MOST_KEY_BYTES} bytes, none of them a blank"));
        }
        match (word, len) {
            (Some(b"GET"), None) => Ok(Request::Get(key)),
            (Some(b"DELETE"), None) => Ok(Request::Delete(key)),
            (Some(b"PUT"), Some(len)) => {
                let len = std::str::from_utf8(len).ok().and_then(|len| len.parse().ok());
                match len {
                    Some(len @ 0..=MOST_VALUE_BYTES) => Ok(Request::Put(key, len)),
                    _ => Err(format!("a value has at most {MOST_VALUE_BYTES} bytes")),
                }
            }
            _ => Err("neither GET key, PUT key length nor DELETE key".into()),
        }
    }
}
