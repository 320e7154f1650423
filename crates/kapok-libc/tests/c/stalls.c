/* Calls that no hook can suspend: whoever waits in them keeps its loop from going on. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Long enough to be found on a busy machine, by a watchdog with a fortieth of it. */
static const useconds_t LONG = 800 * 1000;

/* Reads a line that a child writes late, through stdio. */
__attribute__((noinline)) static int reads_a_line(void) {
    int pipes[2];
    if (pipe(pipes) != 0) return 1;
    if (fork() == 0) {
        usleep(LONG);
        _exit(write(pipes[1], "late\n", 5) != 5);
    }
    FILE *stream = fdopen(pipes[0], "r");
    char line[16];
    int failed = fgets(line, sizeof line, stream) == NULL || strcmp(line, "late\n") != 0;
    fclose(stream);
    return failed || wait(NULL) < 0;
}

__attribute__((noinline)) static int runs_a_command(void) {
    return system("sleep 0.8") != 0;
}

/* popen(3) itself is over at once; its end waits for the command's. */
__attribute__((noinline)) static int ends_a_pipe(void) {
    FILE *stream = popen("sleep 0.8", "r");
    return stream == NULL || pclose(stream) != 0;
}

int main(int argc, char **argv) {
    int failed = argc < 2              ? 1
        : strcmp(argv[1], "fgets") == 0  ? reads_a_line()
        : strcmp(argv[1], "system") == 0 ? runs_a_command()
        : strcmp(argv[1], "pclose") == 0 ? ends_a_pipe()
                                         : 1;
    /* The watchdog says, too, when it was over. */
    usleep(300 * 1000);
    puts(failed ? "failed" : "done");
    return failed;
}
