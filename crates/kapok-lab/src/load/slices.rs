//! Latencies of the measured interval, in slices of time.
//!
//! Each reply is recorded once, in the slice that it came in; all slices together are the interval.
//! Their memory is taken before the interval begins and touched only as it is used.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::{Deserialize, Serialize};

/// The shortest slice, and the most of them.
const SHORTEST: Duration = Duration::from_millis(100);
const MOST: u32 = 100;

/// Latencies over a run, slice by slice: for HDR logs and percentiles that a report does not list.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    length_ns: u64,
    /// On the run's own clock.
    from_ns: u64,
    began: Option<SystemTime>,
    now: usize,
    /// When the slice of now ends.
    until_ns: u64,
    slices: Vec<(u64, Histogram<u64>)>,
}

/// A slice of the measured interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slice {
    /// Its end, in seconds since the measured interval began.
    pub end_seconds: f64,
    /// Replies that were verified in it, per second.
    pub requests_per_second: f64,
    /// The median of their latencies in microseconds.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// From 1 ns to 100 s at three digits; what is longer is counted as 100 s.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3)
        .expect("these bounds are within what the histogram can hold")
}

impl Slices {
    pub(super) fn new(duration: Duration) -> Slices {
        let length = SHORTEST.max(duration.div_f64(f64::from(MOST)));
        let count = (duration.as_secs_f64() / length.as_secs_f64() - 1e-9).ceil().max(1.0);
        Slices {
            length_ns: length.as_nanos() as u64,
            slices: (0..count as usize).map(|_| (0, histogram())).collect(),
            ..Slices::default()
        }
    }

    /// The measured interval begins, whatever time has gone by before.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.from_ns = now_ns;
        self.now = 0;
        self.began = Some(SystemTime::now());
        self.until_ns = now_ns + self.length_ns;
    }

    /// Time has gone on to `now_ns`; what comes after the interval belongs to its last slice.
    #[inline]
    pub(super) fn advance(&mut self, now_ns: u64) {
        while now_ns >= self.until_ns && self.now + 1 < self.slices.len() {
            self.now += 1;
            self.until_ns += self.length_ns;
        }
    }

    #[inline]
    pub(super) fn record(&mut self, latency_ns: u64) {
        self.slices[self.now].1.saturating_record(latency_ns);
    }

    #[inline]
    pub(super) fn replies(&mut self, replies: u64) {
        self.slices[self.now].0 += replies;
    }

    /// Takes in what another thread recorded over the same interval.
    pub(super) fn merge(&mut self, other: &Slices) {
        for ((replies, mine), (theirs, histogram)) in self.slices.iter_mut().zip(&other.slices) {
            *replies += theirs;
            mine.add(histogram).expect("all have the same bounds");
        }
    }

    /// The length of a slice in nanoseconds; the replies of each, and their latencies.
    pub(super) fn parts(&self) -> (u64, &[(u64, Histogram<u64>)]) {
        (self.length_ns, &self.slices)
    }

    /// What another process recorded. Its histograms must be such as [`Slices`] makes.
    pub(super) fn from_parts(length_ns: u64, slices: Vec<(u64, Histogram<u64>)>) -> Slices {
        Slices { length_ns, slices, ..Slices::default() }
    }

    /// Whether the other divides an interval of the same length in the same way.
    pub(super) fn is_like(&self, other: &Slices) -> bool {
        (self.length_ns, self.slices.len()) == (other.length_ns, other.slices.len())
    }

    /// All latencies of the interval, in nanoseconds.
    #[must_use]
    pub fn all(&self) -> Histogram<u64> {
        let mut all = histogram();
        for (_, slice) in &self.slices {
            all.add(slice).expect("all have the same bounds");
        }
        all
    }

    /// The slices in short, of an interval of `seconds`.
    pub(super) fn series(&self, seconds: f64) -> Vec<Slice> {
        let length = self.length_ns as f64 / 1e9;
        let begun = self.slices.iter().enumerate().take_while(|(index, _)| {
            // An interval that was cut short has slices that never began.
            *index == 0 || (*index as f64) * length < seconds
        });
        begun
            .map(|(index, (replies, latency))| {
                let end = ((index + 1) as f64 * length).min(seconds);
                let lasted = (end - index as f64 * length).max(f64::MIN_POSITIVE);
                let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
                Slice {
                    end_seconds: end,
                    requests_per_second: if seconds > 0.0 { *replies as f64 / lasted } else { 0.0 },
                    p50_us: at(0.5),
                    p99_us: at(0.99),
                    max_us: latency.max() as f64 / 1e3,
                }
            })
            .collect()
    }

    /// Writes the slices as an HDR histogram log, each entry tagged with `tag`: nanoseconds, as
    /// `HistogramLogAnalyzer` and its like read them.
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub fn write_log(&self, to: &mut dyn Write, tag: &str) -> io::Result<()> {
        let mut to = to;
        let mut serializer = V2DeflateSerializer::new();
        let began = self.began.unwrap_or(SystemTime::UNIX_EPOCH);
        let mut log = IntervalLogWriterBuilder::new()
            .with_start_time(began)
            .with_base_time(began)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut to, &mut serializer)?;
        // Blanks and commas separate the fields of a line.
        let tag = tag.replace(|letter: char| letter.is_whitespace() || letter == ',', "-");
        let length = Duration::from_nanos(self.length_ns);
        for (index, (_, histogram)) in self.slices.iter().enumerate() {
            log.write_histogram(histogram, length * index as u32, length, Tag::new(&tag))
                .map_err(|error| io::Error::other(format!("an HDR log: {error:?}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::report::Latency;
    use super::*;

    const MS: u64 = 1_000_000;

    /// Round trips in nanoseconds, and what another implementation finds in them.
    const LATENCIES: &str = include_str!("../../tests/recordings/latencies.csv");
    const PERCENTILES: &str = include_str!("../../tests/recordings/percentiles.csv");

    #[test]
    fn slices_have_what_came_in_them_and_the_last_what_came_later() {
        let mut slices = Slices::new(Duration::from_millis(300));
        // Replies before the interval.
        for at in [0, 50, 4_000] {
            slices.advance(at * MS);
        }
        slices.begin(5_000 * MS);
        for (at, latency) in [(0, 1), (99, 2), (100, 3), (250, 4), (299, 5), (900, 6)] {
            slices.advance((5_000 + at) * MS);
            slices.record(latency * MS);
            slices.replies(1);
        }
        let series = slices.series(0.3);
        let longest: Vec<f64> = series.iter().map(|slice| slice.max_us.round()).collect();
        // The histogram keeps three digits: the last nanoseconds are those of its bucket.
        for (found, expected) in longest.iter().zip([2_000.0, 3_000.0, 6_000.0]) {
            assert!((found / expected - 1.0).abs() < 0.001, "{longest:?}");
        }
        let rates: Vec<f64> =
            series.iter().map(|slice| slice.requests_per_second.round()).collect();
        assert_eq!(rates, [20.0, 10.0, 30.0]);
        assert_eq!(slices.all().len(), 6);
    }

    fn lines(file: &str) -> impl Iterator<Item = &str> {
        file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// Each percentile is a whole number of the 10,000 latencies: how ranks are rounded, in which the two
    /// differ, has no part in it.
    #[test]
    fn percentiles_of_a_recording_equal_those_of_another_implementation() {
        let mut slices = Slices::new(Duration::from_secs(1));
        slices.begin(0);
        for (at, latency) in lines(LATENCIES).enumerate() {
            slices.advance(at as u64 * MS / 10);
            slices.record(latency.parse().unwrap());
        }
        let all = slices.all();
        let ours = Latency::of(&all);
        let reference: BTreeMap<&str, f64> = lines(PERCENTILES)
            .map(|line| {
                let (figure, value) = line.split_once(',').unwrap();
                (figure, value.parse().unwrap())
            })
            .collect();
        let figures = [
            ("p50", ours.p50_us),
            ("p90", ours.p90_us),
            ("p99", ours.p99_us),
            ("p99.9", ours.p999_us),
            ("p99.99", all.value_at_quantile(0.9999) as f64 / 1e3),
            ("max", ours.max_us),
        ];
        for (figure, microseconds) in figures {
            assert_eq!(microseconds, reference[figure] / 1e3, "{figure}");
        }
        assert_eq!((ours.count, reference["count"]), (10_000, 10_000.0));
        // Summed up in another order.
        assert!((ours.mean_us / (reference["mean"] / 1e3) - 1.0).abs() < 1e-9, "{ours:?}");
        assert_eq!(reference.len(), figures.len() + 2, "{reference:?}");
    }

    /// A series that can be made again: most replies take tens of microseconds, some milliseconds, few a
    /// second.
    fn made() -> Vec<u64> {
        let mut random = fastrand::Rng::with_seed(42);
        let mut one = |_| {
            let scale = match random.u32(..1000) {
                0..900 => 40_000.0,
                900..998 => 2_000_000.0,
                _ => 700_000_000.0,
            };
            (scale * (0.5 - random.f64().max(1e-9).ln())) as u64
        };
        (0..100_000).map(&mut one).collect()
    }

    #[test]
    fn percentiles_of_a_made_series_are_those_of_its_sorted_values_and_of_the_log() {
        let mut sorted = made();
        let mut slices = Slices::new(Duration::from_secs(1));
        slices.begin(0);
        let mut reference = Histogram::<u64>::new_with_bounds(1, 100_000_000_000, 3).unwrap();
        for (at, latency) in sorted.iter().enumerate() {
            slices.advance(at as u64 * MS / 100);
            slices.record(*latency);
            reference.record(*latency).unwrap();
        }
        sorted.sort_unstable();
        let mut log = Vec::new();
        slices.write_log(&mut log, "a tag, with blanks").unwrap();
        let logged = read_back(&log);
        let all = slices.all();
        for quantile in [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0] {
            let ours = all.value_at_quantile(quantile);
            assert_eq!(ours, reference.value_at_quantile(quantile), "{quantile}");
            assert_eq!(ours, logged.value_at_quantile(quantile), "{quantile}, from the log");
            // And by counting, without any histogram: three digits.
            let place = ((quantile * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[place - 1] as f64;
            assert!((ours as f64 / exact - 1.0).abs() <= 0.001, "{quantile}: {ours} {exact}");
        }
        assert_eq!((all.len(), logged.len()), (100_000, 100_000));
    }

    /// All histograms of a log together.
    fn read_back(log: &[u8]) -> Histogram<u64> {
        use hdrhistogram::serialization::Deserializer;
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

        let mut all = histogram();
        for entry in IntervalLogIterator::new(log) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                assert_eq!(interval.tag().unwrap().as_str(), "a-tag--with-blanks");
                let bytes = base64(interval.encoded_histogram());
                let slice: Histogram<u64> =
                    Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                all.add(&slice).unwrap();
            }
        }
        all
    }

    fn base64(text: &str) -> Vec<u8> {
        let digit = |letter: u8| match letter {
            b'A'..=b'Z' => u32::from(letter - b'A'),
            b'a'..=b'z' => u32::from(letter - b'a') + 26,
            b'0'..=b'9' => u32::from(letter - b'0') + 52,
            b'+' => 62,
            _ => 63,
        };
        let letters: Vec<u8> = text.bytes().filter(|letter| *letter != b'=').collect();
        letters
            .chunks(4)
            .flat_map(|four| {
                let bits = four.iter().fold(0, |bits, letter| bits << 6 | digit(*letter));
                let bits = bits << (6 * (4 - four.len()));
                bits.to_be_bytes()[1..four.len()].to_vec()
            })
            .collect()
    }

    #[test]
    fn an_interval_has_as_many_slices_as_fit_and_no_more_than_a_hundred() {
        for (milliseconds, count) in
            [(1, 1), (100, 1), (101, 2), (550, 6), (10_000, 100), (90_000, 100)]
        {
            let slices = Slices::new(Duration::from_millis(milliseconds));
            assert_eq!(slices.slices.len(), count, "{milliseconds} ms");
            let series = slices.series(milliseconds as f64 / 1e3);
            assert_eq!(series.len(), count, "{milliseconds} ms");
        }
    }
}
