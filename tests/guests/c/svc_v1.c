// A counter whose state has version 1: text under the key `n`. svc_v2.c takes it over.
//
//     POST /add     adds one
//     GET  /        `v1 N`
#include "hop3.h"

HOP3_EXPORT("hop3_schema") int hop3_schema(void) { return 1; }

static int64_t load(void) {
    char text[21];
    int64_t number = 0;
    int32_t length = hop3_kv_get("n", 1, 0, text, sizeof text - 1);
    if (length > 0 && (size_t)length < sizeof text) {
        text[length] = 0;
        hop3_parse(text, &number);
    }
    return number;
}

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    char path[16], text[24] = "v1 ";
    int64_t number = load();
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path");
    int add = hop3_equal(path, "/add");
    size_t length = hop3_decimal(number + add, text + 3);
    if (add && hop3_kv_set("n", 1, text + 3, length) < 0) return 1;
    return hop3_reply_text(200, text);
}
