// Hostile: trap unreachable | divide | memory | call.
#include <limits.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "unreachable";
    volatile int zero = 0;
    puts("about to trap");
    fflush(stdout);
    if (!strcmp(how, "divide")) return INT_MAX / zero;
    if (!strcmp(how, "memory")) return *(volatile char *)(UINT_MAX - (unsigned)zero);
    if (!strcmp(how, "call")) return ((int (*)(void))(INT_MAX - zero))();
    __builtin_trap();
}
