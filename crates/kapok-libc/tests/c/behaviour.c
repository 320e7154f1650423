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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
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

/* Of two who join one fiber the second is told. */
static void *join_second(void *fiber)
{
    FAILS(kapok_join(fiber, NULL), EINVAL);
    return fiber;
}

static void *join_myself(void *arg)
{
    /* Stored before this fiber starts. */
    FAILS(kapok_join(*(struct kapok_fiber **)arg, NULL), EDEADLK);
    return arg;
}

static void fibers(void)
{
    struct kapok_fiber *fiber, *other, *second;
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
    CHECK(kapok_spawn(join_other, fiber, NULL, &other) == 0);
    CHECK(kapok_sleep(KAPOK_MILLISECOND) == 0);
    CHECK(kapok_spawn(join_second, fiber, NULL, &second) == 0 && kapok_join(second, NULL) == 0);
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

    /* What is not there now is not waited for. */
    ends[0] = socket(AF_INET, SOCK_DGRAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    CHECK(kapok_timeout_begin(&saved, 5 * KAPOK_SECOND) == 0);
    FAILS(kapok_recv(ends[0], &byte, 1, MSG_ERRQUEUE), EAGAIN);
    CHECK(kapok_limits_end(&saved) == 0 && close(ends[0]) == 0);
    /* More than there can be. */
    FAILS(kapok_send(-1, "x", SIZE_MAX, 0), EBADF);
    FAILS(kapok_write(-1, "x", SIZE_MAX), EBADF);
    FAILS(kapok_read(-1, &byte, SIZE_MAX), EBADF);

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

/* A call that waits, and its argument. */
struct waiting {
    int (*wait)(int);
    int arg;
};

static void *wait_until_cancelled(void *arg)
{
    struct waiting *waiting = arg;
    FAILS(waiting->wait(waiting->arg), ECANCELED);
    return arg;
}

/* A deadline ends the call, and so does a cancellation. */
static void is_interrupted(int (*wait)(int), int arg)
{
    struct waiting waiting = {wait, arg};
    struct kapok_fiber *fiber;
    struct kapok_limits saved;
    uint64_t before = now();
    CHECK(kapok_timeout_begin(&saved, 20 * KAPOK_MILLISECOND) == 0);
    FAILS(wait(arg), ETIMEDOUT);
    CHECK(kapok_limits_end(&saved) == 0);
    CHECK(kapok_spawn(wait_until_cancelled, &waiting, NULL, &fiber) == 0);
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    CHECK(kapok_cancel(fiber) == 0 && kapok_join(fiber, NULL) == 0);
    CHECK(now() - before < 5 * KAPOK_SECOND);
}

static int sleep_an_hour(int arg)
{
    (void)arg;
    return kapok_sleep(3600 * KAPOK_SECOND);
}

static int wait_for_input(int fd)
{
    return kapok_wait(fd, POLLIN, KAPOK_FOREVER);
}

static int read_byte(int fd)
{
    char byte;
    return (int)kapok_read(fd, &byte, 1);
}

static int write_byte(int fd)
{
    return (int)kapok_write(fd, "x", 1);
}

static int accept_one(int fd)
{
    return kapok_accept(fd, NULL, NULL);
}

static int close_after(int result, int fd)
{
    int number = errno;
    CHECK(close(fd) == 0);
    errno = number;
    return result;
}

static struct sockaddr_un unix_address;

static int connect_unix(int flags)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | flags, 0);
    struct sockaddr *address = (struct sockaddr *)&unix_address;
    CHECK(fd >= 0);
    return close_after(kapok_connect(fd, address, sizeof unix_address), fd);
}

/* Whose backlog is full. */
static int listen_full(void)
{
    struct sockaddr *address = (struct sockaddr *)&unix_address;
    int fd, listener, count = 0;
    memset(&unix_address, 0, sizeof unix_address);
    unix_address.sun_family = AF_UNIX;
    /* Of no file. */
    snprintf(unix_address.sun_path + 1, 90, "kapok-behaviour-%d", (int)getpid());
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(listener, address, sizeof unix_address) == 0 && listen(listener, 1) == 0);
    for (;; count++) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(fd, address, sizeof unix_address) != 0)
            break;
        CHECK(close(fd) == 0 && count < 100);
    }
    CHECK(errno == EAGAIN && close(fd) == 0);
    return listener;
}

/* All there are, and those that come into their places. */
static void *accept_soon(void *arg)
{
    struct kapok_limits saved;
    int fd;
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    do {
        CHECK(kapok_timeout_begin(&saved, 100 * KAPOK_MILLISECOND) == 0);
        fd = kapok_accept(*(int *)arg, NULL, NULL);
        CHECK(kapok_limits_end(&saved) == 0);
        CHECK(fd >= 0 ? close(fd) == 0 : errno == ETIMEDOUT);
    } while (fd >= 0);
    return arg;
}

static void full_backlog(int flags)
{
    struct kapok_fiber *fiber;
    int listener = listen_full();
    is_interrupted(connect_unix, flags);
    /* It waits for room. */
    CHECK(kapok_spawn(accept_soon, &listener, NULL, &fiber) == 0);
    CHECK(connect_unix(flags) == 0 && kapok_join(fiber, NULL) == 0);
    CHECK(close(listener) == 0);
}

static struct sockaddr_in black_hole;

static int connect_tcp(int flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    struct sockaddr *address = (struct sockaddr *)&black_hole;
    CHECK(fd >= 0);
    return close_after(kapok_connect(fd, address, sizeof black_hole), fd);
}

/* A listener whose backlog is full drops what comes, and TCP tries again and again. */
static void no_answer(int flags)
{
    struct pollfd waits = {0};
    int fds[100], count = 0, listener = listen_anywhere(&black_hole, 0);
    CHECK(listen(listener, 0) == 0);
    do {
        CHECK(count < 100);
        fds[count] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connect(fds[count], (struct sockaddr *)&black_hole, sizeof black_hole) == 0
              || errno == EINPROGRESS);
        waits.fd = fds[count++];
        waits.events = POLLOUT;
    } while (poll(&waits, 1, 50) == 1);
    is_interrupted(connect_tcp, flags);
    while (count > 0)
        CHECK(close(fds[--count]) == 0);
    CHECK(close(listener) == 0);
}

struct accepting {
    int listener, connection, number;
};

static void *accept_for(void *arg)
{
    struct accepting *accepting = arg;
    accepting->connection = kapok_accept(accepting->listener, NULL, NULL);
    accepting->number = errno;
    return arg;
}

static int connect_now(struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)address, sizeof *address) == 0);
    return fd;
}

enum { ACCEPTERS = 16 };

/* Many accept, and one connection comes. Who has none is cancelled, and the next connection is not lost. */
static void many_accept(int flags)
{
    struct sockaddr_in address;
    struct kapok_fiber *fibers[ACCEPTERS];
    struct kapok_limits saved;
    struct accepting accepting[ACCEPTERS];
    int at, clients[2], connection = -1, listener = listen_anywhere(&address, flags);
    for (at = 0; at < ACCEPTERS; at++) {
        accepting[at].listener = listener;
        accepting[at].connection = -1;
        accepting[at].number = 0;
        CHECK(kapok_spawn(accept_for, &accepting[at], NULL, &fibers[at]) == 0);
    }
    CHECK(kapok_sleep(5 * KAPOK_MILLISECOND) == 0);
    clients[0] = connect_now(&address);
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0);
    for (at = 0; at < ACCEPTERS; at++)
        CHECK(kapok_cancel(fibers[at]) == 0);
    for (at = 0; at < ACCEPTERS; at++) {
        CHECK(kapok_join(fibers[at], NULL) == 0);
        if (accepting[at].connection < 0) {
            CHECK(accepting[at].number == ECANCELED);
        } else {
            CHECK(connection == -1);
            connection = accepting[at].connection;
        }
    }
    CHECK(connection >= 0 && write(clients[0], "abc", 3) == 3);
    read_all(connection, 3);
    CHECK(close(connection) == 0 && close(clients[0]) == 0);

    clients[1] = connect_now(&address);
    CHECK(kapok_timeout_begin(&saved, 5 * KAPOK_SECOND) == 0);
    connection = kapok_accept(listener, NULL, NULL);
    CHECK(connection >= 0 && write(clients[1], "abc", 3) == 3);
    read_all(connection, 3);
    CHECK(kapok_limits_end(&saved) == 0);
    CHECK(close(connection) == 0 && close(clients[1]) == 0);
    /* A thread may have come too late for the connection, and wait for another. */
    CHECK(shutdown(listener, SHUT_RDWR) == 0 && close(listener) == 0);
}

static void fill(int fd)
{
    static char large[1 << 16];
    int flags = fcntl(fd, F_GETFL);
    CHECK(fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
    while (write(fd, large, sizeof large) > 0)
        continue;
    while (write(fd, large, 1) > 0)
        continue;
    CHECK(errno == EAGAIN && fcntl(fd, F_SETFL, flags) == 0);
}

static void *sleep_on_thread(void *arg)
{
    usleep(60 * 1000);
    return arg;
}

static void *block_for_long(void *arg)
{
    void *result = NULL;
    CHECK(kapok_blocking(sleep_on_thread, arg, &result) == 0 && result == arg);
    FAILS(kapok_sleep(KAPOK_SECOND), ECANCELED);
    return arg;
}

/* What runs elsewhere is waited for. */
static void blocking(void)
{
    struct kapok_fiber *fiber;
    struct kapok_limits saved;
    void *result = NULL;
    int number = 5;
    uint64_t before = now();
    CHECK(kapok_timeout_begin(&saved, 20 * KAPOK_MILLISECOND) == 0);
    CHECK(kapok_blocking(sleep_on_thread, &number, &result) == 0 && result == &number);
    CHECK(now() - before >= 60 * KAPOK_MILLISECOND);
    FAILS(kapok_sleep(KAPOK_SECOND), ETIMEDOUT);
    CHECK(kapok_limits_end(&saved) == 0);
    CHECK(kapok_spawn(block_for_long, &number, NULL, &fiber) == 0);
    CHECK(kapok_sleep(20 * KAPOK_MILLISECOND) == 0 && kapok_cancel(fiber) == 0);
    CHECK(kapok_join(fiber, &result) == 0 && result == &number);
}

static void *interruptions(void *arg)
{
    struct sockaddr_in address;
    int nonblocking, listener, ends[2], pipes[2];
    for (nonblocking = 0; nonblocking < 2; nonblocking++) {
        int flags = nonblocking ? SOCK_NONBLOCK : 0;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | flags, 0, ends) == 0);
        CHECK(pipe2(pipes, nonblocking ? O_NONBLOCK : 0) == 0);
        is_interrupted(wait_for_input, ends[0]);
        is_interrupted(read_byte, ends[0]);
        is_interrupted(read_byte, pipes[0]);
        fill(ends[1]);
        fill(pipes[1]);
        is_interrupted(write_byte, ends[1]);
        is_interrupted(write_byte, pipes[1]);
        CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
        CHECK(close(pipes[0]) == 0 && close(pipes[1]) == 0);
        listener = listen_anywhere(&address, flags);
        is_interrupted(accept_one, listener);
        CHECK(close(listener) == 0);
        many_accept(flags);
        full_backlog(flags);
        no_answer(flags);
    }
    is_interrupted(sleep_an_hour, 0);
    blocking();
    return arg;
}

/* On one engine. What is still with a thread keeps no loop from ending. */
static void interrupted_on(const char *engine)
{
    struct kapok_loop_options options = {0};
    struct kapok_fiber *fiber;
    uint64_t before;
    options.size = sizeof options;
    options.engine = engine;
    CHECK(kapok_spawn(interruptions, NULL, NULL, &fiber) == 0);
    before = now();
    if (kapok_loop(&options, NULL) != 0) {
        fprintf(stderr, "no %s: %s\n", engine, strerror(errno));
        exit(77);
    }
    CHECK(kapok_join(fiber, NULL) == 0);
    CHECK(now() - before < 5 * KAPOK_SECOND);
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

/* Without descriptors nothing is begun, and nothing is changed. */
static void without_descriptors(void)
{
    struct sockaddr_in address;
    struct kapok_fiber *fiber;
    struct kapok_loop_options options = {0};
    struct rlimit before, few;
    int taken[32], count, served = 0, listener = listen_anywhere(&address, 0);
    CHECK(kapok_spawn(same, &served, NULL, &fiber) == 0);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 32;
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    for (count = 0; (taken[count] = dup(listener)) >= 0; count++)
        CHECK(count < 31);
    FAILS(kapok_register(listener, hang_up, &served), EMFILE);
    FAILS(kapok_loop(NULL, NULL), EMFILE);
    options.size = sizeof options;
    options.engine = "epoll";
    FAILS(kapok_loop(&options, NULL), EMFILE);
    while (count > 0)
        CHECK(close(taken[--count]) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK((fcntl(listener, F_GETFL) & O_NONBLOCK) == 0 && close(listener) == 0);
    CHECK(kapok_loop(NULL, NULL) == 0 && kapok_join(fiber, NULL) == 0);
}

/* What main may not do where it is a fiber. */
static void main_is_a_fiber(void)
{
    struct sockaddr_in address;
    int served = 0, listener = listen_anywhere(&address, 0);
    CHECK(kapok_fiber_id() != 0);
    FAILS(kapok_register(listener, hang_up, &served), EBUSY);
    FAILS(kapok_loop(NULL, NULL), EDEADLK);
    CHECK(close(listener) == 0);
}

static void *spawn_without_loop(void *arg)
{
    CHECK(kapok_spawn(same, NULL, NULL, arg) == 0);
    return NULL;
}

/* The arguments: nothing, "main-is-a-fiber", or "interrupted-on" and an engine. */
int main(int argc, char **argv)
{
    struct kapok_fiber *fiber, *canceled, *orphan;
    pthread_t thread;
    char byte;
    int ends[2];
    void *result = NULL;

    /* Longer than anything takes that does not hang. */
    alarm(100);
    if (argc > 1) {
        if (strcmp(argv[1], "main-is-a-fiber") == 0)
            main_is_a_fiber();
        else
            interrupted_on(argc > 2 ? argv[2] : "");
        printf("fine\n");
        return 0;
    }
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
    without_descriptors();
    printf("fine\n");
    return 0;
}
