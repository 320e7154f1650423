//! The Rust standard library's sockets, with Redis's protocol by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::queue::Connection;
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "standard", title: "std::net", server: Which::Redis, remark: "" };

pub(super) struct Standard(BufReader<TcpStream>);

impl Standard {
    fn reply(&mut self) -> Result<Option<String>, Box<dyn std::error::Error>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err("the end of the stream".into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        match (kind, rest) {
            ("+" | ":", text) => Ok(Some(text.to_owned())),
            ("$" | "*", "-1") => Ok(None),
            ("$", length) => {
                let mut bytes = vec![0; length.parse::<usize>()? + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Some(String::from_utf8(bytes)?))
            }
            ("*", count) => {
                let mut last = None;
                for _ in 0..count.parse()? {
                    last = self.reply()?;
                }
                Ok(last)
            }
            _ => Err(line.into()),
        }
    }
}

impl Connection for Standard {
    fn connect(place: &Place, limit: Option<Duration>) -> Result<Standard, String> {
        let open = || {
            let stream = TcpStream::connect(("127.0.0.1", place.port))?;
            stream.set_read_timeout(limit)?;
            std::io::Result::Ok(Standard(BufReader::new(stream)))
        };
        open().map_err(|error| error.to_string())
    }

    fn command(&mut self, words: &[&str]) -> Result<Option<String>, String> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(command.as_bytes()).map_err(|error| error.to_string())?;
        self.reply().map_err(|error| error.to_string())
    }
}
