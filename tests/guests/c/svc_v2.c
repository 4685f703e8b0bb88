// The counter of svc_v1.c with a state of version 2: eight bytes under the key `count`.
//
//     POST /add     adds one
//     GET  /        `v2 N`
#include "hop3.h"

HOP3_EXPORT("hop3_schema") int hop3_schema(void) { return 2; }

HOP3_EXPORT("hop3_upgrade") int hop3_upgrade(int from) {
    char text[21];
    int64_t number = 0;
    if (from != 1) return 1;
    int32_t length = hop3_kv_get("n", 1, 0, text, sizeof text - 1);
    if (length >= (int32_t)sizeof text) return 1;
    if (length >= 0) {
        text[length] = 0;
        if (!hop3_parse(text, &number)) return 1;
    }
    if (hop3_kv_delete("n", 1) < 0) return 1;
    return hop3_kv_set("count", 5, &number, sizeof number) < 0;
}

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    char path[16], text[24] = "v2 ";
    int64_t number = 0;
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path");
    hop3_kv_get("count", 5, 0, &number, sizeof number);
    int add = hop3_equal(path, "/add");
    number += add;
    if (add && hop3_kv_set("count", 5, &number, sizeof number) < 0) return 1;
    hop3_decimal(number, text + 3);
    return hop3_reply_text(200, text);
}
