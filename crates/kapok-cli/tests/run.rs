//! `kapok run` and `kapok doctor --libc`, with programs as people have them. One that is not installed
//! is a skip that says so, or a failure where `CI` is set.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The library, which is another package's, so it is built here, once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_kapok")).ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "kapok-preload"]);
        build.arg("--target-dir").arg(target);
        assert!(build.status().unwrap().success(), "{build:?}");
        target.join("debug/libkapok.so")
    })
}

fn kapok(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kapok"));
    command.args(arguments).env("KAPOK_LIBRARY", library()).env("NO_COLOR", "1");
    command.env_remove("LD_PRELOAD").stdin(Stdio::null());
    command
}

/// Unpredictable names do not matter here, collisions do.
fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-{name}"));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Copies a program that is to be executed, in a process of its own: what this one has open for writing, a
/// child that another test starts has for a moment too, and until then nobody may execute it (ETXTBSY).
fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-L").args([from, to]).status().unwrap().success());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Says that something is skipped, and why. Where everything has to be there, with `CI` in the
/// environment, that is a failure.
#[track_caller]
fn skip(why: &str) {
    let everything = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
    assert!(!everything, "{why}, and with CI in the environment nothing is skipped");
    // Past the harness, which keeps what the macros print to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Whether a program is installed; if not, says that something is skipped.
fn is_there(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&places).any(|place| place.join(program).is_file());
    if !there {
        skip(&format!("there is no {program}"));
    }
    there
}

/// The line of the statistics that has the sums, and the counts before its words.
fn suspensions(stderr: &str) -> u64 {
    // The last: those of children come before.
    let line = stderr.lines().rfind(|line| line.contains("suspensions ")).expect(stderr);
    let (_, rest) = line.split_once("suspensions ").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

/// What the program itself said to standard error.
fn without_statistics(stderr: &str) -> String {
    stderr
        .lines()
        .filter(|line| !line.starts_with("kapok: "))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// Runs a program by itself and with its main on a fiber: output and status have to be the same. Gives
/// the suspensions.
fn compare(program: &[&str], input: &[u8]) -> u64 {
    let by_itself = with_input(Command::new(program[0]).args(&program[1..]), input);
    let mut hooked = kapok(&["run", "--main-fiber", "--stats", "--"]);
    let hooked = with_input(hooked.args(program), input);
    let said = text(&hooked.stderr);
    assert_eq!(hooked.status.code(), by_itself.status.code(), "{program:?}: {said}");
    assert_eq!(text(&hooked.stdout), text(&by_itself.stdout), "{program:?}: {said}");
    assert_eq!(without_statistics(&said), text(&by_itself.stderr), "{program:?}");
    suspensions(&said)
}

fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        // A program may end before it has read everything.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// A server of one page that lets its clients wait.
fn slow_web_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                thread::sleep(Duration::from_millis(50));
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\n");
                thread::sleep(Duration::from_millis(50));
                let _ = stream.write_all(b"slowly");
            });
        }
    });
    format!("http://{address}/")
}

#[test]
fn exit_status_and_streams_are_the_programs() {
    for status in [0, 7, 255] {
        let script = format!("read line; echo \"$line\"; echo oops >&2; exit {status}");
        compare(&["sh", "-c", &script], b"a line\n");
    }
    // By a signal, as the program died itself.
    use std::os::unix::process::ExitStatusExt;
    let killed =
        kapok(&["run", "--main-fiber", "--", "sh", "-c", "kill -TERM $$"]).output().unwrap();
    assert_eq!(killed.status.signal(), Some(libc::SIGTERM));
    compare(&["cat"], &vec![b'x'; 200_000]);
    // Whose environment is emptied is a program like any other.
    let bare = kapok(&["run", "--main-fiber", "--", "env", "-i", "sh", "-c", "echo $0"]).output();
    assert_eq!(bare.unwrap().stdout, b"sh\n");
}

#[test]
fn what_is_preloaded_already_stays() {
    let other = scratch("preloads").join("libother.so");
    // Any library will do.
    let source = "int kapok_test_other(void) { return 1; }";
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(&other);
    if !is_there("cc") {
        return;
    }
    assert!(with_input(&mut compiler, source.as_bytes()).status.success());
    let mut command = kapok(&["run", "--", "sh", "-c", "echo $LD_PRELOAD"]);
    let preloads = text(&command.env("LD_PRELOAD", &other).output().unwrap().stdout);
    let library = fs::canonicalize(library()).unwrap();
    assert_eq!(preloads.trim(), format!("{}:{}", library.display(), other.display()));
}

#[test]
fn a_library_that_is_not_there_is_said_with_the_places() {
    let mut command = kapok(&["run", "--", "true"]);
    let output = command.env("KAPOK_LIBRARY", "/no/such/libkapok.so").output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/no/such/libkapok.so") && said.contains("KAPOK_LIBRARY"), "{said}");

    let directory = scratch("places");
    let (bin, lib) = (directory.join("bin"), directory.join("lib/kapok"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    copy_program(Path::new(env!("CARGO_BIN_EXE_kapok")), &bin.join("kapok"));
    let alone = || {
        let mut command = Command::new(bin.join("kapok"));
        command.args(["run", "--", "sh", "-c", "echo $LD_PRELOAD"]).env_remove("KAPOK_LIBRARY");
        command.env_remove("LD_PRELOAD").output().unwrap()
    };
    let said = text(&alone().stderr);
    for place in ["bin/libkapok.so", "lib/kapok/libkapok.so", "cargo build -p kapok-preload"] {
        assert!(said.contains(place), "{place}: {said}");
    }
    // Of another kind.
    let program = Path::new("/bin/sh");
    fs::copy(program, lib.join("libkapok.so")).unwrap();
    let other = alone();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("is not Kapok's library"), "{}", text(&other.stderr));
    fs::remove_file(lib.join("libkapok.so")).unwrap();
    fs::hard_link(library(), lib.join("libkapok.so")).unwrap();
    assert!(text(&alone().stdout).trim().ends_with("lib/kapok/libkapok.so"));
    fs::hard_link(library(), bin.join("libkapok.so")).unwrap();
    assert!(text(&alone().stdout).trim().ends_with("bin/libkapok.so"));
}

fn executable(path: &Path, contents: &[u8]) {
    fs::write(path, contents).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `kapok run` and `kapok doctor --libc` say of a program that cannot be hooked.
fn assert_refused(program: &Path, status: i32, word: &str) {
    let program = program.to_str().unwrap();
    let output = kapok(&["run", "--", program]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{program}: {said}");
    assert!(said.contains(word) && output.stdout.is_empty(), "{program}: {said}");
    let output = kapok(&["doctor", "--libc", program]).output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{program}: {said}");
    assert!(said.contains(word), "{program}: {said}");
}

#[test]
fn what_cannot_be_hooked_is_refused_with_the_reason() {
    let directory = scratch("refused");
    assert_refused(&directory.join("nothing"), 127, "No such file");
    assert_refused(Path::new("no-such-program-anywhere"), 127, "no such program in PATH");
    assert_refused(&directory, 126, "not an executable file");
    let plain = directory.join("plain");
    fs::write(&plain, "text").unwrap();
    assert_refused(&plain, 126, "not an executable file");
    let script = directory.join("script");
    executable(&script, b"#!/no/such/interpreter\n");
    assert_refused(&script, 126, "/no/such/interpreter");
    let narrow = directory.join("narrow");
    executable(&narrow, b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    assert_refused(&narrow, 126, "32 bits");
    let damaged = directory.join("damaged");
    executable(&damaged, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    assert_refused(&damaged, 126, "damaged");
    if is_there("cc") {
        let source = b"int main(void) { return 0; }";
        for (name, flags, word) in [
            ("static", &["-static"][..], "statically"),
            ("static-pie", &["-static-pie", "-fPIE"], "statically"),
            ("musl", &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"], "musl"),
        ] {
            let program = directory.join(name);
            let mut compiler = Command::new("cc");
            compiler.args(["-x", "c", "-", "-o"]).arg(&program).args(flags);
            assert!(with_input(&mut compiler, source).status.success(), "{name}");
            assert_refused(&program, 126, word);
        }
        // By the mark that Go's linker leaves.
        let go = directory.join("go");
        let marked = b"__attribute__((section(\".go.buildinfo\"))) int mark = 1; \
                       int main(void) { return 0; }";
        let mut compiler = Command::new("cc");
        compiler.args(["-x", "c", "-", "-o"]).arg(&go);
        assert!(with_input(&mut compiler, marked).status.success());
        assert_refused(&go, 126, "Go makes its system calls itself");
        // A script is what its interpreter is.
        let script = directory.join("script-of-static");
        let line = format!("#!{}\n", directory.join("static").display());
        executable(&script, line.as_bytes());
        assert_refused(&script, 126, "statically");
        let script = directory.join("script-by-env");
        let line = format!("#!/usr/bin/env -S A=b {}\n", directory.join("static").display());
        executable(&script, line.as_bytes());
        assert_refused(&script, 126, "statically");
    }
    let privileged = directory.join("privileged");
    fs::copy(fs::canonicalize("/bin/sh").unwrap(), &privileged).unwrap();
    if chown(&privileged, Some(65_534), None).is_err() {
        eprintln!("SKIPPED: only root can make a program of another user's");
        return;
    }
    // After chown(2), which takes the bit away.
    fs::set_permissions(&privileged, fs::Permissions::from_mode(0o4755)).unwrap();
    assert_refused(&privileged, 126, "setuid");
}

#[test]
fn usage_is_exit_status_2() {
    for arguments in [&["run"][..], &["run", "--main-fibre", "--", "true"], &["run", "--stats"]] {
        assert_eq!(kapok(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn main_has_the_stack_that_it_would_have_had() {
    if !is_there("cc") {
        return;
    }
    // Six of the eight megabytes, touched page by page.
    let source = b"#include <stdio.h>\nint main(void) { volatile char deep[6 << 20]; \
        for (int at = (6 << 20) - 1; at >= 0; at -= 4096) deep[at] = 1; \
        return printf(\"deep\\n\") == 5 ? 3 : 4; }";
    let program = scratch("stack").join("deep");
    let mut compiler = Command::new("cc");
    compiler.args(["-O0", "-x", "c", "-", "-o"]).arg(&program);
    assert!(with_input(&mut compiler, source).status.success());
    let mut command = kapok(&["run", "--main-fiber", "--"]);
    let output = command.arg(&program).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"deep\n"[..]));
}

#[test]
fn functions_of_atexit_and_children_run_on() {
    if !is_there("cc") {
        return;
    }
    let source = br#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void at_exit(void) { usleep(1000); printf("at exit of %s\n", getenv("WHO")); }
__attribute__((constructor)) static void before(void) { setenv("WHO", "the parent", 1); }
int main(int argc, char **argv, char **environment) {
    int status;
    atexit(at_exit);
    fflush(stdout);
    if (environment != environ || argc != 2 || argv[2] != NULL) return 9;
    pid_t child = fork();
    if (child == 0) { setenv("WHO", "the child", 1); return 5; }
    waitpid(child, &status, 0);
    printf("the child ended with %d\n", WEXITSTATUS(status));
    return 6;
}
"#;
    let program = scratch("exits").join("exits");
    let mut compiler = Command::new("cc");
    compiler.args(["-D_GNU_SOURCE", "-x", "c", "-", "-o"]).arg(&program);
    let built = with_input(&mut compiler, source);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let program = program.to_str().unwrap();
    compare(&[program, "one"], b"");
}

#[test]
fn curl_gets_what_it_gets() {
    if !is_there("curl") {
        return;
    }
    let url = slow_web_server();
    assert!(compare(&["curl", "-sS", &url], b"") > 0);
    compare(&["curl", "-s", "--max-time", "0.02", &url], b"");
    // Refused: its own status, and its own words.
    compare(&["curl", "-s", "http://127.0.0.1:1/"], b"");
}

#[test]
fn python_sleeps_and_talks() {
    if !Path::new("/usr/bin/python3").exists() {
        skip("there is no /usr/bin/python3");
        return;
    }
    let url = slow_web_server();
    let program = format!(
        "import time, urllib.request, sys\n\
         time.sleep(0.05)\n\
         print(urllib.request.urlopen('{url}').read())\n\
         sys.exit(3)\n"
    );
    assert!(compare(&["/usr/bin/python3", "-c", &program], b"") > 0);
    let program = "import socket, threading\n\
         a, b = socket.socketpair()\n\
         t = threading.Timer(0.05, lambda: b.send(b'late'))\n\
         t.start()\n\
         print(a.recv(10))\n\
         a.settimeout(0.05)\n\
         try:\n    a.recv(1)\nexcept TimeoutError as error:\n    print(error)\n\
         import subprocess\n\
         print(subprocess.run(['sh', '-c', 'sleep 0.05; echo child; exit 4'], stdout=subprocess.PIPE))\n";
    assert!(compare(&["/usr/bin/python3", "-c", program], b"") > 0);
}

/// A redis-server of our own.
struct Redis(Child, u16);

impl Redis {
    fn start() -> Redis {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Redis(child, port);
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "redis-server does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn redis_cli_waits_for_a_list() {
    if !is_there("redis-cli") || !is_there("redis-server") {
        return;
    }
    let redis = Redis::start();
    let port = redis.1.to_string();
    let cli = ["redis-cli", "-h", "127.0.0.1", "-p", &port];
    let with = |arguments: &[&'static str]| -> Vec<&str> { [&cli[..], arguments].concat() };
    assert!(compare(&with(&["BLPOP", "empty", "0.2"]), b"") > 0);
    compare(&with(&["SET", "key", "a value"]), b"");
    compare(&with(&[]), b"GET key\nHGET key x\nPING\n");
}

#[test]
fn doctor_tells_active_from_bypassed() {
    let report = |arguments: &[&str]| -> Value {
        let output = kapok(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
    };
    let hooks = report(&["doctor", "--libc", "--json"]);
    let hooks: Vec<&str> =
        hooks["hooks"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(hooks.contains(&"recv"), "{hooks:?}");
    assert!(hooks.iter().all(|name| !name.starts_with("kapok") && !name.contains("start_main")));
    if !is_there("cc") {
        return;
    }
    let directory = scratch("doctor");
    let compile = |name: &str, source: &str, flags: &[&str]| {
        let program = directory.join(name);
        let mut compiler = Command::new("cc");
        compiler.args(["-x", "c", "-", "-x", "none", "-o"]).arg(&program).args(flags);
        let built = with_input(&mut compiler, source.as_bytes());
        assert!(built.status.success(), "{name}: {}", text(&built.stderr));
        program
    };
    let calls = "#include <sys/socket.h>\n#include <unistd.h>\n#include <dlfcn.h>\n\
        int call(void) { char c; return recv(0, &c, 1, 0) < 0; }\n";
    let uses = format!("{calls} int main(void) {{ return call() && dlopen(\"x\", 2); }}");
    let plain = compile("plain", &uses, &[]);
    let plain_name = plain.to_str().unwrap().to_owned();
    let found = report(&["doctor", "--libc", &plain_name, "--json"]);
    assert_eq!((&found["active"], &found["linked"]), (&true.into(), &false.into()), "{found}");
    let object = &found["objects"][0];
    assert_eq!(object["active"], serde_json::json!(["recv"]), "{found}");
    assert!(object["notes"].to_string().contains("RTLD_DEEPBIND"), "{found}");
    let libc = found["objects"]
        .as_array()
        .unwrap()
        .iter()
        .find(|object| object["path"].as_str().unwrap().contains("libc.so"));
    assert!(libc.unwrap()["notes"].to_string().contains("inside the C library"), "{found}");

    let note = "thread-local variables";
    assert!(!object["notes"].to_string().contains(note), "{found}");
    let locals = compile("locals", &format!("{uses}\n__thread int local;\n"), &[]);
    let found = report(&["doctor", "--libc", locals.to_str().unwrap(), "--json"]);
    assert!(found["objects"][0]["notes"].to_string().contains(note), "{found}");

    // A program with a recv of its own, that its library gets too.
    let library = compile("libcalls.so", calls, &["-shared", "-fPIC"]);
    let own = "#include <sys/types.h>\nint call(void);\n\
        ssize_t recv(int f, void *b, size_t n, int g) { (void)f, (void)b, (void)n, (void)g; return 0; }\n\
        int main(void) { return call(); }";
    let rpath = format!("-Wl,-rpath,{}", directory.display());
    let own = compile("own", own, &[library.to_str().unwrap(), "-rdynamic", &rpath]);
    let found = report(&["doctor", "--libc", own.to_str().unwrap(), "--json"]);
    assert_eq!(found["active"], false, "{found}");
    for object in found["objects"].as_array().unwrap() {
        let path = object["path"].as_str().unwrap();
        if path.ends_with("own") || path.ends_with("libcalls.so") {
            assert_eq!(object["bypassed"][0]["name"], "recv", "{found}");
        }
    }
    // The same library, in a program that says that it links the hooks and exports none.
    let note = "__asm__(\".section .note.kapok,\\\"a\\\",@note\\n.long 6, 0, 1\\n.asciz \\\"Kapok\\\"\\n\
        .zero 2\\n.previous\"); int call(void); int main(void) { return call(); }";
    let hidden = compile("hidden", note, &[library.to_str().unwrap(), &rpath]);
    let found = report(&["doctor", "--libc", hidden.to_str().unwrap(), "--json"]);
    assert_eq!(found["linked"], true, "{found}");
    let objects = found["objects"].as_array().unwrap();
    let bypassing = objects.iter().find(|object| object["path"].to_string().contains("libcalls"));
    let because = bypassing.unwrap()["bypassed"][0]["because"].to_string();
    assert!(because.contains("libc.so") && because.contains("-rdynamic"), "{found}");
    // A library that keeps to its own.
    let binding = format!(
        "{calls} ssize_t recv(int f, void *b, size_t n, int g) {{ (void)f, (void)b, (void)n, (void)g; \
         return 0; }}"
    );
    let symbolic = compile("libsymbolic.so", &binding, &["-shared", "-fPIC", "-Wl,-Bsymbolic"]);
    let main = "int call(void); int main(void) { return call(); }";
    let bound = compile("bound", main, &[symbolic.to_str().unwrap(), &rpath]);
    let found = report(&["doctor", "--libc", bound.to_str().unwrap(), "--json"]);
    assert_eq!(found["active"], false, "{found}");
    // What is told to people is told in words.
    let told = text(&kapok(&["doctor", "--libc", &plain_name]).output().unwrap().stdout);
    assert!(told.contains("active, 1:") && told.contains("recv"), "{told}");
    let script = directory.join("script");
    executable(&script, format!("#!{plain_name}\n").as_bytes());
    let told = kapok(&["doctor", "--libc", script.to_str().unwrap()]).output().unwrap();
    assert!(text(&told.stdout).contains("is a script"), "{}", text(&told.stdout));
}

#[test]
fn a_program_that_takes_low_numbers_or_closes_all_goes_on() {
    let directory = scratch("numbers");
    let engines: &[&str] = if std::env::var("KAPOK_REQUIRE_URING").as_deref() != Ok("0") {
        &["uring", "epoll"]
    } else {
        &["epoll"]
    };
    for engine in engines {
        // Files under numbers that a loop would have, and children that come and go meanwhile.
        let log = directory.join(format!("log-{engine}"));
        let script = "for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>>$1\"; done; sleep 0.05; \
            echo x >&3; (echo y >&9); cat /dev/null; echo z >&4; exec 3>&-; sleep 0.05; echo done";
        let mut command =
            kapok(&["run", "--main-fiber", "--stats", "--", "sh", "-c", script, "sh"]);
        let output = command.arg(&log).env("KAPOK_ENGINE", engine).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(0), "done\n".into()),
            "{said}"
        );
        assert_eq!(fs::read_to_string(&log).unwrap(), "x\ny\nz\n", "{engine}");
        assert!(suspensions(&said) > 0, "{said}");
    }
    if !is_there("cc") {
        return;
    }
    let source = br#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    closefrom(3);
    int ends[2];
    if (pipe(ends) || ends[0] != 3 || ends[1] != 4) return 1;
    if (fork() == 0) { usleep(20000); write(ends[1], "x", 1); _exit(0); }
    char byte;
    if (read(ends[0], &byte, 1) != 1) return 2;
    for (int fd = 3; fd < 2000; fd++) close(fd);
    if (open("/dev/null", O_RDONLY) != 3) return 3;
    int status;
    if (wait(&status) < 0 || usleep(20000)) return 4;
    return printf("whole\n") == 6 ? 5 : 6;
}
"#;
    let program = directory.join("closes");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-x", "c", "-", "-o"]).arg(&program);
    assert!(with_input(&mut compiler, source).status.success());
    for engine in engines {
        let mut command = kapok(&["run", "--main-fiber", "--stats", "--"]);
        let output = command.arg(&program).env("KAPOK_ENGINE", engine).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(5), "whole\n".into()),
            "{said}"
        );
    }
}

#[test]
fn the_program_begins_with_the_signals_of_its_caller() {
    if !is_there("env") || !is_there("grep") {
        return;
    }
    let status = ["grep", "^Sig[BI]", "/proc/self/status"];
    for changed in [&["--ignore-signal=PIPE", "--block-signal=USR1"][..], &[]] {
        let bare = Command::new("env").args(changed).args(status).output().unwrap();
        let mut hooked = Command::new("env");
        hooked.args(changed).arg(env!("CARGO_BIN_EXE_kapok")).args(["run", "--"]).args(status);
        let hooked = hooked.env("KAPOK_LIBRARY", library()).output().unwrap();
        assert!(bare.status.success());
        assert_eq!(text(&hooked.stdout), text(&bare.stdout), "{}", text(&hooked.stderr));
    }
}

#[test]
fn what_came_of_the_calls_is_one_line_of_json_if_asked_for() {
    // A name that would end the string if it were written as it is.
    let program = scratch("json").join("od\"d \\ \n name");
    copy_program(Path::new("/bin/sleep"), &program);
    let mut command = kapok(&["run", "--main-fiber", "--json", "--"]);
    let output = command.arg(&program).arg("0.01").output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["program"], "od\"d \\ \n name");
    assert!(told["pid"].as_u64().is_some_and(|pid| pid > 0), "{said}");
    let calls = told["calls"].as_object().unwrap();
    // nanosleep(2) or clock_nanosleep(2).
    assert!(calls.iter().any(|(name, call)| name.contains("sleep") && call["suspended"] == 1));
    for count in ["suspended", "direct", "bypassed"] {
        let sum: u64 = calls.values().map(|call| call[count].as_u64().unwrap()).sum();
        assert_eq!(told[count].as_u64(), Some(sum), "{count}: {said}");
    }
}

#[test]
fn a_run_inside_of_a_run_has_what_it_asks_for() {
    let show = "echo main $KAPOK_MAIN_FIBER, stats $KAPOK_STATS, threads $KAPOK_THREADS_AS_FIBERS";
    let kapok_itself = env!("CARGO_BIN_EXE_kapok");
    let mut outer = kapok(&["run", "--main-fiber", "--stats", "--", kapok_itself, "run", "--"]);
    let output = outer.args(["sh", "-c", show]).output().unwrap();
    assert_eq!(text(&output.stdout), "main , stats , threads\n", "{}", text(&output.stderr));
}

#[test]
fn a_program_may_be_executable_and_not_readable() {
    use std::os::unix::process::CommandExt;
    let program = scratch("unreadable").join("true");
    copy_program(Path::new("/bin/true"), &program);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o111)).unwrap();
    let mut command = kapok(&["run", "--", program.to_str().unwrap()]);
    if fs::File::open(&program).is_ok() {
        // Root reads everything.
        let mut nobody = Command::new(&program);
        if nobody.uid(65_534).gid(65_534).status().is_err() {
            eprintln!("SKIPPED: {} is out of reach for others", program.display());
            return;
        }
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}
