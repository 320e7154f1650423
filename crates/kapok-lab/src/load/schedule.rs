//! When requests are due under a fixed rate, and what a late one costs.
//!
//! Pure arithmetic over nanoseconds since the run began: the tests drive it with a virtual clock.
//! Request *k* is due at `k / rate` and belongs to connection `k mod connections`, so a connection's
//! *j*-th intended time can be computed and nothing is queued: a backlog of a million requests costs
//! two counters.

/// The intended send times of a run.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    start_ns: u64,
    interval_ns: f64,
    connections: u64,
    /// Requests found due so far.
    due: u64,
}

impl Schedule {
    /// `rate` requests per second from `start_ns` on, dealt out over `connections` in turn.
    pub(super) fn new(start_ns: u64, rate: f64, connections: usize) -> Schedule {
        Schedule { start_ns, interval_ns: 1e9 / rate, connections: connections as u64, due: 0 }
    }

    /// When the `turn`-th request of `connection` should leave.
    pub(super) fn intended_ns(&self, connection: usize, turn: u64) -> u64 {
        self.at(turn * self.connections + connection as u64)
    }

    /// The next connection whose request has come due at `now_ns`, if one has.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<usize> {
        if self.at(self.due) > now_ns {
            return None;
        }
        let connection = (self.due % self.connections) as usize;
        self.due += 1;
        Some(connection)
    }

    /// When the next request comes due.
    pub(super) fn next_ns(&self) -> u64 {
        self.at(self.due)
    }

    fn at(&self, request: u64) -> u64 {
        self.start_ns + (request as f64 * self.interval_ns) as u64
    }
}

/// One connection's place in the schedule: which of its requests are due and which were issued.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    /// Requests of this connection that have come due.
    pub(super) due: u64,
    /// Requests of this connection that were issued.
    pub(super) issued: u64,
}

impl Turns {
    /// Issues the oldest due request and returns its intended time.
    pub(super) fn issue(&mut self, schedule: &Schedule, connection: usize) -> Option<u64> {
        if self.issued == self.due {
            return None;
        }
        let intended = schedule.intended_ns(connection, self.issued);
        self.issued += 1;
        Some(intended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// One connection at a time serves a request in `service_ns`, except that the server stands
    /// still between the two times of `stall`. Returns each request's (intended, issued, done).
    fn play(rate: f64, seconds: u64, service_ns: u64, stall: (u64, u64)) -> Vec<(u64, u64, u64)> {
        let mut schedule = Schedule::new(0, rate, 1);
        let mut turns = Turns::default();
        let (mut now, mut free_at) = (0, 0);
        let mut served = Vec::new();
        while now < seconds * 1000 * MS {
            while schedule.take_due(now).is_some() {
                turns.due += 1;
            }
            if free_at <= now
                && let Some(intended) = turns.issue(&schedule, 0)
            {
                let begin = if now >= stall.0 && now < stall.1 { stall.1 } else { now };
                free_at = begin + service_ns;
                served.push((intended, now, free_at));
            }
            // The virtual clock goes to whatever happens next.
            now = if turns.due > turns.issued { free_at } else { schedule.next_ns() };
        }
        served
    }

    fn share_above(latencies: &[u64], limit: u64) -> f64 {
        latencies.iter().filter(|&&latency| latency > limit).count() as f64 / latencies.len() as f64
    }

    #[test]
    fn a_stall_is_charged_to_every_request_it_delayed() {
        // 1,000 requests a second for 10 s, 10 µs each, and the server stands still for 1 s.
        let served = play(1000.0, 10, 10_000, (3000 * MS, 4000 * MS));
        let intended: Vec<u64> = served.iter().map(|(due, _, done)| done - due).collect();
        let naive: Vec<u64> = served.iter().map(|(_, sent, done)| done - sent).collect();

        assert!((9_990..=10_000).contains(&served.len()), "{}", served.len());
        // Of the 1,000 requests that came due during the stall, 900 waited longer than 100 ms
        // (9 % of all) and half of them longer than 500 ms.
        assert!((0.085..0.095).contains(&share_above(&intended, 100 * MS)));
        assert!((0.045..0.055).contains(&share_above(&intended, 500 * MS)));
        let longest = *intended.iter().max().unwrap();
        assert!((999 * MS..1001 * MS).contains(&longest), "{longest}");
        // Measured from the moment of sending, one single request would have seen the stall.
        assert_eq!(naive.iter().filter(|&&latency| latency > 100 * MS).count(), 1);
    }

    #[test]
    fn without_a_stall_every_request_leaves_when_it_is_due() {
        let served = play(1000.0, 2, 10_000, (u64::MAX, u64::MAX));
        assert_eq!(served.len(), 2000);
        for (index, (due, sent, done)) in served.iter().enumerate() {
            assert_eq!(*due, index as u64 * MS);
            assert_eq!(sent, due);
            assert_eq!(done - due, 10_000);
        }
    }

    #[test]
    fn a_server_that_is_too_slow_leaves_a_growing_backlog() {
        // 1,000 a second are due and 500 a second are served.
        let served = play(1000.0, 2, 2 * MS, (u64::MAX, u64::MAX));
        assert!((999..=1001).contains(&served.len()), "{}", served.len());
        let (due, _, done) = served[served.len() - 1];
        assert!((990 * MS..1010 * MS).contains(&(done - due)), "{}", done - due);
    }

    #[test]
    fn requests_are_dealt_out_in_turn_at_their_intended_times() {
        let mut schedule = Schedule::new(5 * MS, 1000.0, 3);
        assert_eq!(schedule.take_due(4 * MS), None);
        let order: Vec<usize> = std::iter::from_fn(|| schedule.take_due(9 * MS)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1]);
        assert_eq!(schedule.intended_ns(1, 1), 9 * MS);
        assert_eq!(schedule.next_ns(), 10 * MS);
    }
}
