// wordcount [TOP]: counts lines, words and bytes of standard input as wc does, and shows the
// TOP (default 10) most frequent words, letters and apostrophes only, in lower case.
// Reads a stream of any length; memory grows with the number of different words.
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    READ_BYTES = 64 * 1024,
    WORD_MAX = 64,  // a longer word is counted by its first bytes
    TOP_MAX = 1000,
};

struct entry {
    char *word;
    uint32_t hash;
    uint64_t count;
};

// Open addressing; the size is a power of two, and at most half of it is used.
static struct entry *table;
static size_t table_size, table_used;

static void die(const char *what) {
    fprintf(stderr, "wordcount: %s\n", what);
    exit(1);
}

static struct entry *find(const char *word, uint32_t hash) {
    size_t at = hash & (table_size - 1);
    while (table[at].word && (table[at].hash != hash || strcmp(table[at].word, word)))
        at = (at + 1) & (table_size - 1);
    return &table[at];
}

static void enlarge(void) {
    struct entry *old = table;
    size_t old_size = table_size;
    table_size = old_size ? old_size * 2 : 4096;
    table = calloc(table_size, sizeof *table);
    if (!table) die("too many different words for this memory");
    for (size_t i = 0; i < old_size; i++)
        if (old[i].word) *find(old[i].word, old[i].hash) = old[i];
    free(old);
}

static void count(const char *word) {
    uint32_t hash = 2166136261u;  // FNV-1a
    for (const char *p = word; *p; p++) hash = (hash ^ (unsigned char)*p) * 16777619u;
    if (table_used * 2 >= table_size) enlarge();
    struct entry *entry = find(word, hash);
    if (!entry->word) {
        entry->word = strdup(word);
        if (!entry->word) die("too many different words for this memory");
        entry->hash = hash;
        table_used++;
    }
    entry->count++;
}

static int by_count(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return strcmp(x->word, y->word);
}

static void show_top(size_t top) {
    struct entry *words = malloc((table_used + 1) * sizeof *words);
    if (!words) die("no memory to sort the words");
    size_t n = 0;
    for (size_t i = 0; i < table_size; i++)
        if (table[i].word) words[n++] = table[i];
    qsort(words, n, sizeof *words, by_count);
    for (size_t i = 0; i < n && i < top; i++)
        printf("%8llu %s\n", (unsigned long long)words[i].count, words[i].word);
}

int main(int argc, char **argv) {
    static unsigned char buffer[READ_BYTES];
    int top = argc > 1 ? atoi(argv[1]) : 10;
    if (top < 0 || top > TOP_MAX) die("TOP must be 0 to 1000");

    uint64_t lines = 0, words = 0, bytes = 0;
    char word[WORD_MAX + 1];
    size_t length = 0, got;
    int inside = 0;
    while ((got = fread(buffer, 1, sizeof buffer, stdin)) > 0) {
        bytes += got;
        for (size_t i = 0; i < got; i++) {
            int c = buffer[i];
            lines += c == '\n';
            words += !inside && !isspace(c);
            inside = !isspace(c);
            if (isalpha(c) || (c == '\'' && length)) {
                if (length < WORD_MAX) word[length++] = (char)tolower(c);
            } else if (length) {
                word[length] = 0;
                count(word);
                length = 0;
            }
        }
    }
    if (ferror(stdin)) die("cannot read the input");
    if (length) {
        word[length] = 0;
        count(word);
    }
    printf("lines %llu\nwords %llu\nbytes %llu\n", (unsigned long long)lines,
           (unsigned long long)words, (unsigned long long)bytes);
    show_top((size_t)top);
    return 0;
}
