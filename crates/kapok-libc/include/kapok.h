/*
 * Kapok in C: fibers that run plain blocking code.
 *
 * Generated from crates/kapok-libc/src/api. Each function has a man page in section 3.
 *
 * Functions that return an int or an ssize_t return -1 and set errno when they fail. errno is left
 * alone otherwise, also while a fiber waits. Called on no fiber, they block the thread.
 */

#ifndef KAPOK_H
#define KAPOK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

/** The version of this header. */
#define KAPOK_VERSION "0.1.0"

/** All durations are given in nanoseconds. */
#define KAPOK_NANOSECOND UINT64_C(1)
#define KAPOK_MICROSECOND UINT64_C(1000)
#define KAPOK_MILLISECOND UINT64_C(1000000)
#define KAPOK_SECOND UINT64_C(1000000000)

/** No time limit. */
#define KAPOK_FOREVER UINT64_MAX

/**
 * A fiber, to be joined or detached once.
 */
typedef struct kapok_fiber kapok_fiber;

/**
 * What a fiber runs: it gets the argument that was given with it, and its result is what
 * kapok_join() gives. It must not end otherwise than by returning.
 */
typedef void *(*kapok_entry)(void *arg);

/**
 * How kapok_spawn() makes a fiber. Set everything to zero, then the size: what is zero is the
 * default.
 */
typedef struct kapok_spawn_options {
  /**
   * sizeof(struct kapok_spawn_options)
   */
  size_t size;
  /**
   * The name by which reports call the fiber, in UTF-8; copied. NULL: none.
   */
  const char *name;
  /**
   * Bytes of stack, of which memory is used as it is touched. Default 192 KiB, at most 1 GiB.
   */
  size_t stack_size;
} kapok_spawn_options;

/**
 * What was in force before kapok_timeout_begin() or kapok_shield_begin(), for kapok_limits_end().
 */
typedef struct kapok_limits {
  /**
   * Not for programs.
   */
  uint64_t deadline;
  /**
   * Not for programs.
   */
  uint64_t shields;
} kapok_limits;

/**
 * Serves one connection, on a fiber of its own: it gets the connection, and the argument that was
 * given with it. What it returns is counted as a failure unless it is 0. The connection is closed when
 * it returns, and it must not end in another way.
 */
typedef int (*kapok_handler)(int connection, void *arg);

/**
 * How kapok_loop() runs. Set everything to zero, then the size: what is zero is the default.
 */
typedef struct kapok_loop_options {
  /**
   * sizeof(struct kapok_loop_options)
   */
  size_t size;
  /**
   * "uring", "epoll", "poll", "select", "busy" or "auto"; NULL: what the environment variable
   * KAPOK_ENGINE says, and else the best there is.
   */
  const char *engine;
  /**
   * Nanoseconds between two sweeps over the connections. Default 2 s.
   */
  uint64_t sweep_interval;
  /**
   * Nanoseconds that fibers have for ending when the loop ends. Default 10 s.
   */
  uint64_t close_limit;
  /**
   * Nanoseconds after which a fiber that does not wait is reported, on standard error. Default: what
   * the environment variable KAPOK_WATCHDOG_MS says, and else never.
   */
  uint64_t watchdog;
  /**
   * Not 0: SIGUSR2 prints every fiber to standard error, from now on.
   */
  uint32_t dump_on_signal;
} kapok_loop_options;

/**
 * What a loop has counted. Set the size.
 */
typedef struct kapok_loop_counters {
  /**
   * sizeof(struct kapok_loop_counters)
   */
  size_t size;
  /**
   * Connections accepted.
   */
  uint64_t accepted;
  /**
   * Times that a connection could not be accepted for want of descriptors or memory.
   */
  uint64_t refused;
  /**
   * Handlers that returned something other than 0.
   */
  uint64_t failed;
  /**
   * Connections whose peer had reset them, as a sweep found.
   */
  uint64_t reaped;
  /**
   * Edges that the engine lost and a sweep found. Anything but 0 is a bug in the engine.
   */
  uint64_t lost_edges;
  /**
   * Sweeps made.
   */
  uint64_t sweeps;
} kapok_loop_counters;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, as in "0.1.0". The header's is KAPOK_VERSION.
 */
const char *kapok_version(void);

/**
 * Spawns a fiber that runs entry(arg). On a fiber it is of the same loop; elsewhere it is of the
 * loop that this thread runs next by kapok_loop(), and starts there. If fiber is NULL it is detached,
 * otherwise it is to be given to kapok_join() or kapok_detach() once.
 *
 * The caller promises:
 *
 * `entry` may be called with `arg` on this thread; `options` is NULL or points to as many bytes as it
 * says, with a name that is NULL or a string; `fiber` is NULL or may be written to.
 */
int kapok_spawn(kapok_entry entry,
                void *arg,
                const struct kapok_spawn_options *options,
                struct kapok_fiber **fiber);

/**
 * Waits for a fiber to end, and gives what it returned. The fiber is freed then. Any thread and any
 * fiber may join, one of them, once.
 *
 * If the *caller* is interrupted (ECANCELED, ETIMEDOUT, ECONNRESET), would wait for itself (EDEADLK),
 * or comes while another waits (EINVAL), the other fiber goes on, and can still be joined. After any
 * other error it is over and freed: ENOMEM if there was no stack for it, EOWNERDEAD if its loop ended
 * before it, ENOTRECOVERABLE if a panic ended it, ESRCH if it was joined or detached before.
 *
 * The caller promises:
 *
 * `result` is NULL or may be written to.
 */
int kapok_join(struct kapok_fiber *fiber,
               void **result);

/**
 * Lets a fiber go on by itself; it cannot be joined any more. ESRCH if it was joined or detached before.
 */
int kapok_detach(struct kapok_fiber *fiber);

/**
 * Requests the cancellation of a fiber: the call it waits in, and every later one that would wait,
 * fails with ECANCELED, unless it has something to return. The fiber ends when its function returns.
 * It is still to be joined or detached. May be called while another waits in kapok_join() for it, and
 * gives ESRCH if it has been joined, or detached, by then.
 */
int kapok_cancel(struct kapok_fiber *fiber);

/**
 * Lets other fibers run; on no fiber, sched_yield(2).
 */
void kapok_yield(void);

/**
 * Sleeps for so many nanoseconds: a fiber is suspended, on no fiber the thread sleeps.
 */
int kapok_sleep(uint64_t nanoseconds);

/**
 * The number of the fiber that calls, which no other of the process has; 0 on no fiber.
 */
uint64_t kapok_fiber_id(void);

/**
 * Runs entry(arg) on a thread made for what blocks, and suspends the fiber until it has returned: for
 * long computations and calls that block by themselves. There it is on no fiber. It cannot be
 * interrupted. On no fiber it runs on the spot.
 *
 * The caller promises:
 *
 * `entry` may be called with `arg` on another thread; `result` is NULL or may be written to.
 */
int kapok_blocking(kapok_entry entry,
                   void *arg,
                   void **result);

/**
 * Puts a deadline, so many nanoseconds from now, around the calls of this fiber up to
 * kapok_limits_end(): each that would wait longer fails with ETIMEDOUT. Of deadlines around each
 * other the nearest counts. On no fiber it has no effect.
 *
 * The caller promises:
 *
 * `saved` points to a structure that may be written to.
 */
int kapok_timeout_begin(struct kapok_limits *saved, uint64_t nanoseconds);

/**
 * Keeps the fiber's cancellation, and deadlines set before, from interrupting its calls up to
 * kapok_limits_end(): for clean-up that has to wait. A deadline set meanwhile counts. On no fiber
 * it has no effect.
 *
 * The caller promises:
 *
 * `saved` points to a structure that may be written to.
 */
int kapok_shield_begin(struct kapok_limits *saved);

/**
 * Puts the limits back that were in force before a kapok_timeout_begin() or kapok_shield_begin().
 * What began last ends first.
 *
 * The caller promises:
 *
 * `saved` points to a structure that one of them filled in, on this fiber.
 */
int kapok_limits_end(const struct kapok_limits *saved);

/**
 * Fails as a call that waits would fail now: with ECANCELED if the fiber is cancelled, ETIMEDOUT if
 * a deadline has passed, ECONNRESET if the peer of the connection that the fiber serves is gone. For
 * long computations that want to notice.
 */
int kapok_check(void);

/**
 * Gives a listening TCP socket and its handler to the loop that this thread runs next by
 * kapok_loop(). From then on the socket is the loop's, which closes it when it ends; it is made
 * non-blocking. After an error it is still the caller's.
 *
 * The caller promises:
 *
 * `handler` may be called with `arg` on this thread. Nobody closes `listener` any more.
 */
int kapok_register(int listener, kapok_handler handler, void *arg);

/**
 * Runs the loop of this thread: what it was given by kapok_register() and kapok_spawn(), until
 * kapok_stop() is called or, without listeners, until the last fiber has ended. If counters is not
 * NULL it is filled in when the loop has ended.
 *
 * It fails with EDEADLK on a fiber, EINVAL for options that are none, and with what the engine's making
 * says; then everything is left as it was.
 *
 * The caller promises:
 *
 * `options` is NULL or points to as many bytes as it says, with an engine that is NULL or a string;
 * `counters` likewise, and may be written to.
 */
int kapok_loop(const struct kapok_loop_options *options,
               struct kapok_loop_counters *counters);

/**
 * Ends the loop that calls it; called from a thread without one, every loop of the process. Its
 * listeners are closed, and fibers that are left are cancelled. What comes before a loop has begun is
 * lost.
 */
void kapok_stop(void);

/**
 * Waits for a connection and takes it: its descriptor, which is close-on-exec and the caller's to
 * close. addr and addrlen are those of accept(2), and may be NULL. Waits whether or not the listener has
 * O_NONBLOCK.
 *
 * The caller promises:
 *
 * `addr` is NULL, or has room for `*addrlen` bytes and both may be written to.
 */
int kapok_accept(int listener,
                 struct sockaddr *addr,
                 socklen_t *addrlen);

/**
 * Connects a socket, and waits until it is connected, whether or not it has O_NONBLOCK. After an
 * error, an interruption included, there is nothing to do with the socket but to close it.
 *
 * The caller promises:
 *
 * `addr` points to an address of `addrlen` bytes.
 */
int kapok_connect(int fd, const struct sockaddr *addr, socklen_t addrlen);

/**
 * Waits until one of events (POLLIN, POLLOUT, … of poll(2)) holds of a descriptor, for so many
 * nanoseconds at most, or KAPOK_FOREVER. Gives the events that hold, POLLERR and POLLHUP included, and 0
 * if the time has passed. For libraries that do their own non-blocking calls.
 */
int kapok_wait(int fd,
               int16_t events,
               uint64_t nanoseconds);

/**
 * Closes a descriptor. Never to be repeated: whatever it gives, the descriptor is gone. The connection
 * that a handler serves is its loop's to close: here it is shut down in both directions, whoever calls,
 * and its number stays taken until the handler returns; a second time gives EBADF.
 */
int kapok_close(int fd);

/**
 * Receives up to len bytes: what has come, at least one, or 0 at the end of a stream. Waits for it,
 * whether or not the socket has O_NONBLOCK, unless flags have MSG_DONTWAIT, MSG_ERRQUEUE or, on a
 * stream, MSG_OOB.
 *
 * The caller promises:
 *
 * `buf` has room for `len` bytes, and is nobody else's until this returns.
 */
ssize_t kapok_recv(int fd, void *buf, size_t len, int flags);

/**
 * Sends all len bytes, waiting for room, whether or not the socket has O_NONBLOCK. Less is sent only if
 * an error or an interruption comes after the first bytes, or if flags have MSG_DONTWAIT. Raises no
 * SIGPIPE.
 *
 * The caller promises:
 *
 * `buf` has `len` bytes that nobody changes until this returns.
 */
ssize_t kapok_send(int fd,
                   const void *buf,
                   size_t len,
                   int flags);

/**
 * Reads up to count bytes from a socket, pipe, terminal or file, at its current position: what is
 * there, at least one, or 0 at the end. Waits for it, whether or not the descriptor has O_NONBLOCK.
 * count 0 gives 0 at once.
 *
 * The caller promises:
 *
 * `buf` has room for `count` bytes, and is nobody else's until this returns.
 */
ssize_t kapok_read(int fd, void *buf, size_t count);

/**
 * Writes all count bytes to a socket, pipe, terminal or file, at its current position, waiting for
 * room, whether or not the descriptor has O_NONBLOCK. Less is written only if an error or an
 * interruption comes after the first bytes. On a socket it raises no SIGPIPE.
 *
 * The caller promises:
 *
 * `buf` has `count` bytes that nobody changes until this returns.
 */
ssize_t kapok_write(int fd, const void *buf, size_t count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KAPOK_H */
