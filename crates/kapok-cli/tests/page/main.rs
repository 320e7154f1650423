//! The page of a comparison, in a browser that shows nothing: on screens, and on paper.
//!
//! Needs Chromium (`apt install chromium`). Where it is missing the test says so and passes, unless
//! `KAPOK_REQUIRE_CHROMIUM=1` is set, as it is in CI.

mod printed;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Widths of a phone, a tablet and a desktop.
const WIDTHS: [u32; 3] = [360, 820, 1400];

/// A comparison with several numbers of connections and with one, so that each kind of chart is there.
const GRID: &str = include_str!("../results/grid.json");

/// One with what requests cost, of `--costs`.
const COSTS: &str = include_str!("../results/costs.json");

/// One with what registered connections cost.
const SLOPES: &str = include_str!("../results/slopes.json");

/// Kinds of calls that come less often than once in so many requests are not drawn.
const RARE: f64 = 0.005;

/// Charts are some hundred units wide, and places in them rounded to tenths: a length by two of them.
const ROUNDED: f64 = 0.25;

/// The shortest bar that is drawn, whatever its value.
const SHORTEST: f64 = 0.5;

/// A browser, if there is one; where there has to be, there is.
fn chromium() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let found = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.is_ok_and(|status| status.success())
    });
    if found.is_none() {
        let required = std::env::var_os("KAPOK_REQUIRE_CHROMIUM").is_some_and(|value| value == "1");
        assert!(!required, "no chromium, and KAPOK_REQUIRE_CHROMIUM=1");
        eprintln!("SKIPPED: no chromium to look at the page with (apt install chromium)");
    }
    found
}

/// What it takes to run one without a screen, and without anybody's settings.
const HEADLESS: [&str; 7] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
];

/// A directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// What `kapok report --html` makes of a result.
fn page(directory: &Path, result: &str) -> String {
    let (json, html) = (directory.join("result.json"), directory.join("page.html"));
    fs::write(&json, result).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(["report", json.to_str().unwrap(), "--html", html.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read_to_string(html).unwrap()
}

/// All models under both protocols, as short as can be: the result, and the page that came with it.
fn compared(directory: &Path) -> (String, String) {
    let (json, html) = (directory.join("compared.json"), directory.join("compared.html"));
    let compared = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(["compare", "--rounds", "1", "--seconds", "0.1"])
        .args(["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()])
        .env_remove("KAPOK_LOG")
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
    let (json, html) = (fs::read_to_string(json).unwrap(), fs::read_to_string(html).unwrap());
    let result: Value = serde_json::from_str(&json).unwrap();
    let tables = result["tables"].as_array().unwrap().iter();
    let shape: Vec<(&str, usize)> = tables
        .map(|table| (table["protocol"].as_str().unwrap(), table["rows"].as_array().unwrap().len()))
        .collect();
    assert_eq!(shape, [("echo", 13), ("http", 13)]);
    assert!(page(directory, &json) == html, "report makes another page of it");
    (json, html)
}

/// Looks at the page in a frame of each width, and says what it found as JSON in its own document.
const PROBE: &str = r#"
const found = { console: [], frames: [] };
for (const level of ["error", "warn"]) {
  const print = console[level];
  console[level] = (...words) => { found.console.push(words.join(" ")); print(...words); };
}
const luminance = colour => {
  const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(part => {
    part /= 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
// How long a mark is, in units of its chart: a bar from its left, a point from the lowest line of the grid; and
// how far apart those lines are.
const drawn = mark => {
  const box = mark.getBBox();
  if (mark.tagName === "rect") return { length: box.width };
  const grid = [...mark.ownerSVGElement.querySelectorAll("line.grid")].map(line => line.getBBox().y);
  const floor = Math.max(...grid);
  return {
    length: floor - box.y - box.height / 2,
    step: (floor - Math.min(...grid)) / (grid.length - 1),
  };
};
const heights = line => {
  const floor = line.ownerSVGElement.querySelector("line.grid").getBBox().y;
  const points = line.getAttribute("d").split(/[ML]/).slice(1);
  return points.map(point => floor - Number(point.split(" ")[1]));
};
const look = frame => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const style = element => view.getComputedStyle(element);
  const paper = style(page.body).backgroundColor;
  const panel = style(page.querySelector("figure")).backgroundColor;
  const letters = [...page.querySelectorAll("svg:not(.spark) text")].map(text =>
    parseFloat(style(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width
      / text.ownerSVGElement.viewBox.baseVal.width);
  const overlaps = [...page.querySelectorAll("svg")].filter(svg => {
    const names = [...svg.querySelectorAll("text.name")].map(name => name.getBoundingClientRect());
    return names.some((a, i) => names.slice(i + 1).some(b =>
      Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > a.height / 2));
  }).length;
  const outside = [...page.querySelectorAll("svg text")].filter(text => {
    const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
    return inner.left < outer.left - 1 || inner.right > outer.right + 1;
  }).map(text => text.textContent);
  const focusable = [...page.querySelectorAll("a[href], summary, [tabindex='0']")];
  const unreached = focusable.filter(element => {
    if (element.closest("details:not([open])") && element.tagName !== "SUMMARY") return false;
    element.focus({ preventScroll: true });
    return page.activeElement !== element;
  }).length;
  return {
    width: view.innerWidth,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    overflow: page.documentElement.scrollWidth - view.innerWidth,
    smallest_letter: Math.min(...letters),
    contrast: Math.min(
      contrast(style(page.body).color, paper),
      contrast(style(page.querySelector("figcaption")).color, panel),
      ...[...page.querySelectorAll("svg text")].map(text => contrast(style(text).fill, panel))),
    line_contrast: Math.min(...[...page.querySelectorAll("path.line")].map(path =>
      contrast(style(path).stroke, panel))),
    overlaps, outside, unreached,
    nameless: [...page.querySelectorAll("svg")].filter(svg => svg.getAttribute("role") !== "img" ||
      svg.getAttribute("aria-labelledby").split(" ").some(id => !page.getElementById(id)?.textContent)).length,
    doubled: [...page.querySelectorAll("[id]")].length - new Set([...page.querySelectorAll("[id]")].map(e => e.id)).size,
    headings: [...page.querySelectorAll("h1, h2, h3")].map(heading => Number(heading.tagName[1])),
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    marks: [...page.querySelectorAll("[data-value]")].map(mark =>
      ({ ...mark.dataset, shape: mark.tagName, ...drawn(mark) })),
    lines: [...page.querySelectorAll("[data-values]")].map(line =>
      ({ ...line.dataset, points: line.getAttribute("d").split(/[ML]/).length - 1, heights: heights(line) })),
    slopes: [...page.querySelectorAll("table[data-slopes]")].map(table => ({
      shown: table.getBoundingClientRect().height > 0,
      rows: [...table.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.textContent)),
    })),
    tables: page.querySelectorAll("figure details table").length,
    charts: page.querySelectorAll("figure svg:not(.spark)").length,
  };
};
addEventListener("error", event => found.console.push(event.message));
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    frame.contentWindow.addEventListener("error", event => found.console.push(event.message));
    found.frames.push(look(frame));
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
"#;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;")
}

/// What the browser found in the page, and what it printed.
fn look(browser: &str, directory: &Path, page: &str, dark: bool) -> (Value, String) {
    let frames: Vec<String> = WIDTHS
        .iter()
        .map(|width| {
            format!(
                "<iframe width=\"{width}\" height=\"900\" style=\"border:0\" srcdoc=\"{}\"></iframe>",
                escaped(page)
            )
        })
        .collect();
    let harness = format!(
        "<!doctype html><meta charset=\"utf-8\"><link rel=\"icon\" href=\"data:,\">\
         <meta name=\"color-scheme\" content=\"light dark\"><pre id=\"found\"></pre>\
         <script>{PROBE}</script>{}",
        frames.concat()
    );
    let file = directory.join(if dark { "dark.html" } else { "light.html" });
    fs::write(&file, harness).unwrap();
    let (out, said) = (directory.join("dom"), directory.join("stderr"));
    let mut browser = Command::new(browser)
        .args(HEADLESS)
        .args(["--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1600,1000"])
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
        .arg("--dump-dom")
        .arg(format!("file://{}", file.display()))
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while browser.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(240) {
            browser.kill().unwrap();
            browser.wait().unwrap();
            panic!("the browser did not end: {}", fs::read_to_string(&said).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let dom = fs::read_to_string(&out).unwrap();
    let said = fs::read_to_string(&said).unwrap_or_default();
    let found = dom
        .split("<pre id=\"found\">")
        .nth(1)
        .and_then(|rest| rest.split("</pre>").next())
        .unwrap_or_else(|| panic!("the browser showed no page: {said}"));
    let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    (serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found} {said}")), said)
}

/// Where the JSON has what is asked of the kernel: the list, the name in it, the field.
fn kind(metric: &str) -> Option<(&'static str, &str, &'static str)> {
    let call = metric.strip_prefix("call:").map(|name| ("calls_by_kind", name, "per_request"));
    call.or_else(|| Some(("ring", metric.strip_prefix("ring:")?, "submitted_per_request")))
}

/// What the JSON has for a mark of a chart.
fn expected(result: &Value, mark: &Value) -> Vec<f64> {
    let table = &result["tables"][mark["table"].as_str().unwrap().parse::<usize>().unwrap()];
    let model = mark["model"].as_str().unwrap();
    let row = table["rows"].as_array().unwrap().iter().find(|row| row["model"] == model).unwrap();
    let number = |value: &Value| value.as_f64();
    let cpu = number(&row["cpu_us_per_request"]["median"]);
    let system = number(&row["system_share"]);
    let metric = mark["metric"].as_str().unwrap();
    if let Some((list, name, field)) = kind(metric) {
        let kinds = row["costs"][list].as_array().unwrap().iter();
        return kinds
            .filter(|kind| kind["name"] == name)
            .filter_map(|it| number(&it[field]))
            .collect();
    }
    match metric {
        "percentiles" => row["percentiles"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| number(&it["us"]))
            .collect(),
        "memory_per_connection" => number(&row["untimed"][metric]).into_iter().collect(),
        "cpu_user_us" => vec![cpu.unwrap() - system.unwrap() * cpu.unwrap()],
        "cpu_system_us" => vec![system.unwrap() * cpu.unwrap()],
        metric => number(&row[metric]["median"]).into_iter().collect(),
    }
}

fn check_marks(result: &Value, marks: &[Value]) {
    for mark in marks {
        let value: f64 = mark["value"].as_str().unwrap().parse().unwrap();
        let expected = expected(result, mark);
        assert!(expected.contains(&value), "{mark} is none of {expected:?}");
    }
    // Nothing that was measured is left out.
    for (place, table) in result["tables"].as_array().unwrap().iter().enumerate() {
        let name = place.to_string();
        for row in table["rows"].as_array().unwrap() {
            let has = |metric: &str| {
                marks.iter().any(|mark| {
                    mark["table"].as_str() == Some(name.as_str())
                        && mark["model"] == row["model"]
                        && mark["metric"] == metric
                })
            };
            for metric in ["requests_per_second", "p99_us"] {
                assert_eq!(
                    has(metric),
                    !row[metric].is_null(),
                    "{place} {metric} of {}",
                    row["model"]
                );
            }
            let memory = &row["untimed"]["memory_per_connection"];
            assert_eq!(has("memory_per_connection"), !memory.is_null(), "{place} {}", row["model"]);
            let measured = !row["cpu_us_per_request"].is_null();
            assert_eq!(has("cpu_system_us") || has("cpu_us_per_request"), measured);
            assert_eq!(has("percentiles"), measured);
            for (list, prefix) in [("calls_by_kind", "call:"), ("ring", "ring:")] {
                for one in row["costs"][list].as_array().into_iter().flatten() {
                    let metric = format!("{prefix}{}", one["name"].as_str().unwrap());
                    let (_, _, field) = kind(&metric).unwrap();
                    let drawn = one[field].as_f64().unwrap() >= RARE;
                    assert_eq!(has(&metric), drawn, "{metric} of {}", row["model"]);
                }
            }
        }
    }
}

/// Every row's time series is drawn once, a point for each slice of each round, with the JSON's numbers.
fn check_series(result: &Value, lines: &[Value]) {
    let mut rows = 0;
    for (place, table) in result["tables"].as_array().unwrap().iter().enumerate() {
        for row in table["rows"].as_array().unwrap() {
            let rounds = row["measured"].as_array().unwrap().iter();
            let slices = rounds.flat_map(|round| round["load"]["series"].as_array().unwrap());
            let expected: Vec<f64> =
                slices.map(|slice| slice["requests_per_second"].as_f64().unwrap()).collect();
            let drawn: Vec<&Value> = lines
                .iter()
                .filter(|line| {
                    line["table"].as_str() == Some(&place.to_string())
                        && line["model"] == row["model"]
                        && line["metric"] == "series"
                })
                .collect();
            assert_eq!(drawn.len(), usize::from(!expected.is_empty()), "{place} {}", row["model"]);
            for line in &drawn {
                let values = line["values"].as_str().unwrap().split(' ');
                let values: Vec<f64> = values.map(|value| value.parse().unwrap()).collect();
                assert_eq!(values, expected, "{place} {}", row["model"]);
                assert_eq!(line["points"], expected.len(), "{place} {}", row["model"]);
            }
            rows += drawn.len();
        }
    }
    assert_eq!(lines.len(), rows, "lines of nothing that was measured");
}

/// What is drawn is as long as its value is large, on one axis in all charts of a kind; where that is one of
/// decades, as long as its logarithm.
fn check_lengths(marks: &[Value], lines: &[Value]) {
    let mut kinds: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    // What the lowest line of the grid stands for.
    let mut origins = Vec::new();
    for mark in marks {
        let value: f64 = mark["value"].as_str().unwrap().parse().unwrap();
        let length = mark["length"].as_f64().unwrap();
        let axis = match mark["metric"].as_str().unwrap() {
            "percentiles" => {
                origins.push(value.log10() - length / mark["step"].as_f64().unwrap());
                continue;
            }
            "cpu_user_us" | "cpu_system_us" => "cpu_us_per_request",
            metric if kind(metric).is_some() => "asked",
            metric => metric,
        };
        kinds.entry((axis, mark["shape"].as_str().unwrap())).or_default().push((value, length));
    }
    for line in lines {
        let values = line["values"].as_str().unwrap().split(' ');
        let values = values.map(|value| value.parse::<f64>().unwrap());
        let heights = line["heights"].as_array().unwrap().iter();
        let heights = heights.map(|height| height.as_f64().unwrap());
        kinds.entry(("series", "path")).or_default().extend(values.zip(heights));
    }
    for ((axis, shape), drawn) in kinds {
        let largest = drawn.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let (most, longest) = *largest;
        assert!(longest >= 20.0 || most == 0.0, "{axis} {shape}: {most} is {longest} long");
        let shortest = if shape == "rect" { SHORTEST } else { 0.0 };
        for (value, length) in drawn {
            let expected = (longest * value / most.max(f64::MIN_POSITIVE)).max(shortest);
            assert!(
                (length - expected).abs() <= ROUNDED,
                "{axis} {shape}: {value} is {length} long, and {most} is {longest}"
            );
        }
    }
    let decade = origins[0].round();
    assert!(origins.iter().all(|origin| (origin - decade).abs() < 0.02), "{origins:?}");
}

/// The table of what registered connections cost has the JSON's numbers, and is there if they are.
fn check_slopes(result: &Value, tables: &[Value]) {
    let none = Vec::new();
    let slopes = result["slopes"].as_array().unwrap_or(&none);
    assert_eq!(tables.len(), usize::from(!slopes.is_empty()), "{tables:?}");
    let Some(table) = tables.first() else { return };
    assert_eq!(table["shown"], true, "{table}");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), slopes.len(), "{table}");
    for (row, slope) in rows.iter().zip(slopes) {
        let cell = |column: usize| row[column].as_str().unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let ends = |field: &str| {
            let values = slope[field].as_array().unwrap();
            (number(&values[0]), number(&values[values.len() - 1]))
        };
        let (fewest, most) = ends("connections");
        let (each, interval) = (number(&slope["ns_per_connection"]), &slope["interval"]);
        let (low, high) = (number(&interval[0]), number(&interval[1]));
        assert_eq!(cell(0), slope["model"], "{row}");
        assert_eq!(cell(1), format!("{fewest} to {most}"), "{row}");
        assert_eq!(cell(3), format!("{each:.2} [{low:.2} {high:.2}]"), "{row}");
        assert_eq!(cell(4), slope["growth"], "{row}");
        // Three digits of them.
        let (first, last) = ends("cpu_us_per_request");
        let shown: Vec<f64> = cell(2).split(" to ").map(|cost| cost.parse().unwrap()).collect();
        for (shown, cost) in shown.iter().zip([first, last]) {
            assert!((shown / cost - 1.0).abs() < 0.006, "{row}: {slope}");
        }
        assert_eq!(shown.len(), 2, "{row}");
    }
}

#[test]
fn the_page_is_whole_at_every_width_light_and_dark() {
    let directory = scratch("page");
    let mut results: Vec<(String, String)> =
        [GRID, COSTS, SLOPES].map(|result| (result.to_owned(), page(&directory, result))).into();
    results.push(compared(&directory));
    for (_, page) in &results {
        for outside in
            ["<script", "http://", "https://", "@import", "url(", " src=", "<object", "<embed"]
        {
            assert!(!page.contains(outside), "the page needs {outside}");
        }
    }
    assert!(results[1].1.contains("Asked of the kernel per request, 16 connections"));
    assert!(results[2].1.contains("What a registered connection costs"));
    let Some(browser) = chromium() else { return };
    let shades = [false, true];
    for ((result, page), dark) in results.iter().flat_map(|it| shades.map(|dark| (it, dark))) {
        let result: Value = serde_json::from_str(result).unwrap();
        let (found, said) = look(browser, &directory, page, dark);
        assert_eq!(found["console"], serde_json::json!([]), "{said}");
        assert!(!said.contains(":CONSOLE"), "{said}");
        let frames = found["frames"].as_array().unwrap();
        assert_eq!(frames.len(), WIDTHS.len());
        for (frame, width) in frames.iter().zip(WIDTHS) {
            let marks = frame["marks"].as_array().unwrap();
            let mut short = frame.clone();
            short["marks"] = marks.len().into();
            short["lines"] = frame["lines"].as_array().unwrap().len().into();
            let context = format!("{width} wide, dark {dark}: {short}");
            assert_eq!(frame["width"], width, "{context}");
            assert_eq!(frame["dark"], dark, "{context}");
            assert!(
                frame["overflow"].as_i64().unwrap() <= 0,
                "it is wider than the screen; {context}"
            );
            assert!(frame["smallest_letter"].as_f64().unwrap() >= 9.0, "{context}");
            // WCAG 2.2: 4.5 for text, 3 for what is drawn.
            assert!(frame["contrast"].as_f64().unwrap() >= 4.5, "{context}");
            assert!(frame["line_contrast"].as_f64().unwrap() >= 3.0, "{context}");
            for nothing in ["overlaps", "unreached", "nameless", "doubled"] {
                assert_eq!(frame[nothing], 0, "{nothing}; {context}");
            }
            assert_eq!(frame["outside"], serde_json::json!([]), "{context}");
            assert_eq!(frame["requests"], serde_json::json!([]), "{context}");
            assert_eq!(frame["tables"], frame["charts"], "a table behind every chart; {context}");
            let levels = frame["headings"].as_array().unwrap();
            assert_eq!(levels[0], 1, "{context}");
            for two in levels.windows(2) {
                assert!(two[1].as_i64().unwrap() <= two[0].as_i64().unwrap() + 1, "{context}");
            }
            check_marks(&result, marks);
            check_series(&result, frame["lines"].as_array().unwrap());
            check_lengths(marks, frame["lines"].as_array().unwrap());
            check_slopes(&result, frame["slopes"].as_array().unwrap());
        }
    }
}
