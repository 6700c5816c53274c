#!/bin/sh
# sh restart.sh TIMES PAUSE_SECONDS COMMAND...
# Runs COMMAND, and again while it exits with 1: of its exit codes the only one that a restart can mend by itself.
# What is said here goes to standard error: the last line on standard output is COMMAND's verdict.
set -u
times=$1
pause_seconds=$2
shift 2
child=
stopped=

stop() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

await() { # a signal ends `wait` early; COMMAND still has its last words to say
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        code=$?
    done
}

while :; do
    "$@" &
    child=$!
    await
    if [ "$code" -ne 1 ] || [ -n "$stopped" ] || [ "$times" -le 0 ]; then
        exit "$code"
    fi
    echo "restart.sh: exit code 1, starts again in $pause_seconds s, $times restarts left" >&2
    times=$((times - 1))
    sleep "$pause_seconds" &
    child=$!
    await
    [ -z "$stopped" ] || exit 143
done
