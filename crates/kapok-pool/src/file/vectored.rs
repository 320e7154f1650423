//! Several buffers at once.

use super::File;
use crate::buffer::{Buffer, Source};
#[cfg(target_os = "linux")]
use crate::context::at;
use crate::requests::Moved;

impl File {
    /// Reads into the rooms of `buffers`, one after the other, from `offset` on: preadv(2). It may come
    /// to less than all of them, and uses the first 1,024 only. Dropped, the buffers are gone, and
    /// nothing else has changed.
    ///
    /// # Errors
    ///
    /// What preadv(2) says.
    #[cfg(target_os = "linux")]
    pub async fn read_vectored_at<B: Buffer>(&self, buffers: Vec<B>, offset: u64) -> Moved<Vec<B>> {
        let request = crate::entries::Vectored::read(self.open.clone(), buffers, offset);
        let (count, buffers) = self.pool.run(request).await;
        (count.map_err(|error| at("read", &self.open, Some(offset), error)), buffers)
    }

    /// Writes the bytes of `buffers`, one after the other, from `offset` on: pwritev(2). It may come to
    /// less than all of them, and uses the first 1,024 only. Dropped, some may have been written.
    ///
    /// # Errors
    ///
    /// What pwritev(2) says.
    #[cfg(target_os = "linux")]
    pub async fn write_vectored_at<B: Source>(
        &self,
        buffers: Vec<B>,
        offset: u64,
    ) -> Moved<Vec<B>> {
        let request = crate::entries::Vectored::write(self.open.clone(), buffers, offset);
        let (count, buffers) = self.pool.run(request).await;
        (count.map_err(|error| at("write", &self.open, Some(offset), error)), buffers)
    }

    /// Reads into the first of `buffers` that has room: what preadv(2) may come to.
    ///
    /// # Errors
    ///
    /// What pread(2) says.
    #[cfg(not(target_os = "linux"))]
    pub async fn read_vectored_at<B: Buffer>(
        &self,
        mut buffers: Vec<B>,
        offset: u64,
    ) -> Moved<Vec<B>> {
        let Some(at) = buffers.iter_mut().position(|buffer| !buffer.room().is_empty()) else {
            return (Ok(0), buffers);
        };
        let (count, buffer) = self.read_at(buffers.remove(at), offset).await;
        buffers.insert(at, buffer);
        (count, buffers)
    }

    /// Writes the first of `buffers` that has bytes: what pwritev(2) may come to.
    ///
    /// # Errors
    ///
    /// What pwrite(2) says.
    #[cfg(not(target_os = "linux"))]
    pub async fn write_vectored_at<B: Source>(
        &self,
        mut buffers: Vec<B>,
        offset: u64,
    ) -> Moved<Vec<B>> {
        let Some(at) = buffers.iter().position(|buffer| !buffer.bytes().is_empty()) else {
            return (Ok(0), buffers);
        };
        let (count, buffer) = self.write_at(buffers.remove(at), offset).await;
        buffers.insert(at, buffer);
        (count, buffers)
    }
}
