/*
 * A server of queries: a line from a client is a query to PostgreSQL, made through libpq by the
 * connection's fiber. libpq knows nothing of fibers: the functions of the C library that it waits in
 * are hooked, because libkapok is linked before it.
 *
 *     cc queries.c $(pkg-config --cflags --libs kapok libpq) -o queries
 *     ./queries 'host=127.0.0.1 dbname=postgres' 7778
 *
 * All clients are served by one thread. It ends at the end of its standard input.
 */
#include <arpa/inet.h>
#include <kapok.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int reply(int client, const char *text)
{
    size_t len = strlen(text);
    return kapok_write(client, text, len) == (ssize_t)len ? 0 : -1;
}

/* Runs one query and writes its rows, one to a line and separated by tabs, and a line with a dot. */
static int answer(int client, PGconn *database, const char *query)
{
    PGresult *result = PQexec(database, query);
    ExecStatusType status = PQresultStatus(result);
    int failed = 0;
    if (status == PGRES_TUPLES_OK) {
        for (int row = 0; row < PQntuples(result) && !failed; row++)
            for (int column = 0; column < PQnfields(result) && !failed; column++)
                failed = reply(client, PQgetvalue(result, row, column))
                    || reply(client, column + 1 < PQnfields(result) ? "\t" : "\n");
    } else if (status != PGRES_COMMAND_OK) {
        failed = reply(client, PQerrorMessage(database));
    }
    PQclear(result);
    return failed || reply(client, ".\n") ? -1 : 0;
}

static int serve(int client, void *conninfo)
{
    char line[8192];
    size_t len = 0;
    int failed = 0;
    PGconn *database = PQconnectdb(conninfo);
    if (PQstatus(database) != CONNECTION_OK) {
        reply(client, PQerrorMessage(database));
        failed = -1;
    }
    while (!failed) {
        char *end;
        ssize_t count = kapok_read(client, line + len, sizeof line - 1 - len);
        if (count <= 0) {
            failed = count < 0 ? -1 : 0;
            break;
        }
        len += (size_t)count;
        line[len] = '\0';
        while (!failed && (end = strchr(line, '\n')) != NULL) {
            *end = '\0';
            failed = answer(client, database, line);
            len -= (size_t)(end + 1 - line);
            memmove(line, end + 1, len + 1);
        }
        if (len == sizeof line - 1)
            failed = reply(client, "the line is too long\n") - 1;
    }
    PQfinish(database);
    return failed;
}

static void *stop_at_end_of_input(void *arg)
{
    char buf[64];
    (void)arg;
    while (kapok_read(STDIN_FILENO, buf, sizeof buf) > 0)
        continue;
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
        perror("queries: listen");
        exit(1);
    }
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: queries CONNINFO [PORT]\n");
        return 2;
    }
    if (kapok_register(listen_at((unsigned short)(argc > 2 ? atoi(argv[2]) : 0)), serve, argv[1]) != 0
        || kapok_spawn(stop_at_end_of_input, NULL, NULL, NULL) != 0
        || kapok_loop(NULL, NULL) != 0) {
        perror("queries");
        return 1;
    }
    return 0;
}
