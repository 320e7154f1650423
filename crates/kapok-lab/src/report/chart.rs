//! Charts as inline SVG. Every mark carries its value as data, unrounded.

use std::fmt::Write;

use super::scale::{decades, short, ticks};

/// A chart is drawn this wide, and scaled to the page: on a phone its letters are still legible.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Room for the names at the ends of lines.
const RIGHT: f64 = 94.0;
const BAR: f64 = 24.0;
/// Between the baselines of two names.
const LINE: f64 = 14.0;
/// So many names of a legend stand side by side.
const LEGEND: usize = 2;

/// What a chart is about.
pub(super) struct About<'a> {
    /// Unique on the page.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    /// One sentence for who cannot see it.
    pub(super) description: &'a str,
    /// The field of the JSON that its marks are.
    pub(super) metric: &'a str,
}

/// A value of a model: what the JSON has.
pub(super) struct Mark {
    /// The table's place in the JSON.
    pub(super) table: usize,
    pub(super) value: f64,
}

/// A line: a model over the places of the x axis; `None` where there is no value.
pub(super) struct Line<'a> {
    pub(super) model: &'a str,
    /// The colour.
    pub(super) series: usize,
    pub(super) marks: Vec<Option<Mark>>,
}

/// A bar of one or more parts.
pub(super) struct Bar<'a> {
    pub(super) model: &'a str,
    pub(super) series: usize,
    /// One after the other.
    pub(super) parts: Vec<Part<'a>>,
}

/// A part of a bar.
pub(super) struct Part<'a> {
    /// The field of the JSON.
    pub(super) metric: &'a str,
    /// What it is, if not the model's own.
    pub(super) name: Option<&'a str>,
    /// Its colour, if not the model's own.
    pub(super) colour: Option<usize>,
    /// 0 is the full colour, 1 a pale one.
    pub(super) shade: usize,
    pub(super) mark: Mark,
}

impl<'a> Part<'a> {
    /// A part in the model's own colour.
    pub(super) fn of_model(metric: &'a str, shade: usize, mark: Mark) -> Part<'a> {
        Part { metric, name: None, colour: None, shade, mark }
    }
}

/// How an axis grows.
#[derive(Clone, Copy)]
pub(super) enum Axis {
    /// From 0 to at least this.
    Linear(f64),
    /// From at most the first to at least the second, in decades.
    Logarithmic(f64, f64),
}

impl Axis {
    fn ticks(self) -> Vec<f64> {
        match self {
            Axis::Linear(most) => ticks(most),
            Axis::Logarithmic(least, most) => decades(least, most),
        }
    }

    /// From 0 to 1.
    fn place(self, ticks: &[f64], value: f64) -> f64 {
        let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
        let place = match self {
            Axis::Linear(_) => value / last,
            Axis::Logarithmic(..) => (value.max(first) / first).ln() / (last / first).ln(),
        };
        place.clamp(0.0, 1.0)
    }
}

pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn begin(about: &About<'_>, height: f64) -> String {
    let id = about.id;
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
        escaped(about.title),
        escaped(about.description)
    )
}

fn data(metric: &str, model: &str, mark: &Mark) -> String {
    format!(
        "data-metric=\"{metric}\" data-model=\"{}\" data-table=\"{}\" data-value=\"{}\"",
        escaped(model),
        mark.table,
        mark.value
    )
}

/// Lines over the places `labels` of the x axis.
pub(super) fn lines(
    about: &About<'_>,
    labels: &[String],
    axis: Axis,
    lines: &[Line<'_>],
) -> String {
    let mut svg = begin(about, HEIGHT);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let ticks = axis.ticks();
    let y = |value: f64| bottom - axis.place(&ticks, value) * (bottom - TOP);
    let step = (right - LEFT) / (labels.len().max(2) - 1) as f64;
    let x = |place: usize| LEFT + place as f64 * step;
    for tick in &ticks {
        let at = y(*tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(*tick)
        );
    }
    for (place, label) in labels.iter().enumerate() {
        let _ = write!(
            svg,
            "<text class=\"tick mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(place),
            bottom + 18.0,
            escaped(label)
        );
    }
    let mut names = Vec::new();
    for line in lines {
        let class = format!("s{}", line.series % SERIES);
        let mut path = String::new();
        let mut marks = String::new();
        let mut pen_down = false;
        for (place, mark) in line.marks.iter().enumerate() {
            let Some(mark) = mark else {
                pen_down = false;
                continue;
            };
            let (x, y) = (x(place), y(mark.value));
            let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { "L" } else { "M" });
            pen_down = true;
            let _ = write!(
                marks,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" {}><title>{} · {}: {}\
                 </title></circle>",
                data(about.metric, line.model, mark),
                escaped(line.model),
                escaped(&labels[place]),
                short(mark.value)
            );
            names.retain(|(_, model, _)| *model != line.model);
            names.push((y, line.model, class.clone()));
        }
        let _ = write!(svg, "<path class=\"line {class}\" d=\"{path}\"/>{marks}");
    }
    // Names beside the ends of their lines, pushed apart, and up again if the last fell off.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places: Vec<f64> = Vec::with_capacity(names.len());
    for (y, ..) in &names {
        places.push(places.last().map_or(*y, |last| y.max(last + LINE)));
    }
    let mut lowest = HEIGHT - 4.0;
    for place in places.iter_mut().rev() {
        *place = place.min(lowest);
        lowest = *place - LINE;
    }
    for ((_, model, class), y) in names.iter().zip(places) {
        let _ = write!(
            svg,
            "<text class=\"name {class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            right + 8.0,
            y + 4.0,
            escaped(model)
        );
    }
    svg + "</svg>"
}

/// Bars that lie, each beside its model's name. A `legend` names the colours from the first on.
pub(super) fn bars(about: &About<'_>, most: f64, bars: &[Bar<'_>], legend: &[&str]) -> String {
    let height =
        TOP + bars.len() as f64 * BAR + 28.0 + legend.len().div_ceil(LEGEND) as f64 * (LINE + 4.0);
    let mut svg = begin(about, height);
    let left = 96.0;
    let right = WIDTH - 52.0;
    let axis = Axis::Linear(most);
    let ticks = axis.ticks();
    let x = |value: f64| left + axis.place(&ticks, value) * (right - left);
    let bottom = TOP + bars.len() as f64 * BAR;
    for tick in &ticks {
        let at = x(*tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"tick mid\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            short(*tick)
        );
    }
    for (place, bar) in bars.iter().enumerate() {
        let top = TOP + place as f64 * BAR + 4.0;
        let _ = write!(
            svg,
            "<text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 6.0,
            top + 12.0,
            escaped(bar.model)
        );
        let mut sum = 0.0;
        for part in &bar.parts {
            let from = x(sum);
            sum += part.mark.value;
            let _ = write!(
                svg,
                "<rect class=\"s{} part{}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
                 height=\"{}\" {}><title>{}{}: {}</title></rect>",
                part.colour.unwrap_or(bar.series) % SERIES,
                part.shade,
                (x(sum) - from).max(0.5),
                BAR - 8.0,
                data(part.metric, bar.model, &part.mark),
                escaped(bar.model),
                part.name.map_or_else(String::new, |name| format!(" · {}", escaped(name))),
                short(part.mark.value)
            );
        }
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(sum) + 5.0,
            top + 12.0,
            if bar.parts.is_empty() { "–".to_owned() } else { short(sum) }
        );
    }
    for (place, name) in legend.iter().enumerate() {
        let from = (place % LEGEND) as f64 * (WIDTH / LEGEND as f64) + 4.0;
        let top = bottom + 28.0 + (place / LEGEND) as f64 * (LINE + 4.0);
        let _ = write!(
            svg,
            "<rect class=\"s{}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"12\" height=\"12\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            place % SERIES,
            from + 18.0,
            top + 11.0,
            escaped(name)
        );
    }
    svg + "</svg>"
}

/// A small line of values of a model of a table one after the other, `most` at its top: many of them stand
/// side by side on equal axes. The line carries all of its values as data.
pub(super) fn spark(
    about: &About<'_>,
    (table, model): (usize, &str),
    series: usize,
    most: f64,
    values: &[f64],
) -> String {
    let (width, height) = (200.0, 60.0);
    let id = about.id;
    let data: Vec<String> = values.iter().map(f64::to_string).collect();
    let x = |place: usize| place as f64 * width / values.len().max(2).saturating_sub(1) as f64;
    let y =
        |value: f64| height - 4.0 - (value / most.max(f64::MIN_POSITIVE)).min(1.0) * (height - 8.0);
    let mut path = String::new();
    for (place, value) in values.iter().enumerate() {
        let _ =
            write!(path, "{}{:.1} {:.1}", if place == 0 { "M" } else { "L" }, x(place), y(*value));
    }
    let floor = height - 4.0;
    format!(
        "<svg class=\"spark\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\
         <line class=\"grid\" x1=\"0\" x2=\"{width}\" y1=\"{floor}\" y2=\"{floor}\"/>\
         <path class=\"line s{}\" d=\"{path}\" data-metric=\"{}\" data-model=\"{}\" data-table=\"{table}\" \
         data-values=\"{}\"/></svg>",
        escaped(about.title),
        escaped(about.description),
        series % SERIES,
        about.metric,
        escaped(model),
        data.join(" ")
    )
}

/// How many colours there are.
pub(super) const SERIES: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About<'_> = About { id: "c", title: "T", description: "D", metric: "p99_us" };

    #[test]
    fn values_are_in_the_marks_unrounded_and_names_are_escaped() {
        let mark = |value| Some(Mark { table: 3, value });
        let line =
            Line { model: "<a & \"b\">", series: 1, marks: vec![mark(1.25), None, mark(1e-7)] };
        let labels = ["1", "2", "3"].map(str::to_owned);
        let svg = lines(&ABOUT, &labels, Axis::Linear(2.0), &[line]);
        assert!(
            svg.contains("data-value=\"1.25\"") && svg.contains("data-value=\"0.0000001\""),
            "{svg}"
        );
        assert!(
            svg.contains("data-table=\"3\"") && svg.contains("data-metric=\"p99_us\""),
            "{svg}"
        );
        assert!(svg.contains("&lt;a &amp; &quot;b&quot;&gt;") && !svg.contains("<a "), "{svg}");
        // A gap is a gap: the second stroke begins anew.
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
    }

    #[test]
    fn names_never_lie_on_one_another_nor_off_the_paper() {
        let all: Vec<Line<'_>> = (0..13)
            .map(|series| Line {
                model: ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"][series],
                series,
                marks: vec![Some(Mark { table: 0, value: 0.1 })],
            })
            .collect();
        let svg = lines(&ABOUT, &["1".to_owned()], Axis::Linear(100.0), &all);
        let mut places: Vec<f64> = svg
            .split("class=\"name")
            .skip(1)
            .map(|text| {
                text.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        places.sort_by(f64::total_cmp);
        assert_eq!(places.len(), 13);
        assert!(places.windows(2).all(|two| two[1] - two[0] >= LINE - 0.2), "{places:?}");
        assert!(places[0] > 0.0 && places[12] <= HEIGHT, "{places:?}");
    }

    #[test]
    fn parts_of_a_bar_follow_one_another() {
        let parts = vec![
            Part::of_model("user", 0, Mark { table: 0, value: 2.0 }),
            Part::of_model("system", 1, Mark { table: 0, value: 6.0 }),
        ];
        let svg = bars(&ABOUT, 8.0, &[Bar { model: "tokio", series: 0, parts }], &[]);
        let rects: Vec<(f64, f64)> = svg
            .split("<rect")
            .skip(1)
            .map(|text| {
                let number = |name: &str| -> f64 {
                    let from = text.split(name).nth(1).unwrap();
                    from.split('"').next().unwrap().parse().unwrap()
                };
                (number(" x=\""), number("width=\""))
            })
            .collect();
        assert!((rects[0].0 + rects[0].1 - rects[1].0).abs() < 0.2, "{rects:?}");
        assert!((rects[1].1 / rects[0].1 - 3.0).abs() < 0.01, "{rects:?}");
        assert!(svg.contains(">8</text>"), "their sum: {svg}");
    }
}
