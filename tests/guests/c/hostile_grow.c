// Hostile: takes and touches memory until it is refused, says how much it got, and exits with 3;
// with an argument, it goes on asking for ever.
#include <stdio.h>

enum { PAGE_BYTES = 64 * 1024, PAGES_PER_MIB = 16 };

int main(int argc, char **argv) {
    (void)argv;
    size_t pages = 0, at;
    for (;;) {
        while ((at = __builtin_wasm_memory_grow(0, PAGES_PER_MIB)) != (size_t)-1) {
            for (size_t i = 0; i < PAGES_PER_MIB; i++)
                *(volatile char *)((at + i) * PAGE_BYTES) = 1;
            pages += PAGES_PER_MIB;
        }
        if (argc > 1) continue;
        printf("refused after %zu MiB\n", pages / PAGES_PER_MIB);
        return 3;
    }
}
