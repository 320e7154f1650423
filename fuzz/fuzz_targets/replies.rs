//! The load generator's check of what a server sends.
//!
//! The first four bytes choose; the rest is what the server sends. However it is cut, the verdict is
//! the same; there are no more replies than were asked for; and of an echo nothing but what was sent
//! is good, which is known without the checker.

#![no_main]

use kapok_lab::load::fuzzing::Replies;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [cut, outstanding, size, kind, sent @ ..] = data else { return };
    let outstanding = u64::from(outstanding & 15);
    let pieces = [usize::from(cut & 15) + 1, usize::from(cut >> 4) * 9 + 1];
    let (replies, sent) = if kind & 1 == 0 {
        let body_bytes = (kind & 2 == 0).then_some(usize::from(*size));
        (Replies::Http { body_bytes }, sent.to_vec())
    } else {
        // The input is what is wrong with a good echo: nearly all else is wrong at once.
        let message_bytes = usize::from(*size) + 1;
        let mut echo = Replies::echo_of(message_bytes, sent.len());
        echo.iter_mut().zip(sent).for_each(|(byte, wrong)| *byte ^= wrong);
        (Replies::Echo { message_bytes }, echo)
    };
    let whole = replies.check(&sent, &[usize::MAX], outstanding);
    let other = replies.check(&sent, &pieces, outstanding);
    assert_eq!(
        whole.is_ok(),
        other.is_ok(),
        "the verdict depends on the cuts: {whole:?}, {other:?}"
    );
    if let (Ok(whole), Ok(other)) = (&whole, &other) {
        assert_eq!(whole, other, "the count depends on the cuts");
        assert!(*whole <= outstanding, "more replies than were asked for");
    }
    if let Replies::Echo { message_bytes } = replies {
        let good = sent == Replies::echo_of(message_bytes, sent.len());
        let asked_for = sent.len() as u64 <= outstanding * message_bytes as u64;
        assert_eq!(whole.is_ok(), good && asked_for, "{whole:?}");
    }
});
