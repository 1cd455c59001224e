#!/bin/sh
# First program of a virtfn guest: makes the system whole, then busybox init keeps a root shell on the first serial port
# and virtfn's agent on the second.
#
#   kernel command line     virtfn.name=NAME sets the host name

export PATH=/usr/bin HOME=/root TERM=linux
/usr/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
/usr/bin/busybox --install -s /usr/bin 2>/dev/null # programs of their own packages are there already, and stay

chmod 755 / # the kernel leaves it to everybody
mkdir -p /dev/pts
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug

for word in $(cat /proc/cmdline); do
    case $word in
        virtfn.name=*) hostname "${word#*=}" ;;
    esac
done
hostname >/etc/hostname
echo "127.0.0.1 localhost $(hostname)" >/etc/hosts
echo "::1 localhost" >>/etc/hosts
ip link set lo up

depmod
modprobe -a $(cat /etc/modules)

cat >/etc/inittab <<END
ttyS0::respawn:-/usr/bin/sh
::ctrlaltdel:/usr/bin/reboot
::shutdown:/usr/bin/sync
END
# A port that is not there can be opened, but has no settings.
if stty -F /dev/ttyS1 >/dev/null 2>&1; then
    [ -e /usr/lib/virtfn/agent.sh ] && echo "::respawn:/usr/bin/sh /usr/lib/virtfn/agent.sh /dev/ttyS1" >>/etc/inittab
fi
exec /usr/bin/init
