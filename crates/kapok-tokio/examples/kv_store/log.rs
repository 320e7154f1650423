//! The log on the disk: opened, read from its start, appended to, and made anew where most of it is dead.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use kapok_pool::{File, OpenOptions, Pool, fs};

use crate::record::{HEAD_BYTES, MOST_KEY_BYTES, MOST_VALUE_BYTES, Read, read, write};

/// Where a value lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

pub(crate) type Index = HashMap<Vec<u8>, Place>;

/// What was found at the start.
pub(crate) struct Recovered {
    pub(crate) keys: usize,
    /// How many bytes at the end were no record.
    pub(crate) cut: u64,
}

const LONGEST_RECORD: usize = HEAD_BYTES + MOST_KEY_BYTES + MOST_VALUE_BYTES;

/// From this size on a log is looked at for what is dead in it.
const WORTH_COMPACTING: u64 = 1 << 20;

/// Opens the log in `directory`, with what it holds and where it ends.
pub(crate) async fn open(
    pool: &Pool,
    directory: &Path,
) -> io::Result<(File, Index, u64, Recovered)> {
    fs::create_dir_all(pool, directory).await?;
    let path = directory.join("log");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true);
    let mut file = options.open(pool, &path).await?;
    let (mut index, mut end, live) = scan(&file).await?;
    let cut = file.metadata().await?.len() - end;
    if cut > 0 {
        // A record that was being written when the last run ended. Nobody was told that it was.
        file.set_len(end).await?;
        file.sync_all().await?;
    }
    if end > WORTH_COMPACTING && live < end / 2 {
        (file, index, end) = compact(pool, directory, &file, &index).await?;
    }
    sync_directory(pool, directory).await?;
    let recovered = Recovered { keys: index.len(), cut };
    Ok((file, index, end, recovered))
}

/// Names are the directory's: they are on the device when it is.
async fn sync_directory(pool: &Pool, directory: &Path) -> io::Result<()> {
    File::open(pool, directory).await?.sync_all().await.map(drop)
}

/// Reads all records: what is where, where they end, and how many bytes of them still count.
async fn scan(file: &File) -> io::Result<(Index, u64, u64)> {
    let (mut index, mut end, mut live) = (Index::new(), 0, 0);
    let record_len = |key: &[u8], place: Place| (HEAD_BYTES + key.len() + place.len) as u64;
    let mut buffer = Vec::with_capacity(2 * LONGEST_RECORD);
    loop {
        buffer.clear();
        let (count, filled) = file.read_at(buffer, end).await;
        buffer = filled;
        let mut done = 0;
        let found = loop {
            match read(&buffer[done..]) {
                Read::Record { key, value, len } => {
                    let before = match value {
                        Some(value) => {
                            let offset = end + (done + HEAD_BYTES + key.len()) as u64;
                            let place = Place { offset, len: value.len() };
                            live += record_len(key, place);
                            index.insert(key.to_vec(), place)
                        }
                        None => index.remove(key),
                    };
                    live -= before.map_or(0, |place| record_len(key, place));
                    done += len;
                }
                other => break other,
            }
        };
        end += done as u64;
        let is_at_end = match count? {
            0 => true,
            // A longer one would have been read.
            count => found == Read::Bad || done == 0 && count >= LONGEST_RECORD,
        };
        if is_at_end {
            return Ok((index, end, live));
        }
        if done == 0 {
            // Short: the rest of a record, or of the file.
            let len = file.metadata().await?.len();
            if len - end <= buffer.len() as u64 {
                return Ok((index, end, live));
            }
        }
    }
}

/// Writes what still counts to a log of its own, which takes the other's place.
async fn compact(
    pool: &Pool,
    directory: &Path,
    file: &File,
    index: &Index,
) -> io::Result<(File, Index, u64)> {
    let (path, new_path) = (directory.join("log"), directory.join("log.new"));
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let new_file = options.open(pool, &new_path).await?;
    let (mut new_index, mut end, mut batch) = (Index::new(), 0u64, Vec::new());
    for (key, &place) in index {
        let value = value(file, place).await?;
        let offset = end + (batch.len() + HEAD_BYTES + key.len()) as u64;
        write(&mut batch, key, Some(&value));
        new_index.insert(key.clone(), Place { offset, len: place.len });
        if batch.len() >= LONGEST_RECORD {
            (batch, end) = append(&new_file, batch, end).await?;
        }
    }
    (_, end) = append(&new_file, batch, end).await?;
    new_file.sync_all().await?;
    fs::rename(pool, &new_path, &path).await?;
    Ok((new_file, new_index, end))
}

async fn append(file: &File, batch: Vec<u8>, end: u64) -> io::Result<(Vec<u8>, u64)> {
    let (written, mut batch) = file.write_all_at(batch, end).await;
    written?;
    let end = end + batch.len() as u64;
    batch.clear();
    Ok((batch, end))
}

/// Reads a value.
pub(crate) async fn value(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let (read, value) = file.read_exact_at(vec![0; place.len], place.offset).await;
    read.map(|()| value)
}
