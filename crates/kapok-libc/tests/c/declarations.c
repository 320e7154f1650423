/* Every structure and constant of the header, in what C99 and C++ have in common. */
#include <kapok.h>

#ifdef __cplusplus
#define ENTRY extern "C"
#else
#define ENTRY
#endif

ENTRY void *entry(void *arg)
{
    return arg;
}

ENTRY int handler(int connection, void *arg)
{
    (void)arg;
    return connection < 0;
}

int main(void)
{
    struct kapok_loop_options loop;
    struct kapok_spawn_options spawn;
    struct kapok_loop_counters counters;
    struct kapok_limits limits;
    kapok_fiber *fiber = 0;
    kapok_entry an_entry = entry;
    kapok_handler a_handler = handler;
    uint64_t constants = KAPOK_NANOSECOND + KAPOK_MICROSECOND + KAPOK_MILLISECOND + KAPOK_SECOND;
    loop.size = sizeof loop;
    spawn.size = sizeof spawn;
    counters.size = sizeof counters;
    limits.deadline = KAPOK_FOREVER;
    (void)loop, (void)spawn, (void)counters, (void)limits, (void)fiber, (void)constants;
    return an_entry && a_handler && kapok_version() ? 0 : 1;
}
