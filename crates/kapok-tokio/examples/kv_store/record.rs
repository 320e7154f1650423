//! A record of the log: what was put under which key, or that it was deleted.
//!
//! ```text
//! ┌──────────┬────────────┬──────────────────────────────┬─────┬───────┐
//! │ checksum │ key length │ value length, or u32::MAX:   │ key │ value │
//! │ 4 bytes  │ 4 bytes    │ deleted                      │     │       │
//! └──────────┴────────────┴──────────────────────────────┴─────┴───────┘
//! ```
//!
//! Numbers are little-endian; the checksum (CRC-32) is of all that follows it. So a record that was not
//! written as a whole is known as such, and what is behind it was never answered for.

/// The most that a key has, in bytes.
pub(crate) const MOST_KEY_BYTES: usize = 1024;
/// The most that a value has, in bytes.
pub(crate) const MOST_VALUE_BYTES: usize = 1 << 20;
/// What comes before the key.
pub(crate) const HEAD_BYTES: usize = 12;

const DELETED: u32 = u32::MAX;

/// Appends a record to `log`; without a value it is that of a deletion. Says how long it is.
pub(crate) fn write(log: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) -> usize {
    let start = log.len();
    log.extend([0; 4]);
    log.extend((key.len() as u32).to_le_bytes());
    log.extend(value.map_or(DELETED, |value| value.len() as u32).to_le_bytes());
    log.extend(key);
    log.extend(value.unwrap_or_default());
    let checksum = checksum(&log[start + 4..]);
    log[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    log.len() - start
}

/// What is at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read<'b> {
    Record {
        key: &'b [u8],
        /// `None`: it was deleted.
        value: Option<&'b [u8]>,
        /// Of all of it, in bytes.
        len: usize,
    },
    /// There are fewer bytes than it has.
    Short,
    /// No record.
    Bad,
}

pub(crate) fn read(bytes: &[u8]) -> Read<'_> {
    let number = |at: usize| {
        let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (Some(expected), Some(key_len), Some(value_len)) = (number(0), number(4), number(8)) else {
        return Read::Short;
    };
    let (key_len, is_deleted) = (key_len as usize, value_len == DELETED);
    let value_len = if is_deleted { 0 } else { value_len as usize };
    if key_len == 0 || key_len > MOST_KEY_BYTES || value_len > MOST_VALUE_BYTES {
        return Read::Bad;
    }
    let len = HEAD_BYTES + key_len + value_len;
    let Some(record) = bytes.get(..len) else { return Read::Short };
    if checksum(&record[4..]) != expected {
        return Read::Bad;
    }
    let (key, value) = record[HEAD_BYTES..].split_at(key_len);
    Read::Record { key, value: (!is_deleted).then_some(value), len }
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ 0xedb8_8320 } else { rest >> 1 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

/// CRC-32 as of IEEE 802.3.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| TABLE[(sum as u8 ^ byte) as usize] ^ sum >> 8)
}
