//! Time that a virtual machine's host gave to others, from `/proc/stat`.

use std::fs;
use std::time::Duration;

/// What the host has kept from each of `cores` since the machine started, added up: whoever ran there then
/// could not. In ticks, of which there are some hundred a second; zero where nothing says so.
pub(crate) fn stolen_time(cores: &[usize]) -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    // SAFETY: sysconf takes a number and gives one.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    Duration::from_millis(stolen_ticks(&stat, cores) * 1_000 / ticks_per_second)
}

/// The eighth figure of each core's line: proc_stat(5).
fn stolen_ticks(stat: &str, cores: &[usize]) -> u64 {
    stat.lines()
        .filter_map(|line| {
            let mut fields = line.strip_prefix("cpu")?.split(' ');
            let core = fields.next()?.parse().ok()?;
            cores.contains(&core).then(|| fields.nth(7)?.parse::<u64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  30 0 30 300 0 0 0 17 0 0\ncpu0 10 0 10 100 0 0 0 5 0 0\n\
                        cpu1 10 0 10 100 0 0 0 5 0 0\ncpu11 10 0 10 100 0 0 0 7 0 0\nintr 1 2 3 4 5 6 7 8 9\n";

    #[test]
    fn only_the_cores_that_were_asked_for_count() {
        assert_eq!(stolen_ticks(STAT, &[1]), 5);
        assert_eq!(stolen_ticks(STAT, &[0, 11]), 12);
        assert_eq!(stolen_ticks(STAT, &[2]), 0);
        assert_eq!(
            stolen_ticks("cpu0 1 2 3\n", &[0]),
            0,
            "a kernel of before 2.6.11 has no such figure"
        );
    }
}
