// Hostile service: each bad handler first changes memory, key-value data and a timer, which must
// be as before afterwards.
//
//     GET /count    what memory and key-value data say: `M K`
//     GET /add      adds one to both
//     GET /trap, /spin, /grow, /recurse, /fail, /big, /flood
#include "hop3.h"

static int64_t count;

static int64_t stored(void) {
    int64_t value = 0;
    hop3_kv_get("count", 5, 0, &value, sizeof value);
    return value;
}

static int change(void) {
    int64_t more = stored() + 1;
    count++;
    hop3_timer_set(1, hop3_now_ms() + 1);
    return hop3_kv_set("count", 5, &more, sizeof more);
}

// Uses stack that the compiler cannot do without.
static int recurse(volatile int *above) {
    volatile int here[64];
    here[0] = *above + 1;
    return here[0] < 0 ? 0 : recurse(here) + here[0];
}

static void spin(void) {
    // Neither store, call nor host call in it.
    for (;;) __asm__ volatile("");
}

static int answer(void) {
    char text[44];
    size_t length = hop3_decimal(count, text);
    text[length++] = ' ';
    hop3_decimal(stored(), text + length);
    return hop3_reply_text(200, text);
}

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    static char path[64], piece[32 * 1024];
    volatile int begin = 0;
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path");
    if (hop3_equal(path, "/count")) return answer();
    if (change() < 0) return 1;
    if (hop3_equal(path, "/add")) return hop3_timer_clear(1) < 0 ? 1 : answer();
    if (hop3_equal(path, "/trap")) __builtin_trap();
    if (hop3_equal(path, "/spin")) spin();
    if (hop3_equal(path, "/recurse")) return recurse(&begin);
    if (hop3_equal(path, "/fail")) return 7;
#ifdef __wasm__
    if (hop3_equal(path, "/grow")) {
        while (__builtin_wasm_memory_grow(0, 16) != SIZE_MAX) {}
        __builtin_trap();
    }
#endif
    if (hop3_equal(path, "/flood"))
        for (;;) hop3_log(HOP3_INFO, "flood", 5);
    if (hop3_equal(path, "/big")) {
        // More than any service may reply; refusals are not looked at.
        for (int i = 0; i < 512; i++) hop3_reply_write(piece, sizeof piece);
        return 0;
    }
    return hop3_reply_text(404, "not found");
}

HOP3_EXPORT("hop3_timer") int hop3_timer(void) { return 0; }
