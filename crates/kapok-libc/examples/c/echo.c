/*
 * An echo server: a fiber for each connection, plain reads and writes in it.
 *
 *     cc echo.c $(pkg-config --cflags --libs kapok) -o echo && ./echo 7777
 *
 * It ends at the end of its standard input, and says how many connections it had.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <kapok.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int echo(int connection, void *arg)
{
    char buf[4096];
    (void)arg;
    for (;;) {
        ssize_t count = kapok_read(connection, buf, sizeof buf);
        if (count <= 0)
            return (int)count;
        if (kapok_write(connection, buf, (size_t)count) != count)
            return -1;
    }
}

/* Another fiber of the same loop: while it waits, connections are served. */
static void *stop_at_end_of_input(void *arg)
{
    char buf[64];
    ssize_t count;
    (void)arg;
    do
        count = kapok_read(STDIN_FILENO, buf, sizeof buf);
    while (count > 0);
    kapok_stop();
    return NULL;
}

static int listen_at(unsigned short port)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    if (listener < 0
        || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0
        || bind(listener, (struct sockaddr *)&address, sizeof address) != 0
        || listen(listener, 128) != 0
        || getsockname(listener, (struct sockaddr *)&address, &len) != 0) {
        perror("echo: listen");
        exit(1);
    }
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    struct kapok_loop_counters counters = {0};
    counters.size = sizeof counters;
    if (kapok_register(listen_at((unsigned short)(argc > 1 ? atoi(argv[1]) : 0)), echo, NULL) != 0
        || kapok_spawn(stop_at_end_of_input, NULL, NULL, NULL) != 0
        || kapok_loop(NULL, &counters) != 0) {
        perror("echo");
        return 1;
    }
    printf("%llu connections, %llu failed\n", (unsigned long long)counters.accepted,
           (unsigned long long)counters.failed);
    return 0;
}
