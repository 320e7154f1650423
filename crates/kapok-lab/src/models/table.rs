//! The connections of an event loop by token: the number that the selector hands back.

use super::connection::Connection;

/// A token is an index into `slots` and is reused. An event fetched before its connection was
/// closed may so reach the next one with that token: an event is a hint to try, never a promise,
/// and driving a connection without cause does no harm.
#[derive(Default)]
pub(super) struct Table<'a> {
    slots: Vec<Option<Connection<'a>>>,
    free: Vec<usize>,
}

impl<'a> Table<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    pub(super) fn insert(&mut self, connection: Connection<'a>) -> usize {
        match self.free.pop() {
            Some(token) => {
                self.slots[token] = Some(connection);
                token
            }
            None => {
                self.slots.push(Some(connection));
                self.slots.len() - 1
            }
        }
    }

    #[inline]
    pub(super) fn get(&mut self, token: usize) -> Option<&mut Connection<'a>> {
        self.slots.get_mut(token)?.as_mut()
    }

    /// Closes a connection. Its descriptor leaves every epoll and kqueue with that.
    pub(super) fn remove(&mut self, token: usize) {
        if self.slots[token].take().is_some() {
            self.free.push(token);
        }
    }

    /// One more than the highest token there was.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Each token in use with its connection.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Connection<'a>)> {
        self.slots.iter().enumerate().filter_map(|(token, slot)| Some((token, slot.as_ref()?)))
    }

    /// The tokens of the connections on which nothing moved in the last `sweeps` sweeps.
    pub(super) fn idle(&self, now: u32, sweeps: u32) -> Vec<usize> {
        self.iter()
            .filter(|(_, connection)| now.wrapping_sub(connection.active) > sweeps)
            .map(|(token, _)| token)
            .collect()
    }
}
