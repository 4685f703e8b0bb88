// A service without state: answers with the request's body, or with `hello` if there is none.
// For benchmarks and the quick start, so it does nothing else.
#include "hop3.h"

HOP3_EXPORT("hop3_request") int hop3_request(void) {
    // The body goes through in pieces, so that one page of memory serves any size.
    static char piece[16 * 1024];
    int32_t length = hop3_input(HOP3_BODY, 0, piece, sizeof piece);
    if (length <= 0) return hop3_reply_text(200, "hello");
    for (size_t done = 0, whole = (size_t)length; done < whole;) {
        size_t count = whole - done < sizeof piece ? whole - done : sizeof piece;
        if (done && hop3_input(HOP3_BODY, done, piece, sizeof piece) < 0) return 1;
        if (hop3_reply_write(piece, count) < 0) return 1;
        done += count;
    }
    return 0;
}
