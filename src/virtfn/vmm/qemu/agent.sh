#!/bin/sh
# Runs commands for the host: the guest's end of virtfn's agent channel. Started by the guest's init, in the background.
#
#   agent.sh [PORT [FOLDER]]             PORT: the second serial port, /dev/ttyS1; FOLDER: for output kept meanwhile
#
#   guest to host    ready               the loop has (re)started
#   host to guest    ID COMMAND          one line; bytes of COMMAND may be written \0OOO (octal), as printf %b reads them
#   guest to host    ID STATUS SIZE      COMMAND is done, and SIZE bytes of what it printed follow
#
# Every command runs beside the others, its output kept in a file until it is done. So neither a command that hangs nor
# a server left behind with "&" stops or garbles anything. Needs only busybox: sh, stty, mkfifo, wc, head, rm, mkdir.

port=${1:-/dev/ttyS1}
work=${2:-/tmp/virtfn-agent}
limit=1048576

rm -rf "$work" && mkdir -p "$work" && mkfifo "$work/done" || exit 1
exec <"$port" >"$port" 2>/dev/null || exit 1
stty raw -echo
echo # what firmware has said here before needs an end of line
echo ready

# One writer, so that answers never mix. It holds the queue open both ways: there is no end of file between answers.
while read -r id status; do
    size=$(wc -c <"$work/$id")
    [ "$size" -le "$limit" ] || size=$limit
    echo "$id $status $((size))"
    head -c "$((size))" "$work/$id"
    rm -f "$work/$id"
done <>"$work/done" &

while IFS= read -r line; do
    id=${line%% *}
    case $id in
        '' | "$line" | *[!0-9a-f]*) continue ;;
    esac
    (
        sh -c "$(printf '%b' "${line#* }")" </dev/null >"$work/$id" 2>&1
        echo "$id $?" >"$work/done"
    ) &
done
