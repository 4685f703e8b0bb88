// Links between services, for tests.
//
//     POST /call/SERVICE       calls GET /a of it; the end is kept under `last`: status, space, body
//     POST /add/SERVICE        calls POST /a/add?n=1 of it
//     POST /publish/TOPIC      publishes the body
//     GET  /last, GET /heard   what is kept: the last end of a call, the last message and its topic
//     GET  /all                every message's body and a comma, in the order of their coming
#include "hop3.h"

static int keep(const char *key, size_t key_len, char *text, size_t length, int32_t body) {
    int32_t read = hop3_input(body, 0, text + length, 200);
    if (read < 0) read = 0;
    if (read > 200) read = 200;
    return hop3_kv_set(key, key_len, text, length + (size_t)read) < 0;
}

static int give(const char *key, size_t key_len) {
    char text[4096];
    int32_t length = hop3_kv_get(key, key_len, 0, text, sizeof text);
    if (length < 0) return hop3_reply_text(404, "nothing yet");
    return hop3_reply(200, text, (size_t)length);
}

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    char path[128], body[256];
    if (hop3_read(HOP3_PATH, path, sizeof path) < 0) return hop3_reply_text(414, "path");
    if (hop3_equal(path, "/last")) return give("last", 4);
    if (hop3_equal(path, "/heard")) return give("heard", 5);
    if (hop3_equal(path, "/all")) return give("all", 3);
    if (path[1] == 'c') {
        const char *service = path + 6;
        int64_t call = hop3_call(service, hop3_length(service), "GET", 3, "/a", 2, body, 0);
        return hop3_reply_text(call < 0 ? 403 : 202, call < 0 ? "not granted" : "called");
    }
    if (path[1] == 'a') {
        const char *service = path + 5;
        static const char add[] = "/a/add?n=1";
        int64_t call = hop3_call(service, hop3_length(service), "POST", 4, add, sizeof add - 1, body, 0);
        return hop3_reply_text(call < 0 ? 403 : 202, call < 0 ? "not granted" : "called");
    }
    const char *topic = path + 9;
    int32_t length = hop3_input(HOP3_BODY, 0, body, sizeof body);
    if (length < 0 || length > (int32_t)sizeof body) return hop3_reply_text(413, "body");
    int32_t sent = hop3_publish(topic, hop3_length(topic), body, (size_t)length);
    return hop3_reply_text(sent < 0 ? 403 : 202, sent < 0 ? "not granted" : "published");
}

// Appends the body and a comma to `all`.
static int note(void) {
    char all[4096];
    int32_t length = hop3_kv_get("all", 3, 0, all, sizeof all);
    if (length < 0) length = 0;
    int32_t body = hop3_input(HOP3_BODY, 0, all + length, 200);
    if (body < 0 || body > 200 || length + body + 201 > (int32_t)sizeof all) return 1;
    all[length + body] = ',';
    return hop3_kv_set("all", 3, all, (size_t)(length + body + 1)) < 0;
}

HOP3_EXPORT("hop3_message") int hop3_message(void) {
    char text[512], kind = 0;
    hop3_input(HOP3_KIND, 0, &kind, 1);
    int32_t field = kind == 5 ? HOP3_STATUS : HOP3_TOPIC;
    int32_t length = hop3_input(field, 0, text, 200);
    if (length < 0 || length > 200) return 1;
    text[length++] = ' ';
    if (kind == 5) return keep("last", 4, text, (size_t)length, HOP3_BODY);
    return note() || keep("heard", 5, text, (size_t)length, HOP3_BODY);
}
