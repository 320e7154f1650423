//! Signals and children in programs that know threads only, with the library preloaded and main on a
//! fiber: what they say is what they say by themselves.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "other tests need more of it")]
mod installed;
mod skipped;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use installed::Installed;

fn library() -> PathBuf {
    Installed::get();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed/lib/libkapok.so")
}

fn starts(program: impl AsRef<OsStr>) -> bool {
    let quiet = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    quiet.is_ok()
}

/// The program of the cases.
fn program() -> Option<&'static str> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled("signals")).as_deref()
}

/// A program of `tests/c`. None: there is no compiler.
fn compiled(name: &str) -> Option<String> {
    if !installed::is_there("cc") {
        return None;
    }
    // The directory is that of all packages.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preloaded");
    std::fs::create_dir_all(&directory).unwrap();
    let to = directory.join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-Wall", "-Wno-deprecated-declarations", "-pthread", "-o"]).arg(&to);
    let built = compiler.arg(installed::here(&format!("tests/c/{name}.c"))).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(to.to_str().unwrap().to_owned())
}

/// How long a program may take, which hangs otherwise.
const LIMIT: Duration = Duration::from_secs(60);

fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} hangs: {}", String::from_utf8_lossy(&output.stdout));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Runs a program by itself and preloaded, on both engines. Gives what the library counted.
fn compare(words: &[&str]) -> Vec<String> {
    compare_with(words, &[])
}

/// The same, with more in the environment of what is preloaded.
fn compare_with(words: &[&str], asked_for: &[&str]) -> Vec<String> {
    let with = |engine: Option<&str>| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("KAPOK_ENGINE");
        if let Some(engine) = engine {
            command.env("LD_PRELOAD", library()).env("KAPOK_MAIN_FIBER", "1");
            command.env("KAPOK_STATS", "1").env("KAPOK_ENGINE", engine);
            command.envs(asked_for.iter().map(|name| (name, "1")));
        }
        run(command)
    };
    let by_itself = with(None);
    let mut counts = Vec::new();
    for engine in ["uring", "epoll"] {
        let hooked = with(Some(engine));
        let said = String::from_utf8_lossy(&hooked.stderr).into_owned();
        assert_eq!(
            String::from_utf8_lossy(&hooked.stdout),
            String::from_utf8_lossy(&by_itself.stdout),
            "{words:?} on {engine}: {said}"
        );
        assert_eq!(hooked.status, by_itself.status, "{words:?} on {engine}: {said}");
        counts.push(said);
    }
    counts
}

/// How many calls of a function have suspended the fiber.
fn suspended(counts: &str, function: &str) -> u64 {
    counted(counts, function, 2)
}

/// How many calls of a function were answered on the fiber without suspending it.
fn answered(counts: &str, function: &str) -> u64 {
    counted(counts, function, 3)
}

fn counted(counts: &str, function: &str, column: usize) -> u64 {
    let words = counts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|words| words.get(1) == Some(&function))
        .filter_map(|words| words.get(column)?.parse::<u64>().ok())
        .sum()
}

fn case(name: &str, suspends: &[&str]) {
    let Some(program) = program() else { return };
    for counts in compare(&[program, name]) {
        for function in suspends {
            assert!(suspended(&counts, function) > 0, "{function} did not suspend: {counts}");
        }
    }
}

#[test]
fn a_handler_ends_calls_that_wait() {
    case("interrupted", &["read", "poll", "nanosleep", "accept", "waitpid", "pause"]);
}

#[test]
fn a_handler_that_restarts_lets_calls_go_on() {
    case("restarted", &["read", "poll", "nanosleep", "accept", "waitpid", "pause"]);
}

#[test]
fn a_handler_may_jump_out_of_calls_that_wait() {
    // The last of each five, which was made after four jumps, suspends as the first did.
    case("jumped", &["read", "poll", "nanosleep", "accept", "waitpid", "pause"]);
}

#[test]
fn the_masks_of_calls_are_theirs() {
    case("masked", &["ppoll", "pselect", "sigsuspend", "usleep"]);
}

#[test]
fn handlers_are_registered_by_many_names() {
    case("registered", &["pause", "read"]);
}

#[test]
fn children_are_made_and_waited_for_in_many_ways() {
    case("children", &["waitpid", "wait"]);
}

#[test]
fn handlers_of_faults_run_where_the_fault_was() {
    let Some(program) = program() else { return };
    for counts in compare(&[program, "faults"]) {
        assert!(suspended(&counts, "usleep") > 0, "{counts}");
        // It is the handler that calls it.
        assert_eq!(suspended(&counts, "nanosleep"), 0, "{counts}");
    }
}

#[test]
fn a_handler_runs_while_a_fiber_waits_for_a_lock() {
    case("locked", &["pthread_mutex_lock"]);
}

/// What the watchdog says of a program that waits in `function`, preloaded and with main on a fiber.
fn stall(program: &str, function: &str, engine: &str) -> String {
    let mut command = Command::new(program);
    command.arg(function).env("LD_PRELOAD", library()).env("KAPOK_MAIN_FIBER", "1");
    command.env("KAPOK_ENGINE", engine).env("KAPOK_WATCHDOG_MS", "20");
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{function}: {said}");
    assert!(output.status.success(), "{function}: {said}");
    said
}

#[test]
fn what_no_hook_can_suspend_is_named_with_its_fiber_its_call_and_its_frames() {
    let Some(program) = compiled("stalls") else { return };
    // Where the C library's symbols are known, a function that it has tail-called is seen, and not who called.
    let cases: [(&str, &[&str], &str); 3] = [
        ("fgets", &["fgets"], "reads_a_line"),
        ("system", &["system", "do_system"], "runs_a_command"),
        ("pclose", &["pclose", "fclose"], "ends_a_pipe"),
    ];
    for engine in ["uring", "epoll"] {
        for (case, functions, frame) in cases {
            let mut said = String::new();
            // On a busy machine the watchdog may come late, or find the fork(2) that comes before.
            let tells = (0..5).any(|_| {
                said = stall(&program, case, engine);
                let named =
                    |line: &str| functions.iter().any(|one| line.contains(&format!("{one}, by ")));
                let begun = said.lines().any(|line| {
                    line.starts_with("kapok: fiber \"main\" (#")
                        && line.contains(" blocks loop ")
                        && line.contains(", thread \"stalls\", ")
                        && named(line)
                });
                begun && said.contains(frame) && said.contains(" blocked loop ")
            });
            assert!(tells, "{case}: not one of them was told whole: {said}");
        }
    }
}

#[test]
fn calls_on_threads_are_calls_on_fibers() {
    let Some(program) = compiled("threads") else { return };
    compare(&[&program]);
    for counts in compare_with(&[&program], &["KAPOK_THREADS_AS_FIBERS"]) {
        for function in ["thrd_detach", "pthread_sigqueue", "pthread_getcpuclockid"] {
            assert!(answered(&counts, function) > 0, "{function} was not asked: {counts}");
        }
    }
}

#[test]
fn main_may_end_as_a_thread() {
    case("ended", &["pthread_exit"]);
}

#[test]
fn a_reader_in_the_background_of_a_terminal_is_stopped() {
    case("terminal", &["waitpid"]);
}

#[test]
fn a_pipe_without_readers_is_told_to_who_writes() {
    case("broken", &[]);
}

#[test]
fn a_program_without_fibers_gets_no_thread_and_no_descriptor() {
    if !installed::is_there("sh") {
        return;
    }
    let script = "trap : USR1; kill -USR1 $$; ls /proc/$$/fd; grep Threads /proc/$$/status";
    let mut by_itself = Command::new("sh");
    by_itself.args(["-c", script]);
    let mut hooked = Command::new("sh");
    hooked.args(["-c", script]).env("LD_PRELOAD", library());
    let (by_itself, hooked) = (run(by_itself), run(hooked));
    assert_eq!(hooked.stdout, by_itself.stdout, "{}", String::from_utf8_lossy(&hooked.stdout));
}

#[test]
fn bash_reads_with_a_time_limit() {
    if !installed::is_there("bash") {
        return;
    }
    // Who kills does so once the shell waits for it.
    let script = "exec 9<> <(:); read -t 0.1 -u 9 line; echo $?; read -t 0.1 -u 9 line; echo $?; \
                  echo after | { read -t 5 line; echo $line; }; trap 'echo caught' USR1; \
                  (sleep 0.1; until grep -q '^State:.S' /proc/$$/status; do sleep 0.01; done; \
                  kill -USR1 $$) & wait; echo $?";
    compare(&["bash", "-c", script]);
}

#[test]
fn python_has_children_and_handlers() {
    let python = "/usr/bin/python3";
    if !Path::new(python).exists() {
        skipped::skip("there is no /usr/bin/python3");
        return;
    }
    let program = r#"
import os, signal, socket, subprocess, threading, time
print(subprocess.run(['sh', '-c', 'sleep 0.05; echo out'], capture_output=True).stdout)
print(subprocess.call(['sh', '-c', 'exit 3'], close_fds=True))
print(os.waitstatus_to_exitcode(os.system('exit 4')))
print(os.popen('echo popen').read())
pid = os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 5'], os.environ)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
one, other = socket.socketpair()
done = []
def child():
    done.append(subprocess.run(['sh', '-c', 'echo thread'], capture_output=True).stdout)
    one.send(b'told')
thread = threading.Thread(target=child)
thread.start()
print(other.recv(4), done)
thread.join()
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
for wait in (lambda: time.sleep(5), lambda: other.recv(1), lambda: signal.pause(), threading.Event().wait):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        wait()
        print('waited')
    except Late:
        print('late')
"#;
    for counts in compare(&[python, "-c", program]) {
        assert!(suspended(&counts, "recv") > 0, "{counts}");
    }
}
