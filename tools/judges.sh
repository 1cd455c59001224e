#!/bin/sh
# Install the programs that judge virtfn from outside, where this machine lets us: pciutils, tshark, tcpdump, ping, passt, Prometheus, Chromium.
# QEMU and the guests' programs come as packages without being installed; the keyring vouches for them.
# Tests that need one which is missing say 'not run'. Never fails.
missing=""
command -v lspci >/dev/null || missing="$missing pciutils"
command -v tshark >/dev/null || missing="$missing tshark"
command -v tcpdump >/dev/null || missing="$missing tcpdump"
command -v ping >/dev/null || missing="$missing iputils-ping"
command -v passt >/dev/null || missing="$missing passt"
command -v promtool >/dev/null || missing="$missing prometheus"
command -v chromium >/dev/null || missing="$missing chromium"
ls /usr/share/keyrings/debian-archive-keyring.* >/dev/null 2>&1 ||
    missing="$missing debian-archive-keyring"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # one word a package
    { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/dev/null 2>&1 ||
        echo "could not install$missing: the tests that need them will not run"
else
    echo "not installed:$missing; the tests that need them will not run"
fi
exit 0
