//! `kapok run --threads-as-fibers`: programs that know threads only. One that needs a compiler is a skip
//! that says so, or a failure where `CI` is set.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

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

/// Compiles a program; if there is nothing to do so, says that something is skipped.
fn compile(compiler: &str, source: &str, flags: &[&str], name: &str) -> Option<PathBuf> {
    if Command::new(compiler).arg("--version").stdout(Stdio::null()).status().is_err() {
        let ci = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
        assert!(!ci, "there is no {compiler}, and with CI in the environment nothing is skipped");
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no {compiler}");
        return None;
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("threads");
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join(name);
    let language = if compiler == "cc" { "c" } else { "c++" };
    let mut command = Command::new(compiler);
    command.args(["-x", language, "-", "-o"]).arg(&program).args(flags).arg("-pthread");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{name}");
    Some(program)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn with_fibers(program: &Path, engine: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kapok"));
    command.args(["run", "--threads-as-fibers", "--"]).arg(program).args(arguments);
    command.env("KAPOK_LIBRARY", library()).env("KAPOK_ENGINE", engine).env_remove("LD_PRELOAD");
    command.stdin(Stdio::null()).output().unwrap()
}

/// Those of whose engines there are.
fn engines() -> &'static [&'static str] {
    if kapok::Runtime::builder().engine(kapok::Kind::Uring).build().is_ok() {
        &["uring", "epoll"]
    } else {
        &["epoll"]
    }
}

#[test]
fn a_thousand_threads_are_one() {
    let source = include_str!("c/threads.c");
    let Some(program) = compile("cc", source, &["-Wall", "-Wextra", "-Werror"], "threads") else {
        return;
    };
    // What the test says of threads holds for threads.
    let bare = Command::new(&program).arg("threads").output().unwrap();
    let said = text(&bare.stderr);
    assert_eq!((bare.status.code(), &*text(&bare.stdout)), (Some(0), "fine, threads\n"), "{said}");
    for engine in engines() {
        let output = with_fibers(&program, engine, &["fibers"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{engine}: {}: {said}", output.status);
        assert_eq!(text(&output.stdout), "fine, fibers\n", "{engine}: {said}");
        assert!(!said.contains("thread-local"), "it has none: {said}");
    }
}

#[test]
fn who_has_thread_locals_is_named() {
    let source = "#include <pthread.h>\n\
        static __thread int local; static int same;\n\
        static void *count(void *arg) { same += ++local; return arg; }\n\
        int main(void) { pthread_t a, b;\n\
          pthread_create(&a, 0, count, 0); pthread_join(a, 0);\n\
          pthread_create(&b, 0, count, 0); pthread_join(b, 0); return same; }\n";
    let Some(program) = compile("cc", source, &[], "locals") else { return };
    assert_eq!(Command::new(&program).status().unwrap().code(), Some(2));
    let output = with_fibers(&program, "epoll", &[]);
    // The second finds what the first has left: it is as the warning says.
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert_eq!(said.matches("share these objects' thread-local variables").count(), 1, "{said}");
    assert!(said.contains("the program itself"), "{said}");
}

#[test]
fn destructors_run_when_a_thread_of_cpp_ends() {
    let source = "#include <pthread.h>\n#include <thread>\n#include <mutex>\n\
        #include <condition_variable>\n#include <unistd.h>\n\
        static int destroyed;\n\
        struct Noted { ~Noted() { destroyed++; } };\n\
        static void leave() { Noted noted; usleep(100); pthread_exit(nullptr); }\n\
        static void *run(void *) { Noted noted; leave(); return nullptr; }\n\
        int main() {\n\
          pthread_t one; pthread_create(&one, nullptr, run, nullptr); pthread_join(one, nullptr);\n\
          std::mutex mutex; std::condition_variable changed; int turn = 0;\n\
          std::thread threads[20];\n\
          for (int at = 0; at < 20; at++) threads[at] = std::thread([&, at] {\n\
            std::unique_lock<std::mutex> lock(mutex);\n\
            changed.wait(lock, [&] { return turn == at; });\n\
            std::this_thread::sleep_for(std::chrono::milliseconds(1));\n\
            turn++; changed.notify_all(); });\n\
          for (auto &thread : threads) thread.join();\n\
          return turn * 10 + destroyed; }\n";
    let Some(program) = compile("c++", source, &[], "destructors") else { return };
    assert_eq!(Command::new(&program).status().unwrap().code(), Some(202));
    for engine in engines() {
        let output = with_fibers(&program, engine, &[]);
        assert_eq!(output.status.code(), Some(202), "{engine}: {}", text(&output.stderr));
    }
}

#[test]
fn the_child_of_a_fork_has_threads() {
    let source = "#include <pthread.h>\n#include <stdint.h>\n#include <sys/wait.h>\n\
        #include <unistd.h>\n\
        static void *add(void *arg) { usleep(1000); return (char *)arg + 1; }\n\
        static void *forks(void *arg) { pthread_t thread; void *value; int status;\n\
          pid_t child = fork();\n\
          if (child == 0) { pthread_create(&thread, 0, add, arg);\n\
            pthread_join(thread, &value); _exit((int)(intptr_t)value); }\n\
          waitpid(child, &status, 0); return (char *)arg + WEXITSTATUS(status); }\n\
        int main(void) { pthread_t other, thread; void *value;\n\
          pthread_create(&other, 0, add, 0);\n\
          pthread_create(&thread, 0, forks, (void *)20); pthread_join(thread, &value);\n\
          pthread_join(other, 0); return (int)(intptr_t)value; }\n";
    let Some(program) = compile("cc", source, &[], "forks") else { return };
    for engine in engines() {
        let output = with_fibers(&program, engine, &[]);
        assert_eq!(output.status.code(), Some(41), "{engine}: {}", text(&output.stderr));
    }
}
