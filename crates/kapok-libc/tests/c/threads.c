/* Calls on threads that few programs make, where threads may be fibers. Says what came of each. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t value = -1;
static int detached;
static mtx_t mutex;
static cnd_t changed;
static thrd_t itself[2];

static void handle(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    value = info->si_value.sival_int;
}

/* Until it may end, whatever strikes it. */
static void *wait(void *may_end) {
    while (!atomic_load((atomic_int *)may_end)) usleep(1000);
    return NULL;
}

static int end_alone(void *number) {
    int index = *(int *)number;
    itself[index] = thrd_current();
    usleep(20000);
    mtx_lock(&mutex);
    /* It is who it was before it waited. */
    detached += thrd_equal(itself[index], thrd_current()) != 0;
    cnd_broadcast(&changed);
    mtx_unlock(&mutex);
    return 0;
}

int main(void) {
    static atomic_int may_end;
    static int numbers[2] = {0, 1};
    struct sigaction action;
    pthread_t thread;
    cpu_set_t all, some;
    clockid_t clock;
    struct timespec time;
    thrd_t c11[2];

    pthread_create(&thread, NULL, wait, &may_end);

    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGUSR1, &action, NULL);
    union sigval told;
    told.sival_int = 77;
    printf("sigqueue: %d\n", pthread_sigqueue(thread, SIGUSR1, told));
    while (value < 0) usleep(1000);
    printf("value: %d\n", (int)value);
    printf("no signal: %d\n", pthread_sigqueue(thread, 9999, told));

    printf("priority: %d\n", pthread_setschedprio(thread, 0));
    printf("too high: %d\n", pthread_setschedprio(thread, 99));

    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&some);
    printf("affinity: %d", pthread_getaffinity_np(thread, sizeof some, &some));
    printf(" %d\n", CPU_EQUAL(&all, &some));
    printf("no room: %d\n", pthread_getaffinity_np(thread, 1, &some));
    printf("affinity: %d\n", pthread_setaffinity_np(thread, sizeof all, &all));
    CPU_ZERO(&some);
    printf("nowhere: %d\n", pthread_setaffinity_np(thread, sizeof some, &some));

    printf("clock: %d", pthread_getcpuclockid(thread, &clock));
    printf(" %d\n", clock_gettime(clock, &time));
    atomic_store(&may_end, 1);
    pthread_join(thread, NULL);

    mtx_init(&mutex, mtx_plain);
    cnd_init(&changed);
    for (int at = 0; at < 2; at++) {
        thrd_create(&c11[at], end_alone, &numbers[at]);
        printf("detach: %d\n", thrd_detach(c11[at]) == thrd_success);
    }
    mtx_lock(&mutex);
    while (detached < 2) cnd_wait(&changed, &mutex);
    mtx_unlock(&mutex);
    for (int at = 0; at < 2; at++) printf("current: %d\n", thrd_equal(c11[at], itself[at]) != 0);
    printf("different: %d\n", !thrd_equal(itself[0], itself[1]) && !thrd_equal(itself[0], thrd_current()));
    return 0;
}
