// What Hop3 services in C are written against: the imports and field numbers of ../ABI.md, and a
// few small helpers. C11, without a C library; nothing here allocates.
//
//     #include "hop3.h"
//
//     HOP3_EXPORT("hop3_request") int hop3_request(void) {
//         return hop3_reply_text(200, "hello");
//     }
//
// Build it with Debian's clang and lld:
//
//     clang --target=wasm32-wasi -std=c11 -O2 -mbulk-memory -nostdlib -ffreestanding
//         -Wl,--no-entry,--stack-first,-z,stack-size=16384,--strip-all -o service.wasm service.c
//
// A handler returns 0; with any other number nothing that it did remains, and the caller is told
// that it failed. Imports answer 0 or a count, or one of the errors below.
#ifndef HOP3_H
#define HOP3_H

#include <stddef.h>
#include <stdint.h>

// On another target the imports are ordinary functions: a test defines them.
#ifdef __wasm__
#define HOP3_IMPORT(name) __attribute__((import_module("hop3"), import_name(name)))
#define HOP3_EXPORT(name) __attribute__((export_name(name)))
#else
#define HOP3_IMPORT(name)
#define HOP3_EXPORT(name)
#endif

// Fields of what is being handled.
enum hop3_field {
    HOP3_KIND = 0,
    HOP3_METHOD = 1,
    HOP3_PATH = 2,
    HOP3_HEADERS = 3,
    HOP3_BODY = 4,
    HOP3_TOPIC = 5,
    HOP3_FROM = 6,
    HOP3_STREAM = 7,
    HOP3_TEXT = 8,
    HOP3_CALL = 9,
    HOP3_STATUS = 10,
    HOP3_TIMER = 11,
    HOP3_DUE = 12,
    HOP3_MORE = 13,
    HOP3_INSTANCE = 14,
    HOP3_INDEX = 15,
    HOP3_COUNT = 16,
    HOP3_CODE = 17,
};

// Values of HOP3_KIND.
enum hop3_kind {
    HOP3_IS_REQUEST = 1,
    HOP3_IS_TOPIC = 2,
    HOP3_IS_STREAM_DATA = 3,
    HOP3_IS_STREAM_CLOSED = 4,
    HOP3_IS_CALL_ENDED = 5,
    HOP3_IS_TIMER = 6,
    HOP3_IS_INIT = 7,
    HOP3_IS_UPGRADE = 8,
};

// What imports answer.
enum hop3_error {
    HOP3_ABSENT = -1,      // not there
    HOP3_NOT_GRANTED = -2, // name it in spec.publish or spec.calls
    HOP3_LIMIT = -3,       // over a limit of spec.limits
    HOP3_NOT_NOW = -4,     // only a request has a reply
    HOP3_INVALID = -5,     // a status, header or key that is not acceptable
};

enum hop3_level { HOP3_ERROR = 0, HOP3_WARN = 1, HOP3_INFO = 2, HOP3_DEBUG = 3 };

// Copies at most cap bytes of a field from offset; its whole length, or HOP3_ABSENT.
HOP3_IMPORT("input") int32_t hop3_input(int32_t field, size_t offset, void *buf, size_t cap);

HOP3_IMPORT("reply_status") int32_t hop3_reply_status(int32_t status);
HOP3_IMPORT("reply_header")
int32_t hop3_reply_header(const char *name, size_t name_len, const char *value, size_t value_len);
// Appends to the reply's body.
HOP3_IMPORT("reply_write") int32_t hop3_reply_write(const void *ptr, size_t len);
// Makes the reply the head of a client stream; the stream's number.
HOP3_IMPORT("reply_stream") int64_t hop3_reply_stream(void);

HOP3_IMPORT("stream_send")
int32_t hop3_stream_send(int64_t stream, const void *ptr, size_t len, int32_t text);
HOP3_IMPORT("stream_close") int32_t hop3_stream_close(int64_t stream, int32_t code);

// As hop3_input, for the value of a key.
HOP3_IMPORT("kv_get")
int32_t hop3_kv_get(const void *key, size_t key_len, size_t offset, void *buf, size_t cap);
HOP3_IMPORT("kv_set")
int32_t hop3_kv_set(const void *key, size_t key_len, const void *value, size_t value_len);
// 1 if it was there.
HOP3_IMPORT("kv_delete") int32_t hop3_kv_delete(const void *key, size_t key_len);
// The least key greater than this one (key_len 0: of all): its length, and itself if it fits.
HOP3_IMPORT("kv_next")
int32_t hop3_kv_next(const void *key, size_t key_len, void *buf, size_t cap);

// To a time in milliseconds since 1970.
HOP3_IMPORT("timer_set") int32_t hop3_timer_set(int64_t timer, int64_t at_ms);
// 1 if it was set.
HOP3_IMPORT("timer_clear") int32_t hop3_timer_clear(int64_t timer);

HOP3_IMPORT("publish")
int32_t hop3_publish(const char *topic, size_t topic_len, const void *ptr, size_t len);
// The call's number; its end comes to hop3_message.
HOP3_IMPORT("call")
int64_t hop3_call(const char *service, size_t service_len, const char *method, size_t method_len,
                  const char *path, size_t path_len, const void *body, size_t body_len);

HOP3_IMPORT("log") void hop3_log(int32_t level, const char *ptr, size_t len);
HOP3_IMPORT("now_ms") int64_t hop3_now_ms(void);

// Reads a field as a string that ends with a zero; its length, HOP3_ABSENT, or HOP3_LIMIT if it
// does not fit into cap bytes with its zero.
static inline int32_t hop3_read(int32_t field, char *buf, size_t cap) {
    int32_t length = hop3_input(field, 0, buf, cap - 1);
    if (length >= 0 && (size_t)length >= cap) return HOP3_LIMIT;
    buf[length < 0 ? 0 : length] = 0;
    return length;
}

// Reads a field that is a number of up to 8 bytes; 0 without it.
static inline uint64_t hop3_number(int32_t field) {
    uint8_t bytes[8] = {0};
    uint64_t number = 0;
    hop3_input(field, 0, bytes, sizeof bytes);
    for (int i = 7; i >= 0; i--) number = number << 8 | bytes[i];
    return number;
}

static inline size_t hop3_length(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

static inline int hop3_equal(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

// A whole decimal number; 0 if text is not one, or is too large.
static inline int hop3_parse(const char *text, int64_t *number) {
    int negative = *text == '-';
    int64_t value = 0;
    text += negative;
    if (!*text) return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return 0;
        int digit = *text - '0';
        if (value < (INT64_MIN + digit) / 10) return 0;
        value = value * 10 - digit;
    }
    // Negative all the way: there is one more negative number than positive ones.
    if (!negative && value == INT64_MIN) return 0;
    *number = negative ? value : -value;
    return 1;
}

// Writes a number in decimal, with a zero; its length. Needs 21 bytes.
static inline size_t hop3_decimal(int64_t number, char *out) {
    char digits[20];
    size_t count = 0, at = 0;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do digits[count++] = (char)('0' + rest % 10);
    while (rest /= 10);
    if (number < 0) out[at++] = '-';
    while (count) out[at++] = digits[--count];
    out[at] = 0;
    return at;
}

// Replies with bytes; what a handler returns.
static inline int hop3_reply(int32_t status, const void *ptr, size_t len) {
    if (hop3_reply_status(status) < 0) return 1;
    return hop3_reply_write(ptr, len) < 0;
}

// Replies with text; what a handler returns.
static inline int hop3_reply_text(int32_t status, const char *text) {
    static const char name[] = "content-type", type[] = "text/plain; charset=utf-8";
    if (hop3_reply_header(name, sizeof name - 1, type, sizeof type - 1) < 0) return 1;
    return hop3_reply(status, text, hop3_length(text));
}

#endif
