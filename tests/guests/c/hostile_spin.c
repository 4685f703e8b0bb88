// Hostile: never ends, with no store, call or host call in its loop.
int main(void) {
    for (;;) {
    }
}
