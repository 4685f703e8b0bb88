// A keyed store of counters. Each answer is the value that is acknowledged, as text.
//
//     GET    /KEY              the value; 0 if it was never set
//     POST   /KEY/add?n=5      adds (default 1, may be negative); the new value
//     PUT    /KEY              sets it to the body
//     DELETE /KEY              forgets it
//
// For benchmarks, memory that does something to checkpoints and moves; the key says which shard:
//
//     POST   /KEY/fill?mib=8   takes 8 MiB more memory and fills it; how many MiB there are
//     POST   /KEY/touch?kib=64 changes 64 KiB of it, another part each time; how many KiB
#include "hop3.h"

enum { PATH_MAX = 1024, FILL_MIB_MAX = 1024, PAGE = 65536 };

// What was filled: words from `filled`, the next of them to be touched, and where the
// pseudo-random numbers are. They do not compress, so that sizes are honest.
static uint64_t *filled;
static size_t words, next;
static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t draw(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

// More memory, at the end of what there is; 0 if it is refused.
static void *more_memory(size_t bytes) {
#ifdef __wasm__
    size_t before = __builtin_wasm_memory_grow(0, bytes / PAGE);
    return before == SIZE_MAX ? 0 : (void *)(before * PAGE);
#else
    extern void *test_memory(size_t bytes);
    return test_memory(bytes);
#endif
}

static int reply_number(int64_t number) {
    char text[21];
    hop3_decimal(number, text);
    return hop3_reply_text(200, text);
}

static int64_t load(const char *key) {
    int64_t value = 0;
    hop3_kv_get(key, hop3_length(key), 0, &value, sizeof value);
    return value;
}

static int store(const char *key, int64_t value) {
    if (hop3_kv_set(key, hop3_length(key), &value, sizeof value) < 0) {
        static const char why[] = "counters: no room for one more key (spec.limits.kv)";
        hop3_log(HOP3_ERROR, why, sizeof why - 1);
        return 1;
    }
    return reply_number(value);
}

static int fill(int64_t mib) {
    if (mib < 1 || mib > FILL_MIB_MAX) return hop3_reply_text(400, "mib: from 1 to 1024");
    size_t bytes = (size_t)mib << 20;
    uint64_t *memory = more_memory(bytes);
    if (!memory) return hop3_reply_text(507, "no more memory (spec.limits.memory)");
    if (!filled) filled = memory;
    for (size_t i = 0; i < bytes / sizeof *memory; i++) memory[i] = draw();
    words += bytes / sizeof *memory;
    return reply_number((int64_t)(words * sizeof *filled >> 20));
}

static int touch(int64_t kib) {
    size_t count = (size_t)kib << 10;
    if (kib < 1 || kib > (int64_t)FILL_MIB_MAX << 10 || count > words * sizeof *filled)
        return hop3_reply_text(400, "kib: from 1 to what was filled");
    for (size_t i = 0; i < count / sizeof *filled; i++) {
        filled[next] = draw();
        next = next + 1 == words ? 0 : next + 1;
    }
    return reply_number(kib);
}

// Splits "/key/verb?name=number" in place; 0 if there is a query of another form.
struct asked {
    char *key, *verb, *name;
    int64_t number;
};

static int split(char *path, struct asked *asked) {
    static char none[1];
    char *at = path + (*path == '/');
    *asked = (struct asked){at, none, none, 0};
    while (*at && *at != '/' && *at != '?') at++;
    if (*at == '/') {
        *at++ = 0;
        asked->verb = at;
        while (*at && *at != '?') at++;
    }
    if (*at != '?') return 1;
    *at++ = 0;
    asked->name = at;
    while (*at && *at != '=') at++;
    if (!*at) return 0;
    *at++ = 0;
    return hop3_parse(at, &asked->number);
}

static int post(const struct asked *asked) {
    int given = *asked->name != 0;
    if (hop3_equal(asked->verb, "add") && (!given || hop3_equal(asked->name, "n"))) {
        int64_t sum;
        if (__builtin_add_overflow(load(asked->key), given ? asked->number : 1, &sum))
            return hop3_reply_text(409, "the sum is too large");
        return store(asked->key, sum);
    }
    if (hop3_equal(asked->verb, "fill") && hop3_equal(asked->name, "mib"))
        return fill(asked->number);
    if (hop3_equal(asked->verb, "touch") && hop3_equal(asked->name, "kib"))
        return touch(asked->number);
    return hop3_reply_text(404, "POST: /KEY/add?n=N, /KEY/fill?mib=N, /KEY/touch?kib=N");
}

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    char method[16], path[PATH_MAX], body[24];
    struct asked asked;
    if (hop3_read(HOP3_METHOD, method, sizeof method) < 0) return hop3_reply_text(405, "method");
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path too long");
    if (!split(path, &asked)) return hop3_reply_text(400, "the query is not NAME=NUMBER");
    if (!*asked.key) return hop3_reply_text(404, "no key: write /KEY");
    if (hop3_equal(method, "POST")) return post(&asked);
    if (*asked.verb) return hop3_reply_text(404, "only POST has a verb");
    if (hop3_equal(method, "GET")) return reply_number(load(asked.key));
    if (hop3_equal(method, "PUT")) {
        int64_t value;
        if (hop3_read(HOP3_BODY, body, sizeof body) < 0 || !hop3_parse(body, &value))
            return hop3_reply_text(400, "the body is not a whole number");
        return store(asked.key, value);
    }
    if (hop3_equal(method, "DELETE")) {
        hop3_kv_delete(asked.key, hop3_length(asked.key));
        return reply_number(0);
    }
    return hop3_reply_text(405, "GET, POST, PUT or DELETE");
}
