//! The manifest of Kubernetes: its commands are run, and its parts must agree.

use std::env;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{KAPOK, Server, assert_sum, chapter, listen, text, with};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kapok-lab/kubernetes/load.yaml");

/// The argument lists of the manifest, in its order.
fn manifest() -> Vec<Vec<String>> {
    let manifest = fs::read_to_string(MANIFEST).unwrap();
    let lists = manifest.lines().filter_map(|line| line.trim().strip_prefix("args: "));
    lists.map(|list| serde_json::from_str(list).unwrap()).collect()
}

#[test]
fn the_commands_of_the_kubernetes_manifest_do_what_it_says() {
    let server = Server::start(&["--protocol", "http"]);
    let [joining, generating] = &manifest()[..] else { panic!("{:?}", manifest()) };
    let joining = with(joining, &[("0.0.0.0:7411", "127.0.0.1:0")]);
    let words: Vec<&str> = joining.iter().map(String::as_str).collect();
    let (joining, addr, mut errors) = listen(&words);

    // Not a generator, and one that goes away again.
    TcpStream::connect(&addr).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(TcpStream::connect(&addr).unwrap());
    let mut turned_away = String::new();
    for _ in 0..2 {
        errors.read_line(&mut turned_away).unwrap();
    }
    assert!(turned_away.contains("went away before it was ready"), "{turned_away}");
    assert!(turned_away.contains("is no generator"), "{turned_away}");
    // And as many as there are generators, who say nothing and stay.
    let silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&addr).unwrap()).collect();

    let changes: &[(&str, &str)] = &[
        ("server:8080", &server.addr),
        ("kapok-load:7411", &addr),
        ("250", "5"),
        ("10", "0.5"),
        ("2", "0.1"),
    ];
    let generating = with(generating, changes);
    let generators: Vec<Child> = (0..4)
        .map(|_| Command::new(KAPOK).args(&generating).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let mut reports = 0;
    for generator in generators {
        let output = generator.wait_with_output().unwrap();
        assert!(output.status.success());
        // Its own part, for the pod's log.
        reports += usize::from(text(&output.stdout).contains("latency µs"));
    }
    assert_eq!(reports, 4);
    let joined = joining.wait_with_output().unwrap();
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    assert_eq!(joined.status.code(), Some(0), "{said}");
    let joined: Value = serde_json::from_slice(&joined.stdout).unwrap();
    assert_eq!(joined["parts"].as_array().unwrap().len(), 4);
    assert_eq!(joined["connections"], 20);
    assert_sum(&joined);
    drop(silent);
}

/// Reads YAML and writes JSON.
const READER: &str = "import json, sys, yaml; \
                      json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";

/// The documents of the manifest, if there is anything here that reads YAML.
fn documents() -> Option<Vec<Value>> {
    let read = ["/usr/bin/python3", "python3"].into_iter().find_map(|python| {
        let known = Command::new(python).args(["-c", "import yaml"]).output();
        known.ok().filter(|known| known.status.success())?;
        Some(Command::new(python).args(["-c", READER, MANIFEST]).output().unwrap())
    });
    assert!(
        read.is_some() || env::var_os("CI").is_none(),
        "no python3 has yaml: apt install python3-yaml"
    );
    let Some(read) = read else {
        eprintln!("SKIPPED: no python3 has yaml (apt install python3-yaml)");
        return None;
    };
    assert!(read.status.success(), "{}", text(&read.stderr));
    Some(serde_json::from_slice(&read.stdout).unwrap())
}

fn at<'a>(document: &'a Value, place: &str) -> &'a Value {
    document.pointer(place).unwrap_or_else(|| panic!("{place} of {document}"))
}

/// A job's one container.
fn container(job: &Value) -> &Value {
    assert_eq!(at(job, "/spec/template/spec/containers").as_array().unwrap().len(), 1);
    at(job, "/spec/template/spec/containers/0")
}

/// What the container is told. A number without quotes would be none of it.
fn arguments(job: &Value) -> Vec<String> {
    let words = at(container(job), "/args").as_array().unwrap();
    words.iter().map(|word| word.as_str().expect("it is a text").to_owned()).collect()
}

/// The word behind an option.
fn behind<'a>(arguments: &'a [String], option: &str) -> &'a str {
    let place = arguments.iter().position(|word| word == option);
    &arguments[place.unwrap_or_else(|| panic!("{option} in {arguments:?}")) + 1]
}

#[test]
fn the_parts_of_the_kubernetes_manifest_agree() {
    let Some(documents) = documents() else { return };
    let [service, joining, generating, policy] = &documents[..] else { panic!("{documents:?}") };
    for (document, kind, version) in [
        (service, "Service", "v1"),
        (joining, "Job", "batch/v1"),
        (generating, "Job", "batch/v1"),
        (policy, "NetworkPolicy", "networking.k8s.io/v1"),
    ] {
        assert_eq!(at(document, "/kind"), kind);
        assert_eq!(at(document, "/apiVersion"), version);
    }
    let (joins, generates) = (arguments(joining), arguments(generating));
    // What the other test has run.
    assert_eq!(manifest(), [joins.clone(), generates.clone()]);

    // As many are awaited as are started, at once.
    let generators = behind(&joins, "--generators");
    for count in ["/spec/parallelism", "/spec/completions"] {
        assert_eq!(at(generating, count).to_string(), generators, "{count}");
    }
    let (_, port) = behind(&joins, "--listen").rsplit_once(':').unwrap();
    let whose = behind(&generates, "--part-of");
    assert_eq!(format!("{}:{port}", at(service, "/metadata/name").as_str().unwrap()), whose);
    for number in [
        at(service, "/spec/ports/0/port"),
        at(container(joining), "/ports/0/containerPort"),
        at(policy, "/spec/ingress/0/ports/0/port"),
    ] {
        assert_eq!(number.to_string(), port);
    }

    // The name leads to who joins, whom the generators reach and nobody else.
    let labels = |job| at(job, "/spec/template/metadata/labels");
    assert_ne!(labels(joining), labels(generating));
    assert_eq!(at(service, "/spec/selector"), labels(joining));
    assert_eq!(at(policy, "/spec/podSelector/matchLabels"), labels(joining));
    let from = "/spec/ingress/0/from/0/podSelector/matchLabels";
    assert_eq!(at(policy, from), labels(generating));
    let apart = "/spec/template/spec/topologySpreadConstraints/0/labelSelector/matchLabels";
    assert_eq!(at(generating, apart), labels(generating));

    // Nothing is tried again by itself, and no job is ended before its time.
    let seconds = |words: &[String], option| behind(words, option).parse::<u64>().unwrap();
    let wait = seconds(&joins, "--wait");
    assert_eq!(seconds(&generates, "--wait"), wait);
    let longest = wait + seconds(&generates, "--warmup") + seconds(&generates, "--seconds");
    for job in [joining, generating] {
        assert_eq!(at(job, "/spec/backoffLimit"), 0);
        assert_eq!(at(job, "/spec/template/spec/restartPolicy"), "Never");
        let deadline = at(job, "/spec/activeDeadlineSeconds").as_u64().unwrap();
        assert!(deadline > longest, "{deadline} s of {longest} s");
        assert_eq!(*at(container(job), "/command"), serde_json::json!(["kapok"]));
        assert_eq!(at(container(job), "/image"), at(container(joining), "/image"));
    }

    let listen = behind(&joins, "--listen");
    for command in [
        format!("`kapok load --listen {listen} --generators {generators}`"),
        format!("`kapok load ADDR --part-of {whose}`"),
    ] {
        let chapter = chapter().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(chapter.contains(&command), "{command} is not in docs/joining.md");
    }
}
