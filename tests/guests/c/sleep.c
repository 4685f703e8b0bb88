// sleep SECONDS: says when it lies down and when it is up again.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    puts("asleep");
    fflush(stdout);
    if (nanosleep(&time, NULL)) return 1;
    puts("awake");
    return 0;
}
