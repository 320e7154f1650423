//! How many fibers run between two turns of the engine.
//!
//! What has happened meanwhile is seen at the turn: requests that have come, timers that are due. So the
//! number goes by what fibers have taken lately, and by what a turn takes, which grows with the descriptors
//! where poll(2) looks at them all. Clocks are read too rarely for that to cost anything.

use std::cell::Cell;
use std::time::Duration;

/// The most, however little they take.
const MOST: usize = 256;

/// What they may take together,
const TIME: Duration = Duration::from_millis(1);

/// and, where that is more, so many times what a turn takes.
const TURNS: u32 = 8;

/// After so many a clock is due, however few turns there were.
const ENOUGH: usize = 64;

/// Who waits in each turn has a clock behind it anyway. So many are worth another before the next.
const WORTH: usize = 4;

/// What is known of how long fibers run, and turns take.
pub(super) struct Pace {
    share: Cell<usize>,
    /// How many have run since a clock was read behind a turn.
    ran: Cell<usize>,
    /// Whether that was the last turn: only fibers have run since.
    timed: Cell<bool>,
    /// What a turn that does not wait has taken lately.
    turn: Cell<Duration>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            share: Cell::new(MOST),
            ran: Cell::new(0),
            timed: Cell::new(false),
            turn: Cell::new(Duration::ZERO),
        }
    }

    /// How many may run before the next turn: one at least.
    pub(super) fn share(&self) -> usize {
        self.share.get()
    }

    /// Some have run.
    pub(super) fn count(&self, ran: usize) {
        self.ran.set(self.ran.get() + ran);
    }

    /// Whether so many have run that the next turn is to have a clock before and behind it.
    pub(super) fn is_due(&self) -> bool {
        self.ran.get() >= ENOUGH
    }

    /// Whether a clock before the next turn would tell something.
    pub(super) fn is_worth_a_clock(&self) -> bool {
        self.timed.get() && self.ran.get() >= WORTH.min(self.share.get())
    }

    /// A clock was read before a turn, `time` after the last.
    pub(super) fn ran_for(&self, time: Duration) {
        let ran = self.ran.get();
        if self.timed.get() && ran > 0 {
            let budget = TIME.max(self.turn.get() * TURNS);
            let share = budget.as_nanos() * ran as u128 / time.as_nanos().max(1);
            self.share.set(share.clamp(1, MOST as u128) as usize);
        }
    }

    /// A turn that did not wait took `time`.
    pub(super) fn turned_for(&self, time: Duration) {
        self.turn.set(time);
    }

    /// A clock was read behind a turn.
    pub(super) fn begin(&self) {
        self.ran.set(0);
        self.timed.set(true);
    }

    /// No clock was read behind a turn.
    pub(super) fn go_on(&self) {
        self.timed.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share after `ran` fibers that took `time`.
    fn share_after(pace: &Pace, ran: usize, time: Duration) -> usize {
        pace.begin();
        pace.count(ran);
        pace.ran_for(time);
        pace.share()
    }

    #[test]
    fn who_runs_long_runs_less_often_between_turns() {
        let pace = Pace::new();
        assert_eq!(pace.share(), MOST);
        for (ran, time, share) in [
            (64, Duration::from_micros(6), MOST),
            (64, Duration::from_micros(64 * 10), 100),
            (100, Duration::from_millis(20), 5),
            (5, Duration::from_secs(5), 1),
            (1, Duration::from_micros(1), MOST),
            (64, Duration::ZERO, MOST),
        ] {
            assert_eq!(share_after(&pace, ran, time), share, "{ran} in {time:?}");
        }
    }

    #[test]
    fn turns_that_take_long_are_rarer_and_no_share_is_for_ever() {
        let pace = Pace::new();
        pace.turned_for(Duration::from_millis(2));
        // 16 ms, eight times what a turn takes.
        assert_eq!(share_after(&pace, 10, Duration::from_millis(2)), 80);
        // Somebody else had the processor.
        assert_eq!(share_after(&pace, 10, Duration::from_secs(1)), 1);
        // The next that runs is seen, and alone.
        pace.begin();
        pace.count(1);
        assert!(pace.is_worth_a_clock());
        pace.ran_for(Duration::from_micros(6));
        assert_eq!(pace.share(), MOST);
    }

    #[test]
    fn clocks_are_read_where_they_tell_something() {
        let pace = Pace::new();
        pace.count(ENOUGH - 1);
        assert!(!pace.is_due() && !pace.is_worth_a_clock(), "nobody knows since when");
        pace.count(1);
        assert!(pace.is_due());
        // Turns were among what that took.
        pace.ran_for(Duration::from_secs(1));
        assert_eq!(pace.share(), MOST);
        pace.begin();
        assert!(!pace.is_due() && !pace.is_worth_a_clock());
        pace.count(WORTH);
        assert!(pace.is_worth_a_clock());
        pace.go_on();
        assert!(!pace.is_worth_a_clock());
    }
}
