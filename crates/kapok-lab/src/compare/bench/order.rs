//! Who is measured after whom.

/// Who follows whom in a round. Each begins elsewhere and goes around in other strides (A B C D E,
/// B D A C E, …), so that nobody always follows the same neighbour's heat.
pub(super) fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    let coprime = |&stride: &usize| {
        let (mut larger, mut smaller) = (count, stride);
        while smaller > 0 {
            (larger, smaller) = (smaller, larger % smaller);
        }
        larger == 1
    };
    // Only such a stride comes past everybody. One does always.
    let strides: Vec<usize> = (1..count.max(2)).filter(coprime).collect();
    let stride = strides[round % strides.len()];
    (0..count).map(move |place| (round + place * stride) % count)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Model;

    #[test]
    fn a_round_visits_everybody_once() {
        for count in 1..=20 {
            for round in 0..40 {
                let visited: HashSet<usize> = order(round, count).collect();
                assert_eq!((order(round, count).count(), visited.len()), (count, count));
            }
        }
    }

    #[test]
    fn nobody_follows_the_same_neighbour_in_every_round() {
        let count = Model::ALL.len();
        for model in 0..count {
            let before: Vec<Option<usize>> = (0..3)
                .map(|round| {
                    let order: Vec<usize> = order(round, count).collect();
                    let at = order.iter().position(|&place| place == model)?;
                    at.checked_sub(1).map(|at| order[at])
                })
                .collect();
            let different: HashSet<_> = before.iter().collect();
            assert_eq!(different.len(), 3, "{model} follows {before:?}");
        }
    }
}
