//! Tables that differ in one thing: what one more registered connection costs, and what a file does.

use std::fs;

use serde_json::Value;

use crate::files::{number, own_share};
use crate::{file, kapok, text, turn};

/// What one more registered connection costs, in a sweep: the terminal's text, the page and the JSON.
fn sweep(arguments: &[&str]) -> (String, String, Value) {
    let json = file("slopes.json");
    let to = ["--json", json.to_str().unwrap()];
    let compared = kapok(&[&["compare"], arguments, &to].concat());
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let said = text(&compared.stdout);
    let page = said.lines().find_map(|line| line.strip_prefix("The page with charts: ")).unwrap();
    let page = fs::read_to_string(page).unwrap();
    println!("{said}");
    (said, page, serde_json::from_slice(&fs::read(&json).unwrap()).unwrap())
}

fn slope<'a>(result: &'a Value, model: &str) -> &'a Value {
    let slopes = result["slopes"].as_array().unwrap();
    slopes.iter().find(|slope| slope["model"] == model).unwrap_or_else(|| panic!("{model}"))
}

/// The cost with the most connections, relative to that with the fewest.
fn rise(slope: &Value) -> f64 {
    let costs = slope["cpu_us_per_request"].as_array().unwrap();
    costs[costs.len() - 1].as_f64().unwrap() / costs[0].as_f64().unwrap()
}

#[test]
fn the_same_reply_out_of_memory_and_out_of_a_file_is_an_axis() {
    let _turn = turn();
    let site = file("site");
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("index.html"), [b'k'; 5_000]).unwrap();
    let (_, page, result) = sweep(&[
        "--protocol",
        "http,files",
        "--dir",
        site.to_str().unwrap(),
        "--body",
        "5000",
        "--models",
        "epoll",
        "--connections",
        "4",
        "--rounds",
        "3",
        "--seconds",
        "0.3",
    ]);
    let tables = result["tables"].as_array().unwrap();
    let protocols: Vec<&str> =
        tables.iter().map(|table| table["protocol"].as_str().unwrap()).collect();
    assert_eq!(protocols, ["http", "files"]);
    for table in tables {
        let costs = &table["rows"][0]["cpu_us_per_request"];
        assert!(costs["median"].as_f64().unwrap() > 0.0, "{table}");
        // Nobody else is counted where there is no backend.
        let load = &table["rows"][0]["measured"][0]["load"];
        let (share, own) = (number(&load["cpu_share"]), own_share(load));
        assert!((share / own - 1.0).abs() < 1e-9, "{share} {own}");
    }
    assert!(page.contains("files · 5000 bytes"), "the page tells them apart");
}

#[test]
fn registered_connections_cost_poll_and_not_epoll() {
    const SWEEP: [&str; 12] = [
        "--protocol",
        "echo",
        "--models",
        "poll,epoll",
        "--connections",
        "10,100,1000,3000",
        "--active",
        "10",
        "--rounds",
        "3",
        "--seconds",
        "0.3",
    ];
    let _turn = turn();
    let (said, page, result) = sweep(&SWEEP);
    for model in ["poll", "epoll"] {
        let slope = slope(&result, model);
        assert_eq!(slope["connections"], serde_json::json!([10, 100, 1000, 3000]), "{slope}");
        assert_eq!(
            (&slope["active"], &slope["tables"]),
            (&10.into(), &serde_json::json!([0, 1, 2, 3]))
        );
    }
    let (poll, epoll) = (slope(&result, "poll"), slope(&result, "epoll"));
    // Three thousand pollfds at ten nanoseconds and more each, beside a request of some microseconds.
    assert!(rise(poll) > 3.0 && rise(poll) > 2.0 * rise(epoll), "{poll}{epoll}");
    let each = |slope: &Value| slope["ns_per_connection"].as_f64().unwrap();
    assert!(each(poll) > 5.0 && each(poll) > 5.0 * each(epoll), "{poll}{epoll}");
    // Noise in four points may look like it, now and then: not twice in a row.
    if epoll["growth"] == "grows" {
        let (_, _, again) = sweep(&SWEEP);
        let again = slope(&again, "epoll");
        assert_ne!(again["growth"], "grows", "{epoll}{again}");
    }

    assert!(
        said.contains("What one more registered connection adds to a request, 10 active"),
        "{said}"
    );
    assert!(
        page.contains("<h2>echo · 64 bytes · 10, 100, 1000, 3000 connections, 10 active"),
        "{page}"
    );
    assert!(page.contains("<table data-slopes>") && page.contains("<td>10 to 3000</td>"), "{page}");
    assert!(page.contains(&format!("<td>{:.2} [", each(poll))), "{page}");
}

/// At full size, alone on the machine: `KAPOK_SCALE=full`, `--release`, `--nocapture`.
#[test]
fn ten_thousand_connections_for_every_model_that_can_and_a_reason_for_each_that_cannot() {
    if std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full") {
        let _turn = turn();
        let (_, _, result) = sweep(&["--c10k"]);
        let tables = result["tables"].as_array().unwrap();
        let most = &tables[tables.len() - 1];
        assert_eq!((&most["connections"], &most["active"]), (&10_000.into(), &10.into()));
        for row in most["rows"].as_array().unwrap() {
            let model = row["model"].as_str().unwrap();
            let measured = row["measured"].as_array().unwrap().len();
            let why = row["trouble"].as_str();
            match model {
                "select" | "fiber-select" => {
                    assert!(why.is_some_and(|why| why.contains("FD_SETSIZE")), "{model}: {why:?}");
                }
                "thread-pool" => {
                    assert!(why.is_some_and(|why| why.contains("worker")), "{model}: {why:?}");
                }
                _ => assert!(measured >= 5 && why.is_none(), "{model}: {measured}, {why:?}"),
            }
            if model == "busy-poll" {
                let idle = row["idle_cpu_share"].as_f64().unwrap();
                assert!(idle > 0.9, "busy polling, idle: {idle}");
            }
        }
        for model in ["select", "poll", "busy-poll"] {
            assert_eq!(slope(&result, model)["growth"], "grows", "{}", slope(&result, model));
        }
        for model in ["epoll", "mio", "uring", "tokio", "fiber-epoll", "fiber-uring"] {
            assert_eq!(slope(&result, model)["growth"], "flat", "{}", slope(&result, model));
        }
    } else {
        eprintln!("SKIPPED: a quarter of an hour alone on the machine; KAPOK_SCALE=full runs it");
    }
}
