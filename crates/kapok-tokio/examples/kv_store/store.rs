//! The store: an index in memory, reads beside each other, and one task that writes.
//!
//! The writer takes all that wants to be written, writes it in one piece, waits once for the device, and
//! then answers all: the more clients there are, the fewer waits for each.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use kapok_pool::{File, Pool};
use tokio::sync::{mpsc, oneshot};

use crate::log::{self, Index, Place, Recovered};
use crate::record;

/// How many changes wait for the writer at most. Further clients wait to hand theirs over.
const WAITING: usize = 1024;

/// How many bytes are written at once, and then some.
const BATCH_BYTES: usize = 4 << 20;

#[derive(Clone)]
pub(crate) struct Store {
    file: File,
    index: Arc<RwLock<Index>>,
    changes: mpsc::Sender<Change>,
}

/// Something to be written, and who wants to know whether there was something before.
struct Change {
    key: Vec<u8>,
    /// `None` to delete it.
    value: Option<Vec<u8>>,
    done: oneshot::Sender<Result<bool, String>>,
}

impl Store {
    /// Opens the store in `directory`, and starts its writer.
    pub(crate) async fn open(pool: &Pool, directory: &Path) -> io::Result<(Store, Recovered)> {
        let (file, index, end, recovered) = log::open(pool, directory).await?;
        let index = Arc::new(RwLock::new(index));
        let (changes, taken) = mpsc::channel(WAITING);
        let writer = Writer { file: file.clone(), index: Arc::clone(&index), end, broken: None };
        tokio::spawn(writer.run(taken));
        Ok((Store { file, index, changes }, recovered))
    }

    pub(crate) async fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let place = self.index.read().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        match place {
            Some(place) => log::value(&self.file, place).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), String> {
        self.change(key, Some(value)).await.map(drop)
    }

    /// Says whether there was something.
    pub(crate) async fn delete(&self, key: &[u8]) -> Result<bool, String> {
        self.change(key, None).await
    }

    async fn change(&self, key: &[u8], value: Option<Vec<u8>>) -> Result<bool, String> {
        let (done, told) = oneshot::channel();
        let change = Change { key: key.to_vec(), value, done };
        let gone = || "the writer has ended".to_owned();
        self.changes.send(change).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

struct Writer {
    file: File,
    index: Arc<RwLock<Index>>,
    end: u64,
    /// Why nothing is written any more.
    broken: Option<String>,
}

impl Writer {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let (mut taken, mut batch) = (Vec::new(), Vec::new());
        while changes.recv_many(&mut taken, WAITING).await > 0 {
            let mut rest = taken.drain(..).peekable();
            while rest.peek().is_some() {
                let mut changes = Vec::new();
                while batch.len() < BATCH_BYTES
                    && let Some(change) = rest.next()
                {
                    let len = record::write(&mut batch, &change.key, change.value.as_deref());
                    changes.push((change, len));
                }
                let (outcome, used) = self.write(batch).await;
                batch = used;
                batch.clear();
                self.answer(changes, &outcome);
            }
        }
    }

    /// Writes a batch behind the last one, and waits until it is on the device.
    async fn write(&mut self, batch: Vec<u8>) -> (Result<(), String>, Vec<u8>) {
        if let Some(why) = &self.broken {
            return (Err(why.clone()), batch);
        }
        let (written, batch) = self.file.write_all_at(batch, self.end).await;
        if let Err(error) = written {
            // As if it never had been: nobody was told.
            if let Err(worse) = self.file.set_len(self.end).await {
                self.broken = Some(format!("the log cannot be written: {error}; {worse}"));
            }
            return (Err(error.to_string()), batch);
        }
        if let Err(error) = self.file.sync_data().await {
            // What is on the device now nobody knows, and another sync would not tell.
            let why = format!("the log cannot be synced: {error}");
            self.broken = Some(why.clone());
            return (Err(why), batch);
        }
        (Ok(()), batch)
    }

    /// Makes changes known that have been written, and answers who wanted them.
    fn answer(&mut self, changes: Vec<(Change, usize)>, outcome: &Result<(), String>) {
        for (Change { key, value, done }, len) in changes {
            let answer = outcome.clone().map(|()| {
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                let start = self.end;
                self.end += len as u64;
                let offset = start + (record::HEAD_BYTES + key.len()) as u64;
                match value {
                    Some(value) => index.insert(key, Place { offset, len: value.len() }).is_some(),
                    None => index.remove(&key).is_some(),
                }
            });
            // A client that has gone away meanwhile does not want to know.
            let _ = done.send(answer);
        }
    }
}
