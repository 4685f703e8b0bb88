// Keeps what it is sent: for measuring what a change costs.
//
//     PUT /KEY     keeps the body, at most 4096 bytes
//     GET /KEY     what is kept
#include "hop3.h"

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    static char method[8], path[256], value[4096];
    if (hop3_read(HOP3_METHOD, method, sizeof method) < 0) return hop3_reply_text(405, "method");
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path");
    if (!path[0] || !path[1]) return hop3_reply_text(404, "no key: write /KEY");
    const char *key = path + 1;
    size_t key_len = hop3_length(key);
    if (hop3_equal(method, "GET")) {
        int32_t length = hop3_kv_get(key, key_len, 0, value, sizeof value);
        if (length < 0) return hop3_reply_text(404, "nothing is kept there");
        return hop3_reply(200, value, (size_t)length);
    }
    if (!hop3_equal(method, "PUT")) return hop3_reply_text(405, "GET or PUT");
    int32_t length = hop3_input(HOP3_BODY, 0, value, sizeof value);
    if (length < 0) length = 0;
    if (length > (int32_t)sizeof value) return hop3_reply_text(413, "at most 4096 bytes");
    if (hop3_kv_set(key, key_len, value, (size_t)length) < 0) return 1;
    return hop3_reply_text(200, "kept");
}
