# Shared by the scripts here: where things are, and how to get what is missing. Source it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${HOP3_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hop3}
# Builds stay outside the clone, so that a fresh clone on the same machine is quick.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
export HOP3_GUESTS_DIR=${HOP3_GUESTS_DIR:-$cache/guests}
mkdir -p "$cache"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need COMMAND DEBIAN-PACKAGE…: installs the packages where COMMAND is missing.
need() {
    local command=$1; shift
    command -v "$command" >/dev/null 2>&1 && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 ||
        die "$command is missing: install $* and run this again"
    say "installing $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

need_rust() {
    command -v cargo >/dev/null 2>&1 ||
        die "Rust is missing: install it from https://rustup.rs and run this again"
    need cc gcc libc6-dev
}

need_nextest() {
    cargo nextest --version >/dev/null 2>&1 && return
    say "installing cargo-nextest"
    cargo install --locked cargo-nextest
}

# Builds programs and tests together: one set of features, so that the quick start and the tests
# share every dependency (apart, each would build its own).
build() { cargo build --workspace --bins --tests --locked; }
