//! A program in C that knows threads only, as a shared object: its calls find the hooks in this
//! executable.

use std::ffi::{CStr, CString, c_int};
use std::process::Command;

use crate::world::{on_fibers, suspended};

const SOURCE: &str = r#"
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <threads.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static mtx_t c11_mutex;
static cnd_t c11_condition;
static once_flag flag = ONCE_FLAG_INIT;
static sem_t semaphore;
static pthread_key_t key;
static int turn, c11_turn, destroyed, made;

static void destroy(void *value) { destroyed += *(int *)value; }

static void make(void) {
    made++;
    mtx_init(&c11_mutex, mtx_plain);
    cnd_init(&c11_condition);
    sem_init(&semaphore, 0, 0);
    pthread_key_create(&key, destroy);
}

int prepare(void) { call_once(&flag, make); turn = c11_turn = 0; return made; }

/* Each of `count` takes its turn, `rounds` times. */
int play(int index, int count, int rounds) {
    static int one = 1;
    int i;
    if (pthread_getspecific(key) != NULL) return 1;
    if (pthread_setspecific(key, &one) != 0) return 2;
    for (i = 0; i < rounds; i++) {
        pthread_mutex_lock(&mutex);
        while (turn != i * count + index) pthread_cond_wait(&condition, &mutex);
        turn++;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
        if (mtx_lock(&c11_mutex) != thrd_success) return 3;
        while (c11_turn != i * count + index) cnd_wait(&c11_condition, &c11_mutex);
        c11_turn++;
        cnd_broadcast(&c11_condition);
        if (mtx_unlock(&c11_mutex) != thrd_success) return 4;
        if (index % 2 == 0) sem_post(&semaphore);
        else if (sem_wait(&semaphore) != 0) return 5;
    }
    return pthread_getspecific(key) == &one ? 0 : 6;
}

int ended(void) { return destroyed; }
"#;

struct Program {
    prepare: extern "C" fn() -> c_int,
    play: extern "C" fn(c_int, c_int, c_int) -> c_int,
    ended: extern "C" fn() -> c_int,
}

/// Builds and loads it. None: there is no compiler.
fn load() -> Option<Program> {
    let directory = std::env::temp_dir().join(format!("kapok-locks-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (source, object) = (directory.join("program.c"), directory.join("program.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
        .args([&object, &source])
        .status();
    let Ok(status) = built else {
        crate::skipped::skip("there is no C compiler");
        return None;
    };
    assert!(status.success());
    let path = CString::new(object.to_str().unwrap()).unwrap();
    // SAFETY: a library of ours, whose functions have these signatures and which is never unloaded.
    let program = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        let function = |name: &CStr| {
            let found = libc::dlsym(library, name.as_ptr());
            assert!(!found.is_null());
            found
        };
        Program {
            prepare: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_int>(function(
                c"prepare",
            )),
            play: std::mem::transmute::<
                *mut libc::c_void,
                extern "C" fn(c_int, c_int, c_int) -> c_int,
            >(function(c"play")),
            ended: std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_int>(function(
                c"ended",
            )),
        }
    };
    std::fs::remove_dir_all(&directory).unwrap();
    Some(program)
}

#[test]
fn a_program_in_c_takes_turns_on_fibers_and_threads() {
    kapok_libc::install();
    let Some(Program { prepare, play, ended }) = load() else { return };
    for threads in [1, 2] {
        on_fibers(threads, move || {
            assert_eq!(prepare(), 1);
            let (before, waited) = (ended(), suspended("pthread_cond_wait"));
            let thread = std::thread::spawn(move || play(0, 6, 50));
            let fibers: Vec<_> =
                (1..6).map(|index| kapok::spawn(move || play(index, 6, 50))).collect();
            for fiber in fibers {
                assert_eq!(fiber.join().unwrap(), 0);
            }
            assert_eq!(thread.join().unwrap(), 0);
            assert_eq!(ended(), before + 6, "a destructor of a key for each fiber and thread");
            assert!(suspended("pthread_cond_wait") > waited);
        });
    }
}
