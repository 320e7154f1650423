//! wrk(1), with a script that tells in figures what it saw.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::Error;

/// Asks for a random row each time, and says at the end what there is to say.
const SCRIPT: &str = r#"
local kind, rows
init = function(arguments)
    kind, rows = arguments[1], tonumber(arguments[2])
    math.randomseed(tonumber(tostring({}):match("0x(%x+)"), 16) % 2147483647)
end
request = function()
    return wrk.format("GET", "/" .. kind .. "/" .. math.random(rows))
end
done = function(summary, latency, requests)
    local errors = summary.errors
    local broken = errors.connect + errors.read + errors.write + errors.timeout
    print(string.format("figures %d %d %d %d %d %d", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), errors.status, broken))
end
"#;

/// What it saw.
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) duration: Duration,
    pub(crate) median: Duration,
    pub(crate) percentile_99: Duration,
    /// Replies of another status than 200, and of connections that broke or were too slow.
    pub(crate) wrong: u64,
    pub(crate) broken: u64,
}

pub(crate) struct Wrk {
    script: PathBuf,
}

impl Wrk {
    pub(crate) fn new() -> Result<Wrk, Error> {
        let script =
            std::env::temp_dir().join(format!("diesel-service-{}.lua", std::process::id()));
        std::fs::write(&script, SCRIPT)
            .map_err(|error| format!("{}: {error}", script.display()))?;
        Ok(Wrk { script })
    }

    /// Asks `address` for rows of a kind, on as many connections and for as long.
    pub(crate) fn run(
        &self,
        address: &str,
        kind: &str,
        rows: i32,
        connections: usize,
        seconds: u64,
    ) -> Result<Seen, Error> {
        let mut command = Command::new("wrk");
        command.args(["--threads", if connections > 1 { "2" } else { "1" }]);
        command.args(["--connections", &connections.to_string(), "--timeout", "20s"]);
        command.args(["--duration", &format!("{seconds}s"), "--script"]).arg(&self.script);
        command.arg(format!("http://{address}/")).args(["--", kind, &rows.to_string()]);
        let output =
            command.output().map_err(|error| format!("wrk: {error} (apt-get install wrk)"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let figures = said.lines().find_map(|line| line.strip_prefix("figures "));
        let figures: Vec<u64> = figures
            .map(|line| line.split(' ').map_while(|figure| figure.parse().ok()).collect())
            .unwrap_or_default();
        let &[requests, duration, median, percentile_99, wrong, broken] = &figures[..] else {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!("wrk: {}: {said}{words}", output.status).into());
        };
        Ok(Seen {
            requests,
            duration: Duration::from_micros(duration),
            median: Duration::from_micros(median),
            percentile_99: Duration::from_micros(percentile_99),
            wrong,
            broken,
        })
    }
}

impl Drop for Wrk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.script);
    }
}
