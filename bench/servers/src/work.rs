//! What a connection does with what it has read.

use std::sync::Arc;

use clap::ValueEnum;
use kapok_lab::workload::{Session, Want, Workload};
use kapok_lab::{Protocol, ServeConfig};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speech {
    Echo,
    Http,
}

impl From<Speech> for Protocol {
    fn from(speech: Speech) -> Protocol {
        match speech {
            Speech::Echo => Protocol::Echo,
            Speech::Http => Protocol::Http,
        }
    }
}

/// The work of one server.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) speech: Speech,
    pub(crate) buffer_bytes: usize,
    workload: Arc<Workload>,
}

impl Work {
    pub(crate) fn new(speech: Speech, buffer_bytes: usize, body_bytes: usize) -> Work {
        let config = ServeConfig {
            protocol: speech.into(),
            buffer_bytes,
            body_bytes,
            ..ServeConfig::default()
        };
        Work { speech, buffer_bytes, workload: Workload::new(&config) }
    }

    pub(crate) fn replies(&self) -> Replies {
        Replies(self.workload.session())
    }
}

/// An HTTP connection of a runtime that reads into buffers of its own.
pub(crate) struct Replies(Session);

impl Replies {
    /// Takes in what was read and appends what is to be sent. `false`: then close.
    pub(crate) fn answer(&mut self, mut read: &[u8], replies: &mut Vec<u8>) -> bool {
        loop {
            match self.0.want() {
                Want::Read => {
                    if read.is_empty() {
                        return true;
                    }
                    let space = self.0.space();
                    let count = read.len().min(space.len());
                    space[..count].copy_from_slice(&read[..count]);
                    self.0.received(count);
                    read = &read[count..];
                }
                Want::Write => {
                    let pending = self.0.pending();
                    replies.extend_from_slice(pending);
                    let count = pending.len();
                    self.0.sent(count);
                }
                // Nobody here has a backend, or files.
                Want::Ask => self.0.answered(),
                Want::Load => self.0.loaded(Err(std::io::ErrorKind::NotFound.into())),
                Want::ShutDown | Want::Close => return false,
            }
        }
    }
}
