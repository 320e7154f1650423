//! Servers from Debian's packages, on free ports of the loopback interface, run by an ordinary user, with
//! their files in a directory of their own. They end when they are dropped, and with the thread that
//! started them.

mod daemon;
mod dnsmasq;
mod mariadb;
mod nginx;
mod postgres;
mod redis;

pub use daemon::as_ordinary_user;
pub use dnsmasq::Dnsmasq;
pub use mariadb::MariaDb;
pub use nginx::Nginx;
pub use postgres::Postgres;
pub use redis::Redis;
