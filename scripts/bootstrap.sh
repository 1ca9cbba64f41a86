#!/bin/sh
# Prepares .venv. Usage: scripts/bootstrap.sh base|dev|bench
#
# The Makefile calls this only when a stamp in .venv is missing or older than the files it
# depends on. Stamps go first and come back last: a .venv without any was interrupted, and
# is made again, since pip may take a half-written package for an installed one.
set -eu

level=${1:-base}
case $level in
    base) requirements=requirements.txt ;;
    dev | bench) requirements=requirements-dev.txt ;;
    *) echo "usage: scripts/bootstrap.sh base|dev|bench" >&2; exit 2 ;;
esac

cd "$(dirname "$0")/.."
venv=.venv
python=$venv/bin/python
key=$(pwd -P | cksum | cut -d' ' -f1)

# Run, not looked up: a version manager's shim exists for versions that are not active,
# and some distributions ship venv without the ensurepip it needs.
usable() {
    "$1" -c 'import sys
if sys.version_info < (3, 11): sys.exit(1)
import ensurepip, venv' >/dev/null 2>&1 </dev/null
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or newer with venv was found: install one (Debian, Ubuntu: python3 and python3-venv), or name one: PYTHON=/path/to/python3 make ..." >&2
    return 1
}

# Two `make` at once, in two terminals, must not install into the same .venv.
lock=.venv.lock
waited=0
while ! mkdir "$lock" 2>/dev/null; do
    owner=$(cat "$lock/pid" 2>/dev/null || true)
    # A lock without an owner is either being taken right now or was left by a crash.
    if [ -n "$owner" ]; then
        kill -0 "$owner" 2>/dev/null || stale=yes
    elif [ "$waited" -ge 5 ]; then
        stale=yes
    fi
    if [ -n "${stale:-}" ]; then
        rm -rf "$lock"
        stale=
        continue
    fi
    [ "$waited" -gt 0 ] || echo "Waiting for another set-up of $venv to end"
    sleep 1
    waited=$((waited + 1))
done
trap 'rm -rf "$lock"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
echo $$ >"$lock/pid"

stamped() {
    for stamp in "$venv/.base-$key" "$venv/.dev-$key" "$venv/.bench-$key"; do
        [ ! -f "$stamp" ] || return 0
    done
    return 1
}

if ! { stamped && usable "$python"; }; then
    base=$(find_python)
    echo "Making $venv with $("$base" --version 2>&1)"
    rm -rf "$venv"
    "$base" -m venv "$venv"
fi
rm -f "$venv"/.base-* "$venv"/.dev-* "$venv"/.bench-*

pip_install() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-input "$@"
}

echo "Installing $requirements (the first time takes about half a minute)"
pip_install --require-hashes -r "$requirements"
if [ "$level" = bench ]; then
    echo "Installing requirements-bench.txt"
    pip_install --require-hashes -r requirements-bench.txt
fi
echo "Installing this checkout"
pip_install --no-deps -e .

# Each level holds the ones before it.
touch "$venv/.base-$key"
[ "$level" = base ] || touch "$venv/.dev-$key"
[ "$level" != bench ] || touch "$venv/.bench-$key"
