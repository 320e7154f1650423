/* A program with a thread for each task, as one in C is that knows nothing of fibers. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* Where they are threads, fewer do: a thousand may be more than the user's processes. */
enum { THREADS = 1000, BARE_THREADS = 200 };

static pthread_key_t key;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int destroyed, cleaned, detached_ended;

/* Threads end at the same time. */
static void destroy(void *value) { __atomic_fetch_add(&destroyed, *(int *)value, __ATOMIC_SEQ_CST); }

static int os_threads(void)
{
    char line[128];
    int threads = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "Threads: %d", &threads) == 1) break;
    }
    fclose(status);
    return threads;
}

struct task {
    int in, out, number;
    pthread_t self;
};

/* Sleeps, passes what it reads on with its own number added, and returns it. */
static void *pass_on(void *arg)
{
    struct task *task = arg;
    static int one = 1;
    uint32_t sum;
    CHECK(pthread_getspecific(key) == NULL && pthread_setspecific(key, &one) == 0);
    errno = task->number;
    CHECK(usleep(100000) == 0);
    /* Comes when all have been created. */
    CHECK(read(task->in, &sum, sizeof sum) == sizeof sum);
    CHECK(pthread_equal(pthread_self(), task->self));
    sum += task->number;
    CHECK(errno == task->number);
    CHECK(write(task->out, &sum, sizeof sum) == sizeof sum);
    CHECK(errno == task->number);
    return (void *)(uintptr_t)sum;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void many(int are_fibers)
{
    static struct task tasks[THREADS];
    static pthread_t threads[THREADS];
    uint32_t sum = 0, expected = 0;
    int ends[2], first, at, before = os_threads();
    int count = are_fibers ? THREADS : BARE_THREADS;
    double began = now();
    CHECK(pipe(ends) == 0);
    first = ends[1];
    for (at = 0; at < count; at++) {
        tasks[at].in = ends[0];
        tasks[at].number = at + 1;
        CHECK(pipe(ends) == 0);
        tasks[at].out = ends[1];
    }
    for (at = 0; at < count; at++) {
        CHECK(pthread_create(&threads[at], NULL, pass_on, &tasks[at]) == 0);
        tasks[at].self = threads[at];
        CHECK(at == 0 || !pthread_equal(threads[at], threads[at - 1]));
    }
    CHECK(write(first, &sum, sizeof sum) == sizeof sum);
    if (are_fibers) {
        CHECK(usleep(50000) == 0);
        /* What Kapok has besides, and io_uring's workers, but no thousand. */
        CHECK(os_threads() < before + 100);
    }
    CHECK(read(ends[0], &sum, sizeof sum) == sizeof sum);
    for (at = 0; at < count; at++) {
        void *value;
        expected += at + 1;
        CHECK(pthread_join(threads[at], &value) == 0);
        CHECK((uintptr_t)value == expected);
    }
    CHECK(sum == expected && destroyed == count);
    /* One after the other they would have slept for 100 seconds. */
    CHECK(now() - began < 50);
}

static void clean(void *arg) { cleaned = cleaned * 10 + *(int *)arg; }

static void leave_deeply(int depth)
{
    static int one = 1, two = 2;
    pthread_cleanup_push(clean, depth == 1 ? (void *)&one : (void *)&two);
    usleep(100);
    if (depth == 1) {
        pthread_exit(&cleaned);
    }
    if (depth > 1) leave_deeply(depth - 1);
    pthread_cleanup_pop(0);
}

static void *leave(void *arg)
{
    pthread_cleanup_push(clean, arg);
    pthread_cleanup_pop(1);
    leave_deeply(2);
    CHECK(0);
    return NULL;
}

static void *sleep_for(void *arg)
{
    usleep(*(int *)arg);
    return arg;
}

static void *sleep_detached(void *arg)
{
    usleep(*(int *)arg);
    pthread_mutex_lock(&mutex);
    detached_ended++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    return arg;
}

static void *join_myself(void *arg)
{
    CHECK(pthread_join(pthread_self(), NULL) == EDEADLK);
    return arg;
}

static struct timespec in_milliseconds(long milliseconds)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += milliseconds * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static void ends(int are_fibers)
{
    static int none = 0, short_time = 300000, nine = 9;
    struct timespec at;
    pthread_t thread;
    void *value;
    int began;

    CHECK(pthread_create(&thread, NULL, leave, &nine) == 0);
    CHECK(pthread_join(thread, &value) == 0 && value == &cleaned);
    CHECK(cleaned == 912);

    CHECK(pthread_create(&thread, NULL, sleep_for, &short_time) == 0);
    CHECK(pthread_tryjoin_np(thread, &value) == EBUSY);
    at = in_milliseconds(2);
    CHECK(pthread_timedjoin_np(thread, &value, &at) == ETIMEDOUT);
    CHECK(pthread_kill(thread, 0) == 0);
    at = in_milliseconds(60000);
    CHECK(pthread_timedjoin_np(thread, &value, &at) == 0 && value == &short_time);
    CHECK(pthread_create(&thread, NULL, sleep_for, &none) == 0);
    while ((began = pthread_tryjoin_np(thread, &value)) == EBUSY) {}
    CHECK(began == 0 && value == &none);
    CHECK(pthread_create(&thread, NULL, join_myself, NULL) == 0 && pthread_join(thread, NULL) == 0);

    /* Nobody joins a thread that is detached, whenever it was. */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    CHECK(pthread_create(&thread, &attributes, sleep_detached, &short_time) == 0);
    CHECK(pthread_join(thread, NULL) == EINVAL);
    CHECK(pthread_create(&thread, NULL, sleep_detached, &short_time) == 0);
    CHECK(pthread_detach(thread) == 0);
    CHECK(pthread_detach(thread) == EINVAL);
    pthread_mutex_lock(&mutex);
    while (detached_ended < 2) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    pthread_attr_destroy(&attributes);
    if (are_fibers) {
        CHECK(usleep(1000) == 0);
        CHECK(pthread_join(thread, NULL) == ESRCH);
    }
}

/* As deep as it was asked for. */
static void *deeply(void *arg)
{
    volatile char bytes[20 << 20];
    pthread_attr_t attributes;
    void *lowest;
    size_t size;
    for (int at = (int)sizeof bytes - 1; at >= 0; at -= 4096) bytes[at] = 1;
    CHECK(pthread_getattr_np(pthread_self(), &attributes) == 0);
    CHECK(pthread_attr_getstack(&attributes, &lowest, &size) == 0);
    CHECK((char *)&bytes[0] > (char *)lowest && (char *)&bytes[0] < (char *)lowest + size);
    pthread_attr_destroy(&attributes);
    return arg;
}

static int in_c11(void *arg)
{
    thrd_yield();
    if (arg != NULL) thrd_exit(-6);
    return -5;
}

static void attributes(int are_fibers)
{
    char name[16];
    pthread_t thread;
    pthread_attr_t attributes;
    thrd_t c11;
    int result, policy;
    struct sched_param parameters;
    static int time = 5000;

    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, 24 << 20) == 0);
    CHECK(pthread_create(&thread, &attributes, deeply, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_attr_destroy(&attributes);

    CHECK(thrd_create(&c11, in_c11, NULL) == thrd_success);
    CHECK(thrd_join(c11, &result) == thrd_success && result == -5);
    CHECK(thrd_create(&c11, in_c11, &time) == thrd_success);
    CHECK(thrd_join(c11, &result) == thrd_success && result == -6);

    CHECK(pthread_create(&thread, NULL, sleep_for, &time) == 0);
    CHECK(pthread_setname_np(thread, "a name") == 0);
    CHECK(pthread_setname_np(thread, "a name that is too long") == ERANGE);
    CHECK(pthread_getname_np(thread, name, sizeof name) == 0 && strcmp(name, "a name") == 0);
    CHECK(pthread_getschedparam(thread, &policy, &parameters) == 0 && policy == SCHED_OTHER);
    if (are_fibers) CHECK(pthread_cancel(thread) == ENOTSUP);
    CHECK(pthread_join(thread, NULL) == 0);
}

static pthread_key_t last_words;

/* The end of a thread is that of its destructors, which may wait. */
static void say(void *words)
{
    usleep(1000);
    printf("fine, %s\n", (char *)words);
}

static void *end_last(void *arg)
{
    usleep(20000);
    CHECK(pthread_setspecific(last_words, arg) == 0);
    return NULL;
}

int main(int argc, char **argv)
{
    int are_fibers = argc > 1 && strcmp(argv[1], "fibers") == 0;
    pthread_t thread;
    CHECK(pthread_key_create(&key, destroy) == 0);
    many(are_fibers);
    ends(are_fibers);
    attributes(are_fibers);
    CHECK(pthread_key_create(&last_words, say) == 0);
    CHECK(pthread_create(&thread, NULL, end_last, argv[1]) == 0);
    pthread_detach(thread);
    /* The process goes on until the last thread has ended. */
    pthread_exit(NULL);
}
