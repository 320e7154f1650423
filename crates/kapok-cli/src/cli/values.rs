//! What values are given as.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use kapok::Kind;

/// A value by its name. The reason of a refusal lists the names there are.
pub(super) fn named<T>(name: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    name.parse().map_err(|error: T::Err| error.to_string())
}

/// What `--engine` says: an engine, or what `auto` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Auto,
    Named(Kind),
}

pub(super) fn engine(name: &str) -> Result<Engine, String> {
    match name {
        "auto" => Ok(Engine::Auto),
        _ => named::<Kind>(name).map(Engine::Named),
    }
}

/// Whether `NO_COLOR` leaves colours to the terminal: it is unset, or empty (no-color.org).
pub(crate) fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A year.
const MAX_SECONDS: f64 = 31_536_000.0;

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds <= MAX_SECONDS)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds, such as 2 or 0.5, and at most a year".to_owned())
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "a number from 1 on".to_owned())
}

/// A number of bytes, with a suffix or without.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .filter(|bytes| digits.as_bytes()[0].is_ascii_digit() && *bytes > 0)
        .and_then(|bytes| bytes.checked_mul(1 << shift))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "a number of bytes, such as 4096, 128k or 1G".to_owned())
}

pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|milliseconds| seconds(&(milliseconds / 1e3).to_string()).ok())
        .ok_or_else(|| "a number of milliseconds, such as 5 or 0.5, and at most a year".to_owned())
}

pub(crate) fn microseconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|microseconds| seconds(&(microseconds / 1e6).to_string()).ok())
        .ok_or_else(|| "a number of microseconds, such as 50 or 0.5, and at most a year".to_owned())
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; give HOST:PORT, such as 127.0.0.1:8080"))?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("128k"), Ok(128 << 10));
        assert_eq!(bytes("3G"), Ok(3 << 30));
        for text in ["", "k", "0", "-4k", "+4k", "4kb", "4.5k", "9000000000G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["-1", "soon", "inf", "nan", "1e18"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
