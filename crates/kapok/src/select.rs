//! `select!`: waiting for the first of several futures.
//!
//! The arms are polled in turn on the current fiber or thread, by [`block_on`](crate::block_on).
//! Their outputs meet in an enumeration local to the use of the macro; futures are pinned in its
//! frame, so nothing is allocated. They end, winner and losers, before the winner's block runs: that
//! is why the blocks stand outside of the closure that polls, and may `return`, `break` and `?`.

use std::cell::Cell;
use std::task::{Context, Poll, Waker};

/// Waits for the first of several futures to be ready, drops the others, and runs the block of the
/// one that was.
///
/// ```text
/// select! {
///     biased;                        // optional: poll in the order of the arms
///     pattern = future => block,     // up to 16 of them; the pattern is irrefutable
///     default => block,              // optional, last: if no future is ready at once
/// }
/// ```
///
/// Where several are ready the arm to begin with takes turns, so that none is always passed over;
/// with `biased;` the first in the text wins. The future expressions are evaluated in the order of
/// the text, all of them, before any is polled.
///
/// "At once" is what needs no look at a kernel: with `default`, futures of sockets and timers that are made
/// in the expression itself are dropped before io_uring has taken them up, and never win. Make them before
/// the loop, and name them by `&mut`.
///
/// The losers are dropped before the block runs. So an arm is fit for `select!` in a loop if its
/// future loses nothing when dropped: those of [`sync`](crate::sync) are.
///
/// # Cancellation
///
/// Cancelling the fiber, or its deadline, ends the wait only if an arm waits for that:
/// [`interrupted_async`](crate::interrupted_async).
///
/// ```
/// use kapok::sync::channel;
///
/// let (sender, lines) = channel::unbounded();
/// let (_stop, stopped) = channel::bounded::<()>(1);
/// sender.send("hello")?;
/// let length = kapok::select! {
///     line = lines.recv_async() => line?.len(),
///     _ = stopped.recv_async() => return Ok(()),
/// };
/// assert_eq!(length, 5);
///
/// let next = kapok::select! {
///     line = lines.recv_async() => Some(line?),
///     default => None,
/// };
/// assert_eq!(next, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[macro_export]
macro_rules! select {
    // One arm a step, each with the next free name: (variant binding number).
    (@arms $mode:tt [$($name:tt)*] [$($arm:tt)*] default => $body:block $(,)?) => {
        $crate::select!(@run $mode [$($arm)*] [default $body])
    };
    (@arms $mode:tt [$($name:tt)*] [$($arm:tt)*] default => $body:expr $(,)?) => {
        $crate::select!(@run $mode [$($arm)*] [default $body])
    };
    (@arms $mode:tt [] [$($arm:tt)*] $($rest:tt)+) => {
        ::core::compile_error!("`select!` has at most 16 arms")
    };
    (@arms $mode:tt [$next:tt $($name:tt)*] [$($arm:tt)*]
        $pattern:pat = $future:expr => $body:block , $($rest:tt)*) => {
        $crate::select!(@arms $mode [$($name)*]
            [$($arm)* ($next ($pattern) ($future) ($body))] $($rest)*)
    };
    (@arms $mode:tt [$next:tt $($name:tt)*] [$($arm:tt)*]
        $pattern:pat = $future:expr => $body:block $($rest:tt)*) => {
        $crate::select!(@arms $mode [$($name)*]
            [$($arm)* ($next ($pattern) ($future) ($body))] $($rest)*)
    };
    (@arms $mode:tt [$next:tt $($name:tt)*] [$($arm:tt)*]
        $pattern:pat = $future:expr => $body:expr , $($rest:tt)*) => {
        $crate::select!(@arms $mode [$($name)*]
            [$($arm)* ($next ($pattern) ($future) ($body))] $($rest)*)
    };
    (@arms $mode:tt [$next:tt $($name:tt)*] [$($arm:tt)*]
        $pattern:pat = $future:expr => $body:expr) => {
        $crate::select!(@arms $mode [$($name)*]
            [$($arm)* ($next ($pattern) ($future) ($body))])
    };
    (@arms $mode:tt [$($name:tt)*] []) => {
        ::core::compile_error!("`select!` needs at least one arm with a future")
    };
    (@arms $mode:tt [$($name:tt)*] [$($arm:tt)+]) => {
        $crate::select!(@run $mode [$($arm)+] [])
    };

    (@run $mode:tt [] $default:tt) => {
        ::core::compile_error!("`select!` needs at least one arm with a future")
    };
    (@run $mode:tt
        [$((($variant:ident $binding:ident $number:literal)
            ($pattern:pat) ($future:expr) ($body:expr)))+]
        [$(default $default:expr)?]) => {{
        #[allow(dead_code, clippy::large_enum_variant)]
        enum __KapokSelected<$($variant),+> {
            $($variant($variant),)+
            Default,
        }
        // A statement of its own: temporaries of the future expressions end with it.
        let selected = match ($(::core::future::IntoFuture::into_future($future),)+) {
            ($($binding,)+) => {
                $(let mut $binding = ::core::pin::pin!($binding);)+
                let count = 0usize $(+ { let _: usize = $number; 1 })+;
                let first = $crate::select!(@first $mode count);
                let poll = |context: &mut ::core::task::Context<'_>| {
                    for step in 0..count {
                        match (first + step) % count {
                            $($number => {
                                if let ::core::task::Poll::Ready(output) =
                                    ::core::future::Future::poll($binding.as_mut(), context)
                                {
                                    return ::core::task::Poll::Ready(
                                        __KapokSelected::$variant(output),
                                    );
                                }
                            })+
                            _ => {}
                        }
                    }
                    ::core::task::Poll::Pending
                };
                $crate::select!(@wait poll $(default $default)?)
            }
        };
        #[allow(unreachable_patterns, unreachable_code)]
        match selected {
            $(__KapokSelected::$variant($pattern) => $body,)+
            $(__KapokSelected::Default => $default,)?
            __KapokSelected::Default => ::core::unreachable!("there is no default"),
        }
    }};

    (@first rotate $count:ident) => { $crate::select::first_arm($count) };
    (@first biased $count:ident) => { 0usize };

    (@wait $poll:ident) => { $crate::block_on(::core::future::poll_fn($poll)) };
    (@wait $poll:ident default $default:expr) => {
        $crate::select::poll_once($poll).unwrap_or(__KapokSelected::Default)
    };

    (@named $mode:tt $($arms:tt)*) => {
        $crate::select!(@arms $mode [
            (A0 a0 0) (A1 a1 1) (A2 a2 2) (A3 a3 3) (A4 a4 4) (A5 a5 5) (A6 a6 6) (A7 a7 7)
            (A8 a8 8) (A9 a9 9) (A10 a10 10) (A11 a11 11) (A12 a12 12) (A13 a13 13)
            (A14 a14 14) (A15 a15 15)
        ] [] $($arms)*)
    };
    (biased; $($arms:tt)*) => { $crate::select!(@named biased $($arms)*) };
    ($($arms:tt)*) => { $crate::select!(@named rotate $($arms)*) };
}

/// The arm to begin with. For the macro only.
#[doc(hidden)]
pub fn first_arm(count: usize) -> usize {
    thread_local!(static TURN: Cell<usize> = const { Cell::new(0) });
    // Without thread-locals, at the end of a thread, the order of the text is as good.
    TURN.try_with(|turn| {
        turn.set(turn.get().wrapping_add(1));
        turn.get() % count
    })
    .unwrap_or(0)
}

/// Looks once, for nobody to be woken. For the macro only.
#[doc(hidden)]
pub fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
