// cat_dir PATH…: lists each directory, prints each file.
// cat_dir -w PATH TEXT: writes TEXT to a new file.
// Says what it could not do and exits with 1; tests use it to try to reach what is not granted.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int refuse(const char *path) {
    fprintf(stderr, "cat_dir: %s: %s\n", path, strerror(errno));
    return 1;
}

static int list(const char *path) {
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    if (count < 0) return refuse(path);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        if (strcmp(name, ".") && strcmp(name, "..")) puts(name);
        free(entries[i]);
    }
    free(entries);
    return 0;
}

static int print(const char *path) {
    char buffer[16 * 1024];
    size_t got;
    FILE *file = fopen(path, "rb");
    if (!file) return refuse(path);
    while ((got = fread(buffer, 1, sizeof buffer, file)) > 0) fwrite(buffer, 1, got, stdout);
    int failed = ferror(file) ? refuse(path) : 0;
    fclose(file);
    return failed;
}

static int put(const char *path, const char *text) {
    FILE *file = fopen(path, "wxb");
    if (!file) return refuse(path);
    int failed = fputs(text, file) < 0;
    if (fclose(file) || failed) return refuse(path);
    return 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    if (argc == 4 && !strcmp(argv[1], "-w")) return put(argv[2], argv[3]);
    for (int i = 1; i < argc; i++) {
        struct stat found;
        if (stat(argv[i], &found))
            failed |= refuse(argv[i]);
        else
            failed |= S_ISDIR(found.st_mode) ? list(argv[i]) : print(argv[i]);
    }
    return failed;
}
