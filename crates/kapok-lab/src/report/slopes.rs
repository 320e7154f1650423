//! What registered connections cost, as a table of the page.

use std::fmt::Write;

use super::chart::escaped;
use super::page::Group;
use super::scale::short;
use crate::compare::{Comparison, Slope};

/// The slopes of the models over the tables of a group, if it has any.
pub(super) fn slopes(page: &mut String, comparison: &Comparison, group: &Group<'_>) {
    let is_ours = |slope: &&Slope| {
        slope.tables.iter().all(|place| group.iter().any(|(ours, _)| ours == place))
    };
    let slopes: Vec<&Slope> = comparison.slopes.iter().filter(is_ours).collect();
    let Some(first) = slopes.first() else { return };
    let _ = write!(
        page,
        "<h3>What a registered connection costs</h3><div class=\"scroll\" tabindex=\"0\" role=\"region\" \
         aria-label=\"What a registered connection costs\"><table data-slopes><caption class=\"soft\">CPU time \
         that one more connection adds to each request while {} are active: the slope of the line of least \
         squares through the medians, with its 95 % interval. Whether it grows is asked of the costs' order, too, \
         which a bend leaves as it is.</caption><thead><tr><th scope=\"col\">model</th>\
         <th scope=\"col\">connections</th><th scope=\"col\">CPU µs/request</th>\
         <th scope=\"col\">ns/connection</th><th scope=\"col\">with connections it</th></tr></thead><tbody>",
        first.active
    );
    for slope in slopes {
        let ends = |values: &[String]| match values {
            [first, .., last] => format!("{first} to {last}"),
            _ => String::new(),
        };
        let connections: Vec<String> = slope.connections.iter().map(usize::to_string).collect();
        let costs: Vec<String> = slope.cpu_us_per_request.iter().map(|cost| short(*cost)).collect();
        let _ = write!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{:.2} [{:.2} {:.2}]</td><td>{}</td></tr>",
            escaped(&slope.model),
            ends(&connections),
            ends(&costs),
            slope.ns_per_connection,
            slope.interval.0,
            slope.interval.1,
            slope.growth
        );
    }
    page.push_str("</tbody></table></div>");
}
