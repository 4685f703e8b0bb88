// Tests counters.c on the host, with imports that keep one request and a few keys.
//
//     cc -std=gnu11 -I ../../c -o test test.c && ./test
#include "counters.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *method, *path, *body;
static char reply[256];
static int status;
static struct { char key[64]; int64_t value; } keys[8];

void *test_memory(size_t bytes) {
    static uint64_t memory[2 << 17];
    return bytes > sizeof memory ? 0 : memory;
}

int32_t hop3_input(int32_t field, size_t offset, void *buf, size_t cap) {
    const char *text = field == HOP3_METHOD ? method : field == HOP3_PATH ? path : body;
    size_t length = strlen(text), rest = offset < length ? length - offset : 0;
    memcpy(buf, text + length - rest, rest < cap ? rest : cap);
    return (int32_t)length;
}
int32_t hop3_reply_status(int32_t code) { return status = code, 0; }
int32_t hop3_reply_header(const char *n, size_t nl, const char *v, size_t vl) {
    return (void)n, (void)nl, (void)v, (void)vl, 0;
}
int32_t hop3_reply_write(const void *ptr, size_t len) {
    strncat(reply, ptr, len);
    return 0;
}
static int find(const void *key, size_t len) {
    for (int i = 0; i < 8; i++)
        if (strlen(keys[i].key) == len && !memcmp(keys[i].key, key, len)) return i;
    return -1;
}
int32_t hop3_kv_get(const void *key, size_t len, size_t offset, void *buf, size_t cap) {
    int i = find(key, len);
    if (i < 0) return HOP3_ABSENT;
    memcpy(buf, (char *)&keys[i].value + offset, cap);
    return 8;
}
int32_t hop3_kv_set(const void *key, size_t len, const void *value, size_t value_len) {
    int i = find(key, len);
    if (i < 0) i = find("", 0);
    if (i < 0) return HOP3_LIMIT;
    memcpy(keys[i].key, key, len);
    memcpy(&keys[i].value, value, value_len);
    return 0;
}
int32_t hop3_kv_delete(const void *key, size_t len) {
    int i = find(key, len);
    if (i >= 0) memset(&keys[i], 0, sizeof keys[i]);
    return i >= 0;
}
void hop3_log(int32_t level, const char *ptr, size_t len) {
    (void)level, (void)ptr, (void)len;
}

static void ask(const char *m, const char *p, const char *b, int code, const char *text) {
    method = m, path = p, body = b, status = 0, reply[0] = 0;
    int failed = hop3_request();
    if (failed || status != code || (text && strcmp(reply, text))) {
        fprintf(stderr, "%s %s: %d %d `%s`, not %d `%s`\n", m, p, failed, status, reply, code,
                text ? text : "…");
        exit(1);
    }
}

int main(void) {
    ask("GET", "/a", "", 200, "0");
    ask("POST", "/a/add?n=5", "", 200, "5");
    ask("POST", "/a/add", "", 200, "6");
    ask("POST", "/b/add?n=-7", "", 200, "-7");
    ask("GET", "/a", "", 200, "6");
    ask("PUT", "/a", "9223372036854775807", 200, "9223372036854775807");
    ask("POST", "/a/add", "", 409, 0);
    ask("GET", "/a", "", 200, "9223372036854775807");
    ask("PUT", "/b", "-9223372036854775808", 200, "-9223372036854775808");
    ask("PUT", "/b", "9223372036854775808", 400, 0);
    ask("PUT", "/b", "1x", 400, 0);
    ask("DELETE", "/a", "", 200, "0");
    ask("GET", "/a", "", 200, "0");
    ask("POST", "/a/add?n=x", "", 400, 0);
    ask("POST", "/a/add?m=1", "", 404, 0);
    ask("GET", "/", "", 404, 0);
    ask("PATCH", "/a", "", 405, 0);
    ask("POST", "/a/touch?kib=1", "", 400, 0);
    ask("POST", "/a/fill?mib=2", "", 200, "2");
    ask("POST", "/a/touch?kib=64", "", 200, "64");
    ask("POST", "/a/touch?kib=2048", "", 200, "2048");
    ask("POST", "/a/touch?kib=2049", "", 400, 0);
    ask("POST", "/a/fill?mib=3", "", 507, 0);
    return 0;
}
