//! Kapok's I/O threads for programs on tokio.
//!
//! The operations of a [`Pool`](kapok_pool::Pool) are futures of no executor: a task on tokio awaits them
//! as they are, and their owned buffers spare a copy. This crate is for what wants tokio's traits: a
//! [`File`] that reads, writes and seeks like `tokio::fs::File`, through the rings of a pool.
//!
//! ```
//! use kapok_pool::Pool;
//! use kapok_tokio::File;
//! use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! # let path = std::env::temp_dir().join(format!("kapok-tokio-doc-{}", std::process::id()));
//! let pool = Pool::builder().build()?;
//! let mut file = File::create(&pool, &path).await?;
//! file.write_all(b"kapok floats").await?;
//! file.flush().await?;
//! file.rewind().await?;
//! let mut content = String::new();
//! file.read_to_string(&mut content).await?;
//! assert_eq!(content, "kapok floats");
//! # std::fs::remove_file(&path)
//! # }
//! ```
//!
//! On Linux a runtime's own thread can carry the operations out in the place of an I/O thread: see [`drive`].

#[cfg(target_os = "linux")]
mod drive;
mod file;
mod writing;

#[cfg(target_os = "linux")]
pub use drive::drive;
pub use file::File;
