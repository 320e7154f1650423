//! A point of the grid: the load, and the work for each request.

use std::time::Duration;

use super::Network;

/// What one table is measured under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Connections.
    pub connections: usize,
    /// How many of them carry traffic (`None`: all). The others stay open after one message.
    pub active: Option<usize>,
    /// Bytes of an echo message.
    pub size_bytes: usize,
    /// Close a connection after so many requests.
    pub churn: Option<u64>,
    /// CPU time that servers burn for each request.
    pub cpu_per_request: Duration,
    /// Each request waits for another server, which answers after so long; zero: there is none.
    pub delay: Duration,
    /// What is between the load and the server.
    pub network: Network,
}

impl Point {
    /// `connections` connections, all of them active, 64 bytes, loopback, and nothing else to do.
    #[must_use]
    pub fn new(connections: usize) -> Point {
        Point {
            connections,
            active: None,
            size_bytes: 64,
            churn: None,
            cpu_per_request: Duration::ZERO,
            delay: Duration::ZERO,
            network: Network::Loopback,
        }
    }

    /// Each of `points` with each of `values` put into it by `set`: one more axis of a grid. Without
    /// values the points stay as they are.
    ///
    /// ```
    /// use kapok_lab::compare::Point;
    ///
    /// let points = vec![Point::new(1), Point::new(64)];
    /// let grid = Point::across(points, &[16, 4096], |point, bytes| point.size_bytes = bytes);
    /// assert_eq!(grid.len(), 4);
    /// assert_eq!((grid[1].connections, grid[1].size_bytes), (1, 4096));
    /// ```
    #[must_use]
    pub fn across<T: Copy>(
        points: Vec<Point>,
        values: &[T],
        set: impl Fn(&mut Point, T),
    ) -> Vec<Point> {
        if values.is_empty() {
            return points;
        }
        let with = |mut point: Point, value: T| {
            set(&mut point, value);
            point
        };
        points
            .into_iter()
            .flat_map(|point| values.iter().map(move |value| (point, *value)))
            .map(|(point, value)| with(point, value))
            .collect()
    }
}
