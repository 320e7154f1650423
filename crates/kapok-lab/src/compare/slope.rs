//! What a connection that does nothing adds to the cost of a request.
//!
//! Tables that differ only in how many connections are registered, with as many active ones, show whether
//! a model looks at all of its connections whenever it wakes (select and poll do) or at those that have
//! something (epoll and io_uring). The answer is the slope of CPU time per request over registered
//! connections.
//!
//! It is the line of least squares through one point for each table, the median over its rounds. Tables are
//! measured one after another, so what the machine did meanwhile moves a whole table, and by a factor
//! rather than by microseconds: points are weighted by the inverse square of their costs, and how well
//! they lie on a line, not how well the rounds agree, makes the interval (Student's t, two degrees of
//! freedom fewer than there are tables).

use std::fmt;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::table::Table;

/// Fewer points than this always lie on a line.
const FEWEST: usize = 3;

/// A smaller rise from the fewest to the most connections, relative to the cost with the fewest, is not
/// called one.
const RISE: f64 = 0.2;

/// If the cost rises by less than this, relative to that with the fewest connections, it is called flat.
const FLAT: f64 = 1.0;

/// CPU time per request over registered connections, of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slope {
    /// The model.
    pub model: String,
    /// Connections that carry traffic, the same in all tables.
    pub active: usize,
    /// The tables, by their places, that have a point for it.
    pub tables: Vec<usize>,
    /// Registered connections in each of them.
    pub connections: Vec<usize>,
    /// CPU time per request in microseconds in each of them, the median over the rounds.
    pub cpu_us_per_request: Vec<f64>,
    /// What one more registered connection adds to a request, in nanoseconds of CPU time.
    pub ns_per_connection: f64,
    /// Where that lies with 95 % confidence.
    pub interval: (f64, f64),
    /// What that says.
    pub growth: Growth,
}

/// Whether the cost of a request grows with the connections that are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Growth {
    /// It does: the interval is above zero, and the rise from the fewest connections to the most is a
    /// fifth of the cost with the fewest, or more.
    Grows,
    /// It does not: from the fewest connections to the most the cost less than doubles, at the upper end
    /// of the interval.
    Flat,
    /// Neither is certain.
    Unsettled,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Growth::Grows => "grows",
            Growth::Flat => "flat",
            Growth::Unsettled => "unsettled",
        })
    }
}

impl Slope {
    /// The slopes of all models over all tables that differ in registered connections only.
    pub(super) fn over(tables: &[Table]) -> Vec<Slope> {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (place, table) in tables.iter().enumerate() {
            // All the rest of what a table was measured under, in words.
            let rest =
                Table { connections: usize::MAX, rows: Vec::new(), ..table.clone() }.describe();
            match groups.iter_mut().find(|(known, _)| *known == rest) {
                Some((_, places)) => places.push(place),
                None => groups.push((rest, vec![place])),
            }
        }
        groups.iter().flat_map(|(_, places)| Slope::of_group(tables, places)).collect()
    }

    fn of_group(tables: &[Table], places: &[usize]) -> Vec<Slope> {
        let mut models: Vec<&str> = Vec::new();
        for row in places.iter().flat_map(|place| &tables[*place].rows) {
            if !models.contains(&row.model.as_str()) {
                models.push(&row.model);
            }
        }
        let slope = |model: &str| {
            let mut points: Vec<(usize, usize, f64)> = places
                .iter()
                .filter_map(|&place| {
                    let row = tables[place].rows.iter().find(|row| row.model == model)?;
                    let cost = row.cpu_us_per_request?.median;
                    (cost > 0.0).then_some((tables[place].connections, place, cost))
                })
                .collect();
            points.sort_by_key(|(connections, ..)| *connections);
            points.dedup_by_key(|(connections, ..)| *connections);
            let line: Vec<(f64, f64)> =
                points.iter().map(|(connections, _, cost)| (*connections as f64, *cost)).collect();
            let (slope, half) = fit(&line)?;
            Some(Slope {
                model: model.to_owned(),
                active: tables[places[0]].active,
                tables: points.iter().map(|(_, place, _)| *place).collect(),
                connections: points.iter().map(|(connections, ..)| *connections).collect(),
                cpu_us_per_request: points.iter().map(|(.., cost)| *cost).collect(),
                ns_per_connection: slope * 1e3,
                interval: ((slope - half) * 1e3, (slope + half) * 1e3),
                growth: growth(&line, slope, half),
            })
        };
        models.into_iter().filter_map(slope).collect()
    }
}

/// The slope of the line through these points and half the width of its 95 % interval; `None` if there
/// are too few.
fn fit(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.len() < FEWEST {
        return None;
    }
    let weights: Vec<f64> = points.iter().map(|(_, y)| y.powi(-2)).collect();
    let weighted = |pick: &dyn Fn(&(f64, f64)) -> f64| {
        points.iter().zip(&weights).map(|(point, weight)| pick(point) * weight).sum::<f64>()
    };
    let all: f64 = weights.iter().sum();
    let (mean_x, mean_y) = (weighted(&|(x, _)| *x) / all, weighted(&|(_, y)| *y) / all);
    let spread = weighted(&|(x, _)| (x - mean_x).powi(2));
    let slope = weighted(&|(x, y)| (x - mean_x) * (y - mean_y)) / spread;
    let residual = weighted(&|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2));
    let freedom = (points.len() - 2) as f64;
    let t = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.975);
    Some((slope, t * (residual / freedom / spread).sqrt()))
}

fn growth(points: &[(f64, f64)], slope: f64, half: f64) -> Growth {
    let (Some((fewest, least)), Some((most, _))) = (points.first(), points.last()) else {
        return Growth::Unsettled;
    };
    let rise = |slope: f64| slope * (most - fewest) / least;
    if slope - half > 0.0 && rise(slope) >= RISE {
        Growth::Grows
    } else if rise(slope + half) < FLAT {
        Growth::Flat
    } else {
        Growth::Unsettled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERED: [f64; 6] = [10.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0];

    /// Points of a model that costs 8 µs and `ns` for each connection, in tables that the machine made
    /// cheaper or dearer by up to `drift`.
    fn points(seed: u64, ns: f64, drift: f64, count: usize) -> Vec<(f64, f64)> {
        let mut random = fastrand::Rng::with_seed(seed);
        let drifted =
            |x: &f64| (*x, (8.0 + ns * x / 1e3) * (1.0 + drift * (random.f64() * 2.0 - 1.0)));
        REGISTERED[..count].iter().map(drifted).collect()
    }

    fn verdict(points: &[(f64, f64)]) -> Growth {
        let (slope, half) = fit(points).unwrap();
        growth(points, slope, half)
    }

    #[test]
    fn points_on_a_line_give_its_slope() {
        let (slope, half) = fit(&points(1, 30.0, 0.0, 6)).unwrap();
        assert!((slope - 0.030).abs() < 1e-12 && half < 1e-9, "{slope} ± {half}");
        assert_eq!(fit(&points(1, 30.0, 0.0, 2)), None);
    }

    #[test]
    fn the_interval_holds_the_slope_nineteen_times_in_twenty() {
        for ns in [0.0, 30.0] {
            let held = (0..2_000).filter(|seed| {
                let (slope, half) = fit(&points(*seed, ns, 0.1, 6)).unwrap();
                (slope - ns / 1e3).abs() <= half
            });
            let held = held.count();
            assert!((1_800..2_000).contains(&held), "{ns}: {held} of 2,000");
        }
    }

    #[test]
    fn what_grows_and_what_does_not_are_told_apart_on_a_machine_that_drifts() {
        let count = |ns: f64, points_each: usize, growth: Growth| {
            let alike = |seed: &u64| verdict(&points(*seed, ns, 0.1, points_each)) == growth;
            (0..1_000).filter(alike).count()
        };
        // Thirty nanoseconds for each of ten thousand: forty times the cost.
        assert!(count(30.0, 6, Growth::Grows) >= 990);
        assert!(count(0.0, 6, Growth::Flat) >= 950, "{}", count(0.0, 6, Growth::Flat));
        assert!(count(0.0, 6, Growth::Grows) <= 30, "{}", count(0.0, 6, Growth::Grows));
        // select ends at a thousand.
        assert!(count(30.0, 4, Growth::Grows) >= 950, "{}", count(30.0, 4, Growth::Grows));
        assert_eq!(count(30.0, 6, Growth::Flat), 0);
    }
}
