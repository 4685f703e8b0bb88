// Hostile: writes to standard output for ever; with an argument, to standard error.
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char line[64 * 1024];
    (void)argv;
    memset(line, 'x', sizeof line);
    for (size_t i = 79; i < sizeof line; i += 80) line[i] = '\n';
    while (write(argc > 1 ? 2 : 1, line, sizeof line) > 0) {
    }
    return 1;
}
