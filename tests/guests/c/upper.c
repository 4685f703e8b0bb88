// Standard input in upper case, line by line: each line is written before the next is read, so
// that a conversation goes through it without delay.
#include <ctype.h>
#include <stdio.h>

int main(void) {
    int c;
    setvbuf(stdout, NULL, _IOFBF, 64 * 1024);
    while ((c = getchar()) != EOF) {
        putchar(toupper(c));
        if (c == '\n' && fflush(stdout)) return 1;
    }
    return ferror(stdin) || fflush(stdout);
}
