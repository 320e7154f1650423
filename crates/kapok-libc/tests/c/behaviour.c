/* What the C interface promises, from C. Each check names its line; the last line of output is "fine". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <kapok.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "line %d: %s (errno %d: %s)\n", __LINE__, #condition, errno,     \
                    strerror(errno));                                                        \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)
#define FAILS(call, number)                                                                  \
    do {                                                                                     \
        errno = 0;                                                                           \
        CHECK((call) == -1 && errno == (number));                                            \
    } while (0)

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * KAPOK_SECOND + (uint64_t)time.tv_nsec;
}

static void *same(void *arg)
{
    kapok_yield();
    return arg;
}

static void *sleep_long(void *arg)
{
    (void)arg;
    return kapok_sleep(3600 * KAPOK_SECOND) == -1 ? (void *)(intptr_t)errno : NULL;
}

static void *clean_up(void *arg)
{
    struct kapok_limits saved;
    (void)arg;
    FAILS(kapok_sleep(3600 * KAPOK_SECOND), ECANCELED);
    FAILS(kapok_check(), ECANCELED);
    CHECK(kapok_shield_begin(&saved) == 0);
    CHECK(kapok_sleep(KAPOK_MILLISECOND) == 0 && kapok_check() == 0);
    CHECK(kapok_limits_end(&saved) == 0);
    FAILS(kapok_sleep(KAPOK_MILLISECOND), ECANCELED);
    return arg;
}

static void *join_other(void *fiber)
{
    void *result = NULL;
    FAILS(kapok_join(fiber, &result), ECANCELED);
    return fiber;
}

static void *set_errno(void *arg)
{
    errno = E2BIG;
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    /* The other one has set it meanwhile. */
    CHECK(errno == E2BIG);
    return arg;
}

static void *disturb_errno(void *arg)
{
    errno = EDOM;
    CHECK(kapok_sleep(5 * KAPOK_MILLISECOND) == 0);
    CHECK(errno == EDOM);
    return arg;
}

static void *thread_of(void *arg)
{
    *(pthread_t *)arg = pthread_self();
    usleep(1000);
    return arg;
}

static void *join_myself(void *arg)
{
    /* Stored before this fiber starts. */
    FAILS(kapok_join(*(struct kapok_fiber **)arg, NULL), EDEADLK);
    return arg;
}

static void fibers(void)
{
    struct kapok_fiber *fiber, *other;
    struct kapok_spawn_options options = {0};
    pthread_t there;
    void *result = NULL;
    int number = 5;

    CHECK(kapok_spawn(same, &number, NULL, &fiber) == 0);
    CHECK(kapok_join(fiber, &result) == 0 && result == &number);
    options.size = sizeof options;
    options.name = "named";
    options.stack_size = 1 << 20;
    CHECK(kapok_spawn(same, &number, &options, &fiber) == 0 && kapok_detach(fiber) == 0);
    options.size = 3;
    FAILS(kapok_spawn(same, NULL, &options, NULL), EINVAL);
    FAILS(kapok_spawn(NULL, NULL, NULL, NULL), EINVAL);
    FAILS(kapok_join(NULL, NULL), EINVAL);
    CHECK(kapok_fiber_id() != 0);

    CHECK(kapok_spawn(sleep_long, NULL, NULL, &fiber) == 0);
    kapok_yield();
    CHECK(kapok_cancel(fiber) == 0);
    CHECK(kapok_join(fiber, &result) == 0 && (intptr_t)result == ECANCELED);

    CHECK(kapok_spawn(clean_up, &number, NULL, &fiber) == 0);
    kapok_yield();
    CHECK(kapok_cancel(fiber) == 0 && kapok_join(fiber, &result) == 0 && result == &number);

    /* Who is cancelled while it waits for another leaves the other to be joined. */
    CHECK(kapok_spawn(sleep_long, NULL, NULL, &fiber) == 0);
    CHECK(kapok_spawn(join_other, fiber, NULL, &other) == 0);
    CHECK(kapok_sleep(KAPOK_MILLISECOND) == 0);
    CHECK(kapok_cancel(other) == 0 && kapok_join(other, NULL) == 0);
    CHECK(kapok_cancel(fiber) == 0 && kapok_join(fiber, NULL) == 0);

    CHECK(kapok_spawn(join_myself, &fiber, NULL, &fiber) == 0 && kapok_join(fiber, NULL) == 0);

    CHECK(kapok_spawn(set_errno, NULL, NULL, &fiber) == 0);
    CHECK(kapok_spawn(disturb_errno, NULL, NULL, &other) == 0);
    CHECK(kapok_join(fiber, NULL) == 0 && kapok_join(other, NULL) == 0);

    CHECK(kapok_blocking(thread_of, &there, &result) == 0 && result == &there);
    CHECK(!pthread_equal(there, pthread_self()));
    FAILS(kapok_loop(NULL, NULL), EDEADLK);
}

static void limits(void)
{
    struct kapok_limits outer, inner;
    uint64_t before = now();
    CHECK(kapok_timeout_begin(&outer, 20 * KAPOK_MILLISECOND) == 0);
    CHECK(kapok_timeout_begin(&inner, 3600 * KAPOK_SECOND) == 0);
    FAILS(kapok_sleep(3600 * KAPOK_SECOND), ETIMEDOUT);
    CHECK(now() - before >= 20 * KAPOK_MILLISECOND);
    CHECK(kapok_limits_end(&inner) == 0);
    FAILS(kapok_sleep(KAPOK_SECOND), ETIMEDOUT);
    CHECK(kapok_limits_end(&outer) == 0);
    CHECK(kapok_sleep(KAPOK_MILLISECOND) == 0);
    FAILS(kapok_timeout_begin(NULL, 1), EINVAL);
    FAILS(kapok_limits_end(NULL), EINVAL);
}

static void *write_slowly(void *arg)
{
    int fd = *(int *)arg;
    for (int i = 0; i < 3; i++) {
        CHECK(kapok_sleep(2 * KAPOK_MILLISECOND) == 0);
        CHECK(kapok_write(fd, "abc", 3) == 3);
    }
    return arg;
}

static void read_all(int fd, size_t wanted)
{
    char buf[16];
    size_t got = 0;
    while (got < wanted) {
        ssize_t count = kapok_read(fd, buf + got, sizeof buf - got);
        CHECK(count > 0);
        got += (size_t)count;
    }
    CHECK(memcmp(buf, "abcabcabc", wanted) == 0);
}

static void *read_everything(void *arg)
{
    static char buf[1 << 16];
    size_t *got = arg;
    ssize_t count;
    int fd = (int)*got;
    *got = 0;
    while ((count = kapok_read(fd, buf, sizeof buf)) > 0)
        *got += (size_t)count;
    CHECK(count == 0);
    return arg;
}

static void transfers(int nonblocking)
{
    static char large[4 << 20];
    struct kapok_fiber *fiber;
    struct kapok_limits saved;
    int ends[2], pipes[2];
    size_t got;
    char byte;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0, ends) == 0);
    CHECK(pipe2(pipes, nonblocking ? O_NONBLOCK : 0) == 0);
    CHECK(kapok_spawn(write_slowly, &ends[1], NULL, &fiber) == 0);
    read_all(ends[0], 9);
    CHECK(kapok_join(fiber, NULL) == 0);
    CHECK(kapok_spawn(write_slowly, &pipes[1], NULL, &fiber) == 0);
    read_all(pipes[0], 9);
    CHECK(kapok_join(fiber, NULL) == 0);

    CHECK(kapok_read(ends[0], &byte, 0) == 0);
    FAILS(kapok_recv(ends[0], &byte, 1, MSG_DONTWAIT), EAGAIN);
    FAILS(kapok_recv(pipes[0], &byte, 1, 0), ENOTSOCK);
    CHECK(kapok_send(ends[1], "x", 1, 0) == 1);
    CHECK(kapok_recv(ends[0], &byte, 1, MSG_PEEK) == 1 && byte == 'x');
    CHECK(kapok_recv(ends[0], &byte, 1, 0) == 1 && byte == 'x');

    CHECK(kapok_wait(ends[1], POLLOUT, KAPOK_FOREVER) == POLLOUT);
    CHECK(kapok_wait(ends[0], POLLIN, 0) == 0);
    CHECK(kapok_wait(ends[0], POLLIN, 5 * KAPOK_MILLISECOND) == 0);
    CHECK(kapok_timeout_begin(&saved, 5 * KAPOK_MILLISECOND) == 0);
    FAILS(kapok_wait(ends[0], POLLIN, 3600 * KAPOK_SECOND), ETIMEDOUT);
    CHECK(kapok_limits_end(&saved) == 0);
    CHECK(kapok_timeout_begin(&saved, 5 * KAPOK_MILLISECOND) == 0);
    FAILS(kapok_read(ends[0], &byte, 1), ETIMEDOUT);
    CHECK(kapok_limits_end(&saved) == 0);

    /* More than the socket holds. */
    got = (size_t)ends[0];
    CHECK(kapok_spawn(read_everything, &got, NULL, &fiber) == 0);
    CHECK(kapok_write(ends[1], large, sizeof large) == (ssize_t)sizeof large);
    CHECK(kapok_close(ends[1]) == 0);
    CHECK(kapok_join(fiber, NULL) == 0 && got == sizeof large);
    CHECK(kapok_close(ends[0]) == 0);
    FAILS(kapok_close(ends[0]), EBADF);
    FAILS(kapok_read(ends[0], &byte, 1), EBADF);
    FAILS(kapok_wait(ends[0], POLLIN, 0), EBADF);

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && close(ends[1]) == 0);
    FAILS(kapok_send(ends[0], "x", 1, 0), EPIPE);
    FAILS(kapok_write(ends[0], "x", 1), EPIPE);
    CHECK(close(ends[0]) == 0 && close(pipes[0]) == 0 && close(pipes[1]) == 0);
}

static int listen_anywhere(struct sockaddr_in *address, int flags)
{
    socklen_t len = sizeof *address;
    int listener = socket(AF_INET, SOCK_STREAM | flags, 0);
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (struct sockaddr *)address, sizeof *address) == 0);
    CHECK(listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)address, &len) == 0);
    return listener;
}

static void *connect_to(void *arg)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(kapok_sleep(5 * KAPOK_MILLISECOND) == 0);
    CHECK(kapok_connect(fd, arg, sizeof(struct sockaddr_in)) == 0);
    CHECK(kapok_write(fd, "abcabcabc", 9) == 9);
    CHECK(kapok_close(fd) == 0);
    return arg;
}

static void connections(int flags)
{
    struct sockaddr_in address, peer;
    struct kapok_fiber *fiber;
    socklen_t len = sizeof peer, none = 2;
    int listener = listen_anywhere(&address, flags), connection;
    CHECK(kapok_spawn(connect_to, &address, NULL, &fiber) == 0);
    connection = kapok_accept(listener, (struct sockaddr *)&peer, &len);
    CHECK(connection >= 0 && len == sizeof peer && peer.sin_family == AF_INET);
    CHECK(peer.sin_addr.s_addr == htonl(INADDR_LOOPBACK) && peer.sin_port != 0);
    CHECK((fcntl(connection, F_GETFD) & FD_CLOEXEC) != 0);
    read_all(connection, 9);
    CHECK(kapok_close(connection) == 0 && kapok_join(fiber, NULL) == 0);
    CHECK(kapok_spawn(connect_to, &address, NULL, &fiber) == 0);
    /* As much of the address as there is room for, and its true length. */
    peer.sin_port = 0;
    connection = kapok_accept(listener, (struct sockaddr *)&peer, &none);
    CHECK(connection >= 0 && none == sizeof peer && peer.sin_port == 0);
    CHECK(kapok_join(fiber, NULL) == 0 && close(connection) == 0 && close(listener) == 0);
    /* Nobody listens there any more. */
    connection = socket(AF_INET, SOCK_STREAM | flags, 0);
    FAILS(kapok_connect(connection, (struct sockaddr *)&address, sizeof address), ECONNREFUSED);
    CHECK(close(connection) == 0);
    FAILS(kapok_connect(-1, (struct sockaddr *)&address, sizeof address), EBADF);
    FAILS(kapok_accept(-1, NULL, NULL), EBADF);
}

static void *everything(void *arg)
{
    fibers();
    limits();
    transfers(0);
    transfers(1);
    connections(0);
    connections(SOCK_NONBLOCK);
    return arg;
}

/* A handler that closes early: its peer is told at once, and its number is not reused. */
static void *close_it(void *arg)
{
    CHECK(kapok_close(*(int *)arg) == 0);
    return arg;
}

static int hang_up(int connection, void *arg)
{
    int other;
    struct kapok_fiber *fiber;
    /* By another fiber: it is no less its loop's. */
    CHECK(kapok_spawn(close_it, &connection, NULL, &fiber) == 0 && kapok_join(fiber, NULL) == 0);
    FAILS(kapok_close(connection), EBADF);
    FAILS(kapok_write(connection, "x", 1), EPIPE);
    other = dup(0);
    CHECK(other != connection && close(other) == 0);
    CHECK(kapok_sleep(5 * KAPOK_MILLISECOND) == 0);
    ++*(int *)arg;
    return 7;
}

static void *meet_hang_up(void *arg)
{
    char byte;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(kapok_connect(fd, arg, sizeof(struct sockaddr_in)) == 0);
    CHECK(kapok_read(fd, &byte, 1) == 0);
    CHECK(kapok_close(fd) == 0);
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    kapok_stop();
    return arg;
}

static void serving(void)
{
    struct sockaddr_in address;
    struct kapok_loop_counters counters = {0};
    struct kapok_loop_options options = {0};
    int served = 0, pair[2], listener = listen_anywhere(&address, 0);
    CHECK(kapok_register(listener, hang_up, &served) == 0);
    CHECK(kapok_spawn(meet_hang_up, &address, NULL, NULL) == 0);
    FAILS(kapok_register(listener, NULL, NULL), EINVAL);
    FAILS(kapok_register(-1, hang_up, NULL), EBADF);
    FAILS(kapok_register(0, hang_up, NULL), ENOTSOCK);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    FAILS(kapok_register(pair[0], hang_up, NULL), EINVAL);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    options.size = sizeof options;
    options.engine = "no such engine";
    FAILS(kapok_loop(&options, NULL), EINVAL);
    options.engine = "auto";
    options.sweep_interval = KAPOK_SECOND;
    counters.size = 1;
    FAILS(kapok_loop(&options, &counters), EINVAL);
    counters.size = sizeof counters;
    CHECK(kapok_loop(&options, &counters) == 0);
    CHECK(counters.accepted == 1 && counters.failed == 1 && served == 1);
    CHECK(counters.lost_edges == 0);
    /* The listener was the loop's. */
    CHECK(fcntl(listener, F_GETFD) == -1 && errno == EBADF);
}

static struct kapok_fiber *short_lived[200];

/* Cancels fibers that end by themselves, and are joined meanwhile. */
static void *cancel_all(void *arg)
{
    int round, at;
    for (round = 0; round < 50; round++) {
        for (at = 0; at < 200; at++) {
            CHECK(kapok_cancel(short_lived[at]) == 0 || errno == ESRCH);
        }
    }
    return arg;
}

static void *join_all(void *arg)
{
    pthread_t thread;
    int at;
    for (at = 0; at < 200; at++) {
        CHECK(kapok_spawn(same, arg, NULL, &short_lived[at]) == 0);
    }
    CHECK(pthread_create(&thread, NULL, cancel_all, NULL) == 0);
    for (at = 0; at < 200; at++) {
        CHECK(kapok_join(short_lived[at], NULL) == 0);
        FAILS(kapok_join(short_lived[at], NULL), ESRCH);
        FAILS(kapok_detach(short_lived[at]), ESRCH);
        FAILS(kapok_cancel(short_lived[at]), ESRCH);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    return arg;
}

/* A thread that is cancelled in a call ends at the next cancellation point. */
static void *receive_on_thread(void *arg)
{
    char byte;
    CHECK(kapok_recv(*(int *)arg, &byte, 1, 0) == 1);
    pthread_testcancel();
    CHECK(0);
    return arg;
}

static void cancelled_thread(void)
{
    pthread_t thread;
    void *result;
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(pthread_create(&thread, NULL, receive_on_thread, &ends[0]) == 0);
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(kapok_sleep(5 * KAPOK_MILLISECOND) == 0 && kapok_write(ends[1], "x", 1) == 1);
    CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void *spawn_without_loop(void *arg)
{
    CHECK(kapok_spawn(same, NULL, NULL, arg) == 0);
    return NULL;
}

int main(void)
{
    struct kapok_fiber *fiber, *canceled, *orphan;
    pthread_t thread;
    char byte;
    int ends[2];
    void *result = NULL;

    CHECK(strcmp(kapok_version(), KAPOK_VERSION) == 0);
    /* On no fiber calls block, and limits have no effect. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(kapok_write(ends[0], "x", 1) == 1 && kapok_read(ends[1], &byte, 1) == 1);
    CHECK(kapok_wait(ends[1], POLLIN, 5 * KAPOK_MILLISECOND) == 0 && kapok_fiber_id() == 0);
    CHECK(kapok_sleep(KAPOK_MILLISECOND) == 0 && kapok_check() == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);

    /* Spawned before the loop: joined after it, and not before. */
    CHECK(kapok_spawn(everything, &byte, NULL, &fiber) == 0);
    CHECK(kapok_spawn(sleep_long, NULL, NULL, &canceled) == 0 && kapok_cancel(canceled) == 0);
    FAILS(kapok_join(fiber, NULL), EDEADLK);
    CHECK(kapok_loop(NULL, NULL) == 0);
    CHECK(kapok_join(fiber, &result) == 0 && result == &byte);
    CHECK(kapok_join(canceled, &result) == 0 && (intptr_t)result == ECANCELED);

    /* The thread that was to run it is gone. */
    CHECK(pthread_create(&thread, NULL, spawn_without_loop, &orphan) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    FAILS(kapok_join(orphan, NULL), EOWNERDEAD);

    CHECK(kapok_spawn(join_all, NULL, NULL, &fiber) == 0 && kapok_loop(NULL, NULL) == 0);
    CHECK(kapok_join(fiber, NULL) == 0);
    cancelled_thread();
    serving();
    printf("fine\n");
    return 0;
}
