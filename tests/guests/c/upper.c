// Standard input in upper case. What was read is written before more is read, so that a
// conversation goes through it without delay; in pieces as large as the host gives, since each
// read or write is a call out of the sandbox.
#include <unistd.h>

static char text[64 * 1024];

int main(void) {
    ssize_t length, done, wrote;
    while ((length = read(0, text, sizeof text)) > 0) {
        for (ssize_t i = 0; i < length; i++)
            if (text[i] >= 'a' && text[i] <= 'z') text[i] -= 'a' - 'A';
        for (done = 0; done < length; done += wrote)
            if ((wrote = write(1, text + done, length - done)) <= 0) return 1;
    }
    return length < 0;
}
