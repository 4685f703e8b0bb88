// Preloaded into an agent: every sync takes 10 ms longer, as on a slow disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

static void late(void) {
    struct timespec left = {.tv_nsec = SLOWDISK_DELAY_MS * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

// The C library's own, looked up each time: that is nothing beside the delay.
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    late();
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    late();
    return REAL(fdatasync)(fd);
}

int syncfs(int fd) {
    late();
    return REAL(syncfs)(fd);
}

int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned int flags) {
    late();
    return REAL(sync_file_range)(fd, offset, bytes, flags);
}
