//! The programs, and what they are run with.

use super::{Case, How, Step, terminal, unanswered};
use crate::place::{Place, Which};

/// Debian's own, whatever else is in the path: the modules are its.
const PYTHON: &str = "/usr/bin/python3";
const RUBY: &str = "/usr/bin/ruby";

pub(crate) static CASES: [Case; 17] = [
    Case {
        name: "psql",
        title: "psql",
        server: Which::Postgres,
        remark: "",
        program: "psql",
        package: "postgresql-client",
        present: &["--version"],
        how: How::Alike(psql),
    },
    Case {
        name: "psql_interrupted",
        title: "psql at a terminal",
        server: Which::Postgres,
        remark: "Its key for interrupts cancels the query that runs.",
        program: "psql",
        package: "postgresql-client",
        present: &["--version"],
        how: How::Specially(terminal::psql_is_interrupted),
    },
    Case {
        name: "pgbench",
        title: "pgbench -c8 -j4",
        server: Which::Postgres,
        remark: "Its own threads stay threads.",
        program: "/usr/bin/pgbench",
        package: "postgresql-contrib",
        present: &["--version"],
        how: How::Alike(pgbench),
    },
    Case {
        name: "redis_cli",
        title: "redis-cli",
        server: Which::Redis,
        remark: "",
        program: "redis-cli",
        package: "redis-tools",
        present: &["--version"],
        how: How::Alike(redis_cli),
    },
    Case {
        name: "redis_benchmark",
        title: "redis-benchmark -P 16",
        server: Which::Redis,
        remark: "",
        program: "redis-benchmark",
        package: "redis-tools",
        present: &["--version"],
        how: How::Alike(redis_benchmark),
    },
    Case {
        name: "curl",
        title: "curl",
        server: Which::Nginx,
        remark: "",
        program: "curl",
        package: "curl",
        present: &["--version"],
        how: How::Alike(curl),
    },
    Case {
        name: "curl_unanswered",
        title: "curl, for a name",
        server: Which::Nothing,
        remark: "Nobody answers; `--max-time` ends it, also with `--threads-as-fibers`.",
        program: "curl",
        package: "curl",
        present: &["--version"],
        how: How::Specially(unanswered::curl),
    },
    Case {
        name: "python_unanswered",
        title: "Python, for 100 names",
        server: Which::Nothing,
        remark: "Nobody answers; a ticker goes on, also with `--threads-as-fibers`.",
        program: PYTHON,
        package: "python3",
        present: &["-c", "import socket, threading"],
        how: How::Specially(unanswered::python),
    },
    Case {
        name: "cpython",
        title: "CPython's own tests of sockets",
        server: Which::Nothing,
        remark: "`test_socket`, `test_select`, `test_poll`, `test_epoll`, `test_selectors`.",
        program: PYTHON,
        package: "libpython3.11-testsuite",
        present: &["-c", "import test.test_socket"],
        how: How::Alike(|_| vec![step(&["-c", include_str!("cpython.py")], "", true, all)]),
    },
    Case {
        name: "psycopg2",
        title: "Python with psycopg2",
        server: Which::Postgres,
        remark: "",
        program: PYTHON,
        package: "python3-psycopg2",
        present: &["-c", "import psycopg2"],
        how: How::Alike(|place| script(place, "-c", include_str!("psycopg2.py"))),
    },
    Case {
        name: "pymysql",
        title: "Python with pymysql",
        server: Which::MariaDb,
        remark: "",
        program: PYTHON,
        package: "python3-pymysql",
        present: &["-c", "import pymysql"],
        how: How::Alike(|place| script(place, "-c", include_str!("pymysql.py"))),
    },
    Case {
        name: "python_redis",
        title: "Python with redis",
        server: Which::Redis,
        remark: "",
        program: PYTHON,
        package: "python3-redis",
        present: &["-c", "import redis"],
        how: How::Alike(|place| script(place, "-c", include_str!("redis.py"))),
    },
    Case {
        name: "urllib",
        title: "Python with urllib",
        server: Which::Nginx,
        remark: "",
        program: PYTHON,
        package: "python3",
        present: &["-c", "import ssl, urllib.request"],
        how: How::Alike(|place| script(place, "-c", include_str!("urllib.py"))),
    },
    Case {
        name: "ruby_pg",
        title: "Ruby with pg",
        server: Which::Postgres,
        remark: "",
        program: RUBY,
        package: "ruby-pg",
        present: &["-rpg", "-e", ""],
        how: How::Alike(|place| script(place, "-e", include_str!("pg.rb"))),
    },
    Case {
        name: "ruby_mysql2",
        title: "Ruby with mysql2",
        server: Which::MariaDb,
        remark: "",
        program: RUBY,
        package: "ruby-mysql2",
        present: &["-rmysql2", "-e", ""],
        how: How::Alike(|place| script(place, "-e", include_str!("mysql2.rb"))),
    },
    Case {
        name: "active_record_pg",
        title: "Ruby with ActiveRecord on pg",
        server: Which::Postgres,
        remark: "",
        program: RUBY,
        package: "ruby-activerecord ruby-pg",
        present: &["-ractive_record", "-rpg", "-e", ""],
        how: How::Alike(|place| {
            script_for(place, "-e", include_str!("active_record.rb"), &["postgresql", "pg_sleep"])
        }),
    },
    Case {
        name: "active_record_mysql2",
        title: "Ruby with ActiveRecord on mysql2",
        server: Which::MariaDb,
        remark: "",
        program: RUBY,
        package: "ruby-activerecord ruby-mysql2",
        present: &["-ractive_record", "-rmysql2", "-e", ""],
        how: How::Alike(|place| {
            script_for(place, "-e", include_str!("active_record.rb"), &["mysql2", "sleep"])
        }),
    },
];

fn all(text: &str) -> String {
    text.to_owned()
}

/// The words and not the figures, nor what is said of tables that were there or not.
fn words(text: &str) -> String {
    let figures = |letter: char| letter.is_ascii_digit() || letter == '.';
    let lines = text.lines().filter(|line| !line.starts_with("NOTICE"));
    lines.map(|line| line.replace(figures, "").trim().to_owned() + "\n").collect()
}

/// What pgbench(1) says, with the figures that are no times: clients, threads, transactions, failures.
fn transactions(text: &str) -> String {
    const FIGURES: [&str; 6] = [
        "scaling factor",
        "number of clients",
        "number of threads",
        "number of transactions per client",
        "number of transactions actually processed",
        "number of failed transactions",
    ];
    let counted = |line: &&str| FIGURES.iter().any(|figure| line.starts_with(figure));
    words(text) + &text.lines().filter(counted).fold(String::new(), |all, line| all + line + "\n")
}

fn step(arguments: &[&str], input: &str, waits: bool, same: fn(&str) -> String) -> Step {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Step { arguments, input: input.to_owned(), waits, same }
}

/// A script, told the port and the certificate.
fn script(place: &Place, option: &str, text: &str) -> Vec<Step> {
    script_for(place, option, text, &[])
}

fn script_for(place: &Place, option: &str, text: &str, more: &[&str]) -> Vec<Step> {
    let (port, certificate) = (place.port.to_string(), place.certificate.display().to_string());
    let mut arguments = vec![option, text, &port, &certificate];
    arguments.extend(more);
    vec![step(&arguments, "", true, all)]
}

fn psql(place: &Place) -> Vec<Step> {
    let server = format!("postgresql://kapok@127.0.0.1:{}/postgres", place.port);
    let with = |more: &[&str], input: &str, waits: bool| {
        let arguments = [&["--no-psqlrc", &server], more].concat();
        step(&arguments, input, waits, all)
    };
    vec![
        with(
            &["-c", "select pg_sleep(0.2)", "-c", "select n, n * n from generate_series(1, 9) n"],
            "",
            true,
        ),
        with(&["-v", "ON_ERROR_STOP=1", "-c", "select nonsense"], "", false),
        with(
            &[],
            "select pg_sleep(0.1);\n\
             \\copy (select * from generate_series(1, 9999)) to stdout\n\
             \\! echo a shell\n",
            true,
        ),
        // The server that is not there, and the one that ends the connection.
        step(&["postgresql://kapok@127.0.0.1:1/postgres", "-c", "select 1"], "", false, all),
        with(&["-c", "select pg_terminate_backend(pg_backend_pid())"], "", false),
    ]
}

fn pgbench(place: &Place) -> Vec<Step> {
    let port = place.port.to_string();
    let server = ["-h", "127.0.0.1", "-p", &port, "-U", "kapok", "postgres"];
    let with = |more: &[&str]| step(&[more, &server[..]].concat(), "", true, transactions);
    vec![
        with(&["--initialize", "--quiet", "--init-steps=dtgvp"]),
        with(&["--client=8", "--jobs=4", "--transactions=25", "--no-vacuum"]),
        with(&["--client=8", "--jobs=1", "--transactions=25", "--no-vacuum"]),
        with(&[
            "--client=2",
            "--transactions=25",
            "--no-vacuum",
            "--rate=500",
            "--protocol=prepared",
        ]),
    ]
}

fn redis_cli(place: &Place) -> Vec<Step> {
    let port = place.port.to_string();
    // What is answered at once needs no wait.
    let with = |more: &[&str], input: &str, waits: bool| {
        let arguments = [&["-h", "127.0.0.1", "-p", &port], more].concat();
        step(&arguments, input, waits, all)
    };
    vec![
        with(&["BLPOP", "nothing", "0.2"], "", true),
        with(&[], "SET key value\nGET key\nHGET key x\nPING\n", false),
        with(&["-r", "3", "-i", "0.05", "PING"], "", true),
        with(&["--pipe"], "SET piped value\r\nGET piped\r\n", false),
        step(&["-h", "127.0.0.1", "-p", "1", "PING"], "", false, all),
    ]
}

fn redis_benchmark(place: &Place) -> Vec<Step> {
    let port = place.port.to_string();
    // Which rates it shows in between depends on how fast it is.
    let names = |text: &str| {
        let last = |line: &str| line.rsplit('\r').next().unwrap_or_default().to_owned();
        let name = |line: String| line.split(':').next().unwrap_or_default().to_owned() + "\n";
        text.lines().map(last).map(name).collect()
    };
    let arguments = ["-h", "127.0.0.1", "-p", &port, "-P", "16", "-n", "20000", "-q"];
    vec![
        step(&[&arguments[..], &["-t", "set,get,lpush"]].concat(), "", true, names),
        step(&[&arguments[..], &["-t", "ping", "--threads", "2"]].concat(), "", false, names),
    ]
}

fn curl(place: &Place) -> Vec<Step> {
    let certificate = place.certificate.display().to_string();
    let page = |path: &str| format!("https://localhost:{}{path}", place.port);
    let with = |more: &[&str], waits: bool| {
        step(&[&["-sS", "--cacert", &certificate], more].concat(), "", waits, all)
    };
    // How long it took is in the words.
    let without_figures =
        |more: &[&str]| step(&[&["-sS", "--cacert", &certificate], more].concat(), "", true, words);
    vec![
        with(&[&page("/slow"), &page("/"), &page("/slow")], true),
        with(
            &[
                "-i",
                "--http1.1",
                "-w",
                "%{http_code} %{size_download}",
                "-o",
                "/dev/null",
                &page("/slow"),
            ],
            true,
        ),
        without_figures(&["--max-time", "0.3", &page("/never")]),
        with(&["--no-progress-meter", "--parallel", &page("/slow"), &page("/slow")], true),
        // A certificate that it does not trust.
        step(&["-sS", &page("/")], "", false, all),
        with(&["https://127.0.0.1:1/"], false),
    ]
}
