//! What a connection that does nothing adds to the cost of a request.
//!
//! Tables that differ only in how many connections are registered, with as many active ones, show whether
//! a model looks at all of its connections whenever it wakes (select and poll do) or at those that have
//! something (epoll and io_uring). The answer is the slope of CPU time per request over registered
//! connections.
//!
//! It is the line of least squares through one point for each table. Tables are measured one after another, so
//! what the machine did meanwhile moves a whole table, and by a factor rather than by microseconds. Where the
//! baseline is flat itself, that factor is seen in it: a point is then the ratio to the baseline of the same
//! rounds, times what that costs over all tables. Otherwise, and for the baseline itself, it is the median of
//! the rounds. Points are weighted by the inverse square of their costs, and how well they lie on a line, not
//! how well the rounds agree, makes the interval (Student's t, two degrees of freedom fewer than there are
//! tables).
//!
//! A cost need not grow along a line: descriptors fall out of one cache after the other. Where it bends, the
//! line's interval is wide however certain it is that it grows, so the order of the costs is asked as well
//! (Mann's test for a trend, Econometrica 13, 1945, on Kendall's rank correlation, exact).

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

/// Costs in an order that chance gives no more often than this have a trend.
const CHANCE: f64 = 0.05;

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
    /// fifth of the cost with the fewest, or more. Or the cost with the most is at least twice that with the
    /// fewest, and chance would order the costs like this once in twenty times or less: then it need not
    /// follow a line.
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
        let steady = Steady::of(tables, places);
        let slope = |model: &str| {
            let points = medians(tables, places, model);
            let line = steady
                .as_ref()
                .and_then(|steady| steady.line(tables, &points, model))
                .unwrap_or_else(|| line(&points));
            let (slope, half) = fit(&line)?;
            Some(Slope {
                model: model.to_owned(),
                active: tables[places[0]].active,
                tables: points.iter().map(|point| point.place).collect(),
                connections: points.iter().map(|point| point.connections).collect(),
                cpu_us_per_request: points.iter().map(|point| point.cost).collect(),
                ns_per_connection: slope * 1e3,
                interval: ((slope - half) * 1e3, (slope + half) * 1e3),
                growth: growth(&line, slope, half),
            })
        };
        models.into_iter().filter_map(slope).collect()
    }
}

/// A model's cost in one table: the median of its rounds.
struct Point {
    connections: usize,
    place: usize,
    cost: f64,
}

fn medians(tables: &[Table], places: &[usize], model: &str) -> Vec<Point> {
    let mut points: Vec<Point> = places
        .iter()
        .filter_map(|&place| {
            let row = tables[place].rows.iter().find(|row| row.model == model)?;
            let cost = row.cpu_us_per_request?.median;
            let connections = tables[place].connections;
            (cost > 0.0).then_some(Point { connections, place, cost })
        })
        .collect();
    points.sort_by_key(|point| point.connections);
    points.dedup_by_key(|point| point.connections);
    points
}

fn line(points: &[Point]) -> Vec<(f64, f64)> {
    points.iter().map(|point| (point.connections as f64, point.cost)).collect()
}

/// A baseline that costs the same in all tables, but for what the machine did.
struct Steady<'t> {
    model: &'t str,
    /// The geometric mean of what it cost.
    cost: f64,
}

impl<'t> Steady<'t> {
    fn of(tables: &'t [Table], places: &[usize]) -> Option<Steady<'t>> {
        let model = tables[*places.first()?].baseline.as_deref()?;
        let same = places.iter().all(|place| tables[*place].baseline.as_deref() == Some(model));
        let points = line(&medians(tables, places, model));
        let (slope, half) = fit(&points).filter(|_| same && points.len() == places.len())?;
        let logarithms: f64 = points.iter().map(|(_, cost)| cost.ln()).sum();
        let cost = (logarithms / points.len() as f64).exp();
        (growth(&points, slope, half) == Growth::Flat).then_some(Steady { model, cost })
    }

    /// What another model costs relative to it; `None` if that is not known of each of these points.
    fn line(&self, tables: &[Table], points: &[Point], model: &str) -> Option<Vec<(f64, f64)>> {
        if model == self.model {
            return None;
        }
        let relative = |point: &Point| {
            let row = tables[point.place].rows.iter().find(|row| row.model == model)?;
            Some((point.connections as f64, row.cpu_ratio?.estimate * self.cost))
        };
        points.iter().map(relative).collect()
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

/// How probable it is that independent costs, in an order that chance gave them, rise as consistently as
/// these: from 1 down to 1 of all orders, that in which each is above all before it.
fn by_chance(points: &[(f64, f64)]) -> f64 {
    let falls =
        |place: usize| points[..place].iter().filter(|(_, y)| *y >= points[place].1).count();
    let inversions: usize = (0..points.len()).map(falls).sum();
    // Of all orders of so many, the share with each number of inversions.
    let mut shares = vec![1.0];
    for count in 2..=points.len() {
        let mut next = vec![0.0; shares.len() + count - 1];
        for (place, share) in shares.iter().enumerate() {
            next[place..place + count].iter_mut().for_each(|sum| *sum += share / count as f64);
        }
        shares = next;
    }
    shares.iter().take(inversions + 1).sum()
}

fn growth(points: &[(f64, f64)], slope: f64, half: f64) -> Growth {
    let (Some((fewest, least)), Some((most, last))) = (points.first(), points.last()) else {
        return Growth::Unsettled;
    };
    let rise = |slope: f64| slope * (most - fewest) / least;
    let follows_a_line = slope - half > 0.0 && rise(slope) >= RISE;
    let doubles = last - least >= FLAT * least;
    if follows_a_line || (doubles && by_chance(points) <= CHANCE) {
        Growth::Grows
    } else if rise(slope + half) < FLAT {
        Growth::Flat
    } else {
        Growth::Unsettled
    }
}

#[cfg(test)]
mod tests {
    use super::super::statistics::{Ratio, Spread};
    use super::super::table::Row;
    use super::*;
    use crate::compare::fixture;

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

    #[test]
    fn a_cost_that_grows_along_a_bend_grows() {
        // select to its limit, as it was measured but for the fourth, with its first two out of order.
        let bent = [(10.0, 6.94), (100.0, 6.75), (300.0, 8.82), (600.0, 13.0), (1_000.0, 21.3)];
        assert!((by_chance(&bent) - 5.0 / 120.0).abs() < 1e-12, "five of all orders are like this");
        let (slope, half) = fit(&bent).unwrap();
        assert_eq!(growth(&bent, slope, half), Growth::Grows);
        // However wide the line's interval is.
        assert_eq!(growth(&bent, slope, 2.0 * slope), Growth::Grows);
        // The same costs where the fewest and the most are no more than chance would order like this.
        let fewer = [bent[0], bent[1], bent[2], bent[4]];
        assert!((by_chance(&fewer) - 4.0 / 24.0).abs() < 1e-12);
        assert_eq!(growth(&fewer, slope, 2.0 * slope), Growth::Unsettled);
        assert!((by_chance(&bent[..3]) - 3.0 / 6.0).abs() < 1e-12, "half of all orders of three");
        assert!((by_chance(&[(1.0, 2.0), (2.0, 2.0)]) - 1.0).abs() < 1e-12, "alike is no rise");
    }

    /// A row of this cost in a table in which the machine made everything dearer by `factor`.
    fn row(model: &str, cost: f64, factor: f64, baseline: f64) -> Row {
        let mut row = fixture::row(model, cost * factor, 12);
        row.cpu_us_per_request = Spread::of([cost * factor; 12]);
        row.cpu_ratio = Ratio::of(&[cost / baseline; 12]);
        row
    }

    #[test]
    fn what_the_machine_did_to_a_whole_table_is_seen_in_a_baseline_that_is_flat() {
        // As measured, but for the third table, which is cheaper by a fifth for everybody.
        let costs = [6.2, 6.3, 6.6, 9.1, 18.1];
        let over = |baseline: fn(usize) -> f64| {
            let tables: Vec<Table> = (0..)
                .zip([10, 100, 300, 600, 1_000])
                .map(|(at, connections)| {
                    let factor = if at == 2 { 0.8 } else { 1.0 };
                    let rows = vec![
                        row("tokio", baseline(connections), factor, baseline(connections)),
                        row("select", costs[at], factor, baseline(connections)),
                    ];
                    Table { active: 10, ..fixture::table(connections, rows) }
                })
                .collect();
            Slope::over(&tables)
        };
        let slopes = over(|_| 6.0);
        assert_eq!((&*slopes[0].model, slopes[0].growth), ("tokio", Growth::Flat));
        assert_eq!((&*slopes[1].model, slopes[1].growth), ("select", Growth::Grows));
        assert!((slopes[1].cpu_us_per_request[2] - 6.6 * 0.8).abs() < 1e-9, "as it was measured");
        // With a baseline that grows itself, nothing is held against it.
        let slopes = over(|connections| 6.0 + connections as f64 / 50.0);
        assert_eq!(slopes[0].growth, Growth::Grows);
        let alone = fit(&[(10.0, 6.2), (100.0, 6.3), (300.0, 5.28), (600.0, 9.1), (1_000.0, 18.1)]);
        assert!((slopes[1].ns_per_connection - alone.unwrap().0 * 1e3).abs() < 1e-9);
    }

    #[test]
    fn a_trend_by_order_is_found_by_chance_as_often_as_it_may_be() {
        let orders = 20_000;
        let mut random = fastrand::Rng::with_seed(7);
        let found = (0..orders).filter(|_| {
            let points: Vec<(f64, f64)> = REGISTERED.iter().map(|x| (*x, random.f64())).collect();
            by_chance(&points) <= CHANCE
        });
        let share = found.count() as f64 / f64::from(orders);
        assert!((0.01..=CHANCE).contains(&share), "{share}");
    }
}
