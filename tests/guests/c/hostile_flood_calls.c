// Hostile: asks the host for the time for ever, as fast as it can.
#include <time.h>

int main(void) {
    struct timespec now;
    for (;;) clock_gettime(CLOCK_MONOTONIC, &now);
}
