// Hostile: calls itself until the stack ends.
#include <stdio.h>

static __attribute__((noinline)) unsigned deeper(volatile unsigned *depth) {
    return ++*depth ? deeper(depth) + *depth : 0;
}

int main(void) {
    volatile unsigned depth = 0;
    printf("%u\n", deeper(&depth));
    return 0;
}
