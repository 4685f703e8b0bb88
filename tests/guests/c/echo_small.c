// Standard input to standard output, nothing else: no libc, a few hundred bytes, one page of
// memory. For measuring an invocation rather than a guest.
typedef __SIZE_TYPE__ size_t;

struct buffer {
    char *bytes;
    size_t length;
};

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))
WASI("fd_read") int fd_read(int fd, const struct buffer *buffers, size_t count, size_t *read);
WASI("fd_write") int fd_write(int fd, const struct buffer *buffers, size_t count, size_t *done);
WASI("proc_exit") _Noreturn void proc_exit(int code);

static char bytes[16 * 1024];

__attribute__((export_name("_start"))) void start(void) {
    for (;;) {
        struct buffer rest = {bytes, sizeof bytes};
        size_t done;
        if (fd_read(0, &rest, 1, &rest.length)) proc_exit(1);
        if (!rest.length) return;
        for (; rest.length; rest.bytes += done, rest.length -= done)
            if (fd_write(1, &rest, 1, &done) || !done) proc_exit(1);
    }
}
