//! The steps in words.

use std::fmt;

/// What a spin came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Completions,
    Operations,
    Nothing,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// Something landed.
    Landed,
    /// There is something in the channel, or an order.
    Called,
    /// At its time limit.
    Limit,
    /// A signal, a bell that was late.
    ForNothing,
}

/// One step, as it was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Took(usize),
    Submitted(usize),
    Spun { looks: u32, found: Found },
    WaitedForCompletions(Woken),
    WaitedOnChannel(Woken),
    Completed(usize),
    Ended,
}

impl Event {
    /// Which of the five steps it was; 0 is the end.
    pub(crate) fn number(self) -> u64 {
        match self {
            Event::Took(_) => 1,
            Event::Submitted(_) => 2,
            Event::Spun { .. } => 3,
            Event::WaitedForCompletions(_) | Event::WaitedOnChannel(_) => 4,
            Event::Completed(_) => 5,
            Event::Ended => 0,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Took(count) => write!(f, "take      {count}"),
            Event::Submitted(count) => write!(f, "submit    {count}"),
            Event::Spun { looks, found } => {
                write!(f, "spin      {looks} looks: ")?;
                f.write_str(match found {
                    Found::Completions => "completions",
                    Found::Operations => "operations",
                    Found::Nothing => "nothing",
                })
            }
            Event::WaitedForCompletions(woken) => write!(f, "wait      for completions: {woken}"),
            Event::WaitedOnChannel(woken) => write!(f, "wait      on the channel: {woken}"),
            Event::Completed(count) => write!(f, "complete  {count}"),
            Event::Ended => f.write_str("end"),
        }
    }
}

impl fmt::Display for Woken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Woken::Landed => "landed",
            Woken::Called => "called",
            Woken::Limit => "time limit",
            Woken::ForNothing => "for nothing",
        })
    }
}
