/* Signals in a program that knows threads only. Each case says what came of it. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static sigjmp_buf back;
static volatile sig_atomic_t handled;
static volatile int jumps;
static int pipes[2], sockets[2], listener, epoll;

extern void __longjmp_chk(sigjmp_buf, int) __attribute__((noreturn));
extern void _longjmp(sigjmp_buf, int) __attribute__((noreturn));

/* One of the names after the other: what is restored is up to who is jumped to. */
static void leave(sigjmp_buf to) {
    static int next;
    switch (next++ % 4) {
        case 0: siglongjmp(to, 1);
        case 1: longjmp(to, 1);
        case 2: _longjmp(to, 1);
        default: __longjmp_chk(to, 1);
    }
}

static void handle(int signal) {
    (void)signal;
    handled++;
    if (jumps) leave(back);
}

static void in(int milliseconds) {
    struct itimerval timer = {{0, 0}, {0, milliseconds * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Again and again until `in(0)`: one that comes before a call begins ends nothing. */
static void every(int milliseconds) {
    struct itimerval timer = {{0, milliseconds * 1000}, {0, milliseconds * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void with_flags(int signal, int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handle;
    action.sa_flags = flags;
    sigaction(signal, &action, NULL);
}

static pid_t sleeping_child(void) {
    pid_t child = fork();
    if (child == 0) {
        struct timespec time = {0, 400 * 1000 * 1000};
        signal(SIGALRM, SIG_DFL);
        nanosleep(&time, NULL);
        _exit(3);
    }
    return child;
}

static void *write_later(void *nothing) {
    struct timespec time = {0, 100 * 1000 * 1000};
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    nanosleep(&time, NULL);
    if (write(pipes[1], "x", 1) != 1 || write(sockets[1], "y", 1) != 1) abort();
    struct sockaddr_un to = {AF_UNIX, {0}};
    socklen_t len = sizeof to;
    getsockname(listener, (struct sockaddr *)&to, &len);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&to, len);
    nanosleep(&time, NULL);
    close(fd);
    return nothing;
}

/* The waiting calls, by number. Each would wait for a tenth of a second and longer. */
enum { READ, RECV, POLL, PPOLL, SELECT, EPOLL, SLEEP, NANOSLEEP, ACCEPT, WAITPID, PAUSE, SEM, CALLS };
static const char *names[] = {"read", "recv", "poll", "ppoll", "select", "epoll_wait", "sleep",
                              "nanosleep", "accept", "waitpid", "pause", "sem_timedwait"};

static long call(int which, pid_t child) {
    char byte;
    struct pollfd one = {pipes[0], POLLIN, 0};
    struct timespec time = {1, 0}, left;
    struct epoll_event event;
    int status;
    switch (which) {
    case READ: return read(pipes[0], &byte, 1);
    case RECV: return recv(sockets[0], &byte, 1, 0);
    case POLL: return poll(&one, 1, 1000);
    case PPOLL: return ppoll(&one, 1, &time, NULL);
    case SELECT: {
        fd_set set;
        struct timeval limit = {1, 0};
        FD_ZERO(&set);
        FD_SET(pipes[0], &set);
        return select(pipes[0] + 1, &set, NULL, NULL, &limit);
    }
    case EPOLL: return epoll_wait(epoll, &event, 1, 1000);
    case SLEEP: return sleep(1) > 0 ? -1 : 0;
    case NANOSLEEP: return nanosleep(&time, &left);
    case ACCEPT: {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0) close(fd);
        return fd >= 0 ? 0 : -1;
    }
    case WAITPID: return waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
    case PAUSE: return pause();
    default: {
        sem_t semaphore;
        sem_init(&semaphore, 0, 0);
        clock_gettime(CLOCK_REALTIME, &time);
        time.tv_sec += 1;
        return sem_timedwait(&semaphore, &time);
    }
    }
}

static void prepare(void) {
    struct sockaddr_un any = {AF_UNIX, {0}};
    struct epoll_event event = {EPOLLIN, {0}};
    if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) abort();
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&any, sizeof(sa_family_t));
    listen(listener, 5);
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event);
}

/* What a handler does to each call, with and without SA_RESTART. */
static void interrupted(int flags) {
    for (int which = 0; which < CALLS; which++) {
        pid_t child = which == WAITPID ? sleeping_child() : 0;
        pthread_t writer;
        int writes = flags && (which == READ || which == RECV || which == ACCEPT);
        with_flags(SIGALRM, flags);
        if (writes) pthread_create(&writer, NULL, write_later, NULL);
        handled = 0;
        in(30);
        errno = 0;
        long result = call(which, child);
        printf("%s: %ld %s, handled %d\n", names[which], result, result < 0 && which != SLEEP ? strerror(errno) : "", handled);
        if (writes) {
            char both[2];
            pthread_join(writer, NULL);
            if (which != READ && read(pipes[0], both, 1) != 1) abort();
            if (which != RECV && recv(sockets[0], both, 1, 0) != 1) abort();
            if (which != ACCEPT) close(accept(listener, NULL, NULL));
        }
        if (child && result < 0) waitpid(child, NULL, 0);
    }
}

/* A handler leaves each call by a jump, again and again, and calls wait as before. */
static void jumped(void) {
    with_flags(SIGALRM, 0);
    for (volatile int which = 0; which < CALLS; which++) {
        volatile int times = 0;
        volatile pid_t child = which == WAITPID ? sleeping_child() : 0;
        jumps = 1;
        if (sigsetjmp(back, 1) && ++times == 5) {
            jumps = 0;
        } else {
            in(3);
            call(which, child);
            printf("%s returned\n", names[which]);
        }
        jumps = 0;
        sigset_t now;
        sigprocmask(SIG_BLOCK, NULL, &now);
        printf("%s: left %d times, blocked %d\n", names[which], times, sigismember(&now, SIGALRM));
        struct timespec time = {0, 2000000};
        nanosleep(&time, NULL);
        if (child) printf("and %ld\n", call(WAITPID, child));
    }
    /* By longjmp(3), which leaves the signal blocked. */
    jumps = 1;
    if (sigsetjmp(back, 0) == 0) {
        in(3);
        call(READ, 0);
    }
    jumps = 0;
    sigset_t now, none;
    sigprocmask(SIG_BLOCK, NULL, &now);
    printf("blocked %d\n", sigismember(&now, SIGALRM));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    every(3);
    long result = call(READ, 0);
    int error = errno;
    in(0);
    printf("%ld %d\n", result, error == EINTR);
}

/* The masks of ppoll(2) and sigsuspend(2). */
static void masked(void) {
    sigset_t blocked, none, pending;
    struct timespec time = {1, 0}, now = {0, 0};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigemptyset(&none);
    with_flags(SIGALRM, SA_RESTART);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    handled = 0;
    in(3);
    do {
        usleep(20000);
        sigpending(&pending);
    } while (!sigismember(&pending, SIGALRM));
    printf("blocked: %d\n", handled);
    errno = 0;
    int result = ppoll(NULL, 0, &now, &none);
    printf("ppoll: %d %s, handled %d\n", result, strerror(errno), handled);
    in(20);
    errno = 0;
    result = ppoll(NULL, 0, &time, &none);
    printf("ppoll: %d %s, handled %d\n", result, strerror(errno), handled);
    in(20);
    errno = 0;
    result = pselect(0, NULL, NULL, NULL, &time, &none);
    printf("pselect: %d %s, handled %d\n", result, strerror(errno), handled);
    in(20);
    result = sigsuspend(&none);
    printf("sigsuspend: %d %s, handled %d\n", result, strerror(errno), handled);
    /* Not by what does not let it. */
    in(3);
    time.tv_sec = 0;
    time.tv_nsec = 30 * 1000 * 1000;
    result = ppoll(NULL, 0, &time, &blocked);
    printf("ppoll: %d, handled %d\n", result, handled);
    int taken;
    sigwait(&blocked, &taken);
    printf("sigwait: %d, handled %d\n", taken == SIGALRM, handled);
}

/* Handlers by all the names. */
extern void (*__sysv_signal(int, void (*)(int)))(int);
extern void (*sysv_signal(int, void (*)(int)))(int);

/* Registered for once: until `again` is over it registers itself again, and has the signal come again. */
static volatile sig_atomic_t again, was_reset;
static void once(int signal) {
    struct sigaction seen;
    sigaction(signal, NULL, &seen);
    was_reset = seen.sa_handler == SIG_DFL;
    handled++;
    if (!again) return;
    __sysv_signal(signal, once);
    in(20);
}

static void registered(void) {
    struct sigaction seen;
    int error;
    handled = 0;
    __sysv_signal(SIGUSR1, handle);
    sigaction(SIGUSR1, NULL, &seen);
    printf("sysv: %d %x\n", seen.sa_handler == handle, seen.sa_flags & (SA_RESETHAND | SA_NODEFER | SA_RESTART));
    again = 1;
    __sysv_signal(SIGALRM, once);
    in(20);
    int result = pause();
    again = 0;
    in(0);
    printf("pause: %d, handled %d, reset %d\n", result, handled > 0, was_reset);
    handled = 0;
    __sysv_signal(SIGALRM, once);
    raise(SIGALRM);
    sigaction(SIGALRM, NULL, &seen);
    printf("once: %d, handled %d\n", seen.sa_handler == SIG_DFL, handled);
    ssignal(SIGALRM, handle);
    sigaction(SIGALRM, NULL, &seen);
    printf("ssignal: %d %d\n", seen.sa_handler == handle, (seen.sa_flags & SA_RESTART) != 0);
    siginterrupt(SIGALRM, 1);
    every(20);
    result = call(READ, 0);
    error = errno;
    in(0);
    printf("interrupts: %d %d, handled %d\n", result, error == EINTR, handled > 1);
    handled = 0;
    printf("sigset: %d\n", sigset(SIGALRM, SIG_HOLD) == handle);
    printf("sigset: %d\n", sigset(SIGALRM, handle) == SIG_HOLD);
    printf("sigset: %d\n", sigset(SIGALRM, SIG_IGN) == handle);
    sighold(SIGUSR2);
    signal(SIGUSR2, handle);
    kill(getpid(), SIGUSR2);
    printf("held: %d\n", handled);
    sigrelse(SIGUSR2);
    printf("released: %d\n", handled);
}

/* Children, in all the ways. */
static void children(void) {
    int status;
    char line[32];
    char *const arguments[] = {"sh", "-c", "sleep 0.05; exit 4", NULL};
    pid_t child = fork();
    if (child == 0) {
        /* The child waits too, for its own. */
        pid_t own = fork();
        if (own == 0) { usleep(20000); _exit(7); }
        waitpid(own, &status, 0);
        with_flags(SIGALRM, 0);
        every(20);
        if (call(READ, 0) != -1 || errno != EINTR || handled < 1) _exit(9);
        _exit(WEXITSTATUS(status));
    }
    waitpid(child, &status, 0);
    printf("fork: %d\n", WEXITSTATUS(status));
    child = fork();
    if (child == 0) { execv("/bin/sh", arguments); _exit(9); }
    waitpid(child, &status, 0);
    printf("exec: %d\n", WEXITSTATUS(status));
    posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ);
    waitpid(child, &status, 0);
    printf("posix_spawn: %d\n", WEXITSTATUS(status));
    FILE *reader = popen("sleep 0.05; echo popen", "r");
    if (fgets(line, sizeof line, reader) == NULL) abort();
    printf("%s%d\n", line, WEXITSTATUS(pclose(reader)));
    printf("system: %d\n", WEXITSTATUS(system("sleep 0.05; exit 5")));
    child = vfork();
    if (child == 0) { execv("/bin/sh", arguments); _exit(9); }
    waitpid(child, &status, 0);
    printf("vfork: %d\n", WEXITSTATUS(status));
    /* Traced: its stop is told, then its end. */
    child = fork();
    if (child == 0) {
        usleep(20000);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(6);
    }
    waitpid(child, &status, 0);
    printf("traced: %d\n", WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    printf("traced: %d\n", WEXITSTATUS(status));
    /* A wait for any child that a timer ends again and again leaves nothing behind. */
    with_flags(SIGALRM, 0);
    child = fork();
    if (child == 0) {
        signal(SIGALRM, SIG_DFL);
        for (;;) pause();
    }
    int ends = 0;
    every(2);
    while (ends < 30) {
        if (wait(&status) == -1 && errno == EINTR) ends++;
    }
    in(0);
    FILE *tasks = popen("ls /proc/$PPID/task | wc -l", "r");
    if (fgets(line, sizeof line, tasks) == NULL) abort();
    pclose(tasks);
    printf("few threads: %d\n", atoi(line) < 12);
    kill(child, SIGKILL);
    while (wait(&status) != child) continue;
    printf("any: %d\n", WTERMSIG(status));
}

/* Crash handlers run where the fault was, and are not suspended. */
static void fault(int signal) {
    char text[] = "fault\n";
    struct timespec time = {0, 1000000};
    (void)signal;
    nanosleep(&time, NULL);
    if (write(1, text, 6) != 6) abort();
    siglongjmp(back, 1);
}

static void faults(void) {
    stack_t stack = {malloc(1 << 16), 0, 1 << 16};
    struct sigaction action;
    sigaltstack(&stack, NULL);
    memset(&action, 0, sizeof action);
    action.sa_handler = fault;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
    for (volatile int times = 0; times < 3; times++) {
        if (sigsetjmp(back, 1) == 0) *(volatile int *)8 = 1;
        usleep(1000);
    }
    printf("survived\n");
}

/* Handled while it waits for a lock, in which nothing ends: the handler runs all the same. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *hold(void *nothing) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    pthread_mutex_lock(&mutex);
    sem_post(nothing);
    while (!handled) sched_yield();
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void locked(void) {
    pthread_t holder;
    sem_t holds;
    sem_init(&holds, 0, 0);
    with_flags(SIGALRM, SA_RESTART);
    pthread_create(&holder, NULL, hold, &holds);
    sem_wait(&holds);
    in(20);
    int result = pthread_mutex_lock(&mutex);
    printf("lock: %d, handled %d\n", result, handled);
    pthread_join(holder, NULL);
}

/* main ends as a thread does; another goes on. */
static pthread_key_t key;
static void destroy(void *value) { printf("destroyed %s\n", (char *)value); }
static void *outlive(void *nothing) {
    usleep(100000);
    printf("the last\n");
    return nothing;
}

static void ended(void) {
    pthread_t other;
    pthread_key_create(&key, destroy);
    pthread_setspecific(key, "by main");
    pthread_create(&other, NULL, outlive, NULL);
    pthread_exit(NULL);
}

/* A reader that is gone, of a pipe: the signal is for who wrote. */
static void broken(void) {
    int fds[2];
    char many[100000];
    memset(many, 0, sizeof many);
    with_flags(SIGPIPE, 0);
    if (pipe(fds)) abort();
    close(fds[0]);
    handled = 0;
    long result = write(fds[1], many, sizeof many);
    printf("write: %ld %d, handled %d\n", result, errno == EPIPE, handled);
    /* _exit(2) in a handler, which may have interrupted anything. */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = _exit;
    sigaction(SIGALRM, &action, NULL);
    in(20);
    for (;;) free(malloc(5000));
}

/* A reader in the background of a terminal is stopped, and goes on in the foreground. */
static void terminal(const char *self) {
    int status, other = posix_openpt(O_RDWR | O_NOCTTY);
    if (other < 0 || grantpt(other) || unlockpt(other)) abort();
    pid_t leader = fork();
    if (leader == 0) {
        setsid();
        int fd = open(ptsname(other), O_RDWR);
        signal(SIGTTOU, SIG_IGN);
        pid_t reader = fork();
        if (reader == 0) {
            setpgid(0, 0);
            signal(SIGTTOU, SIG_DFL);
            dup2(fd, 0);
            execl(self, self, "reader", NULL);
            _exit(9);
        }
        waitpid(reader, &status, WUNTRACED);
        printf("stopped: %d\n", WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN);
        tcsetpgrp(fd, reader);
        if (write(other, "a line\n", 7) != 7) abort();
        kill(-reader, SIGCONT);
        waitpid(reader, &status, 0);
        _exit(WEXITSTATUS(status));
    }
    waitpid(leader, &status, 0);
    printf("read: %d\n", WEXITSTATUS(status));
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    prepare();
    if (!strcmp(arguments[1], "interrupted")) interrupted(0);
    else if (!strcmp(arguments[1], "restarted")) interrupted(SA_RESTART);
    else if (!strcmp(arguments[1], "jumped")) jumped();
    else if (!strcmp(arguments[1], "masked")) masked();
    else if (!strcmp(arguments[1], "registered")) registered();
    else if (!strcmp(arguments[1], "children")) children();
    else if (!strcmp(arguments[1], "faults")) faults();
    else if (!strcmp(arguments[1], "locked")) locked();
    else if (!strcmp(arguments[1], "ended")) ended();
    else if (!strcmp(arguments[1], "terminal")) terminal(arguments[0]);
    else if (!strcmp(arguments[1], "reader")) {
        char line[16];
        return read(0, line, sizeof line) == 7 ? 5 : 6;
    }
    else if (!strcmp(arguments[1], "broken")) broken();
    else return 2;
    return 0;
}
