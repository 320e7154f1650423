//! The crate `redis`.

use std::time::Duration;

use redis::Value;

use super::queue::Connection;
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "redis", title: "crate redis", server: Which::Redis, remark: "" };

pub(super) struct Redis(redis::Connection);

impl Connection for Redis {
    fn connect(place: &Place, limit: Option<Duration>) -> Result<Redis, String> {
        let open = || -> redis::RedisResult<Redis> {
            let client = redis::Client::open(format!("redis://127.0.0.1:{}/", place.port))?;
            let connection = client.get_connection()?;
            connection.set_read_timeout(limit)?;
            Ok(Redis(connection))
        };
        open().map_err(|error| error.to_string())
    }

    fn command(&mut self, words: &[&str]) -> Result<Option<String>, String> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let reply = command.query(&mut self.0).map_err(|error| error.to_string())?;
        fn text(value: &Value) -> Option<String> {
            match value {
                Value::Array(values) => values.last().and_then(text),
                value => redis::from_redis_value_ref::<Option<String>>(value).unwrap(),
            }
        }
        Ok(text(&reply))
    }
}
