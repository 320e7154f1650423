//! Who is measured in the next round.

use super::subject::Subject;
use crate::compare::Rounds;

/// Who is to be measured in the next round: those of whom not enough is known, and with them the
/// baseline.
pub(super) fn due(rounds: Rounds, subjects: &[Subject], baseline: usize) -> Vec<usize> {
    let reference = &subjects[baseline];
    let unknown = |subject: &Subject| match rounds {
        Rounds::Fixed(_) => true,
        Rounds::Until { least, .. } => {
            let ratio = subject.ratio(reference, |one| one.cpu_us_per_request);
            match ratio {
                // With a baseline that failed, no further round narrows the interval.
                Some(ratio) if reference.trouble.is_none() => !rounds.suffice(&ratio),
                // With nothing to be relative to, there is no interval to wait for.
                _ => subject.measured.len() < least,
            }
        }
    };
    let alive = |place: &usize| subjects[*place].trouble.is_none();
    let others: Vec<usize> = (0..subjects.len())
        .filter(|place| *place != baseline)
        .filter(alive)
        .filter(|place| unknown(&subjects[*place]))
        .collect();
    let alone = subjects.len() == 1
        && match rounds {
            Rounds::Fixed(_) => true,
            Rounds::Until { least, .. } => subjects[0].measured.len() < least,
        };
    let with = if others.is_empty() && !alone { None } else { Some(baseline) };
    with.filter(alive).into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::compare::contender::Contender;
    use crate::compare::fixture::measured;

    fn subject(model: Model, costs: &[f64]) -> Subject {
        let mut subject = Subject::new(Contender::Model(model));
        subject.measured =
            costs.iter().enumerate().map(|(round, cost)| measured(round, *cost)).collect();
        subject
    }

    #[test]
    fn nobody_waits_for_a_baseline_that_has_failed() {
        let rounds = Rounds::Until { half_width: 0.025, least: 10, cap: 200 };
        // Far from ± 2.5 %.
        let noisy = |count: usize| -> Vec<f64> {
            (0..count).map(|round| 6.0 + (round % 3) as f64).collect()
        };
        let level = |count: usize| vec![6.0; count];
        let mut subjects = [subject(Model::Tokio, &level(4)), subject(Model::Epoll, &noisy(9))];
        assert_eq!(due(rounds, &subjects, 0), [0, 1]);
        subjects[0].trouble = Some("the server ended".to_owned());
        assert_eq!(due(rounds, &subjects, 0), [1], "not yet the least number of rounds");
        subjects[1] = subject(Model::Epoll, &noisy(10));
        assert_eq!(due(rounds, &subjects, 0), [0; 0], "a ratio of four rounds stays one");

        // One that lives is measured on with whoever is not known well enough.
        let subjects = [subject(Model::Tokio, &level(12)), subject(Model::Epoll, &noisy(12))];
        assert_eq!(due(rounds, &subjects, 0), [0, 1]);
    }
}
