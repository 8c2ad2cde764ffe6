# The life of a namespaced host from boot to the end of `runner`. Process 1 of its own PID namespace,
# as root, in its own mount, host name and PID namespaces; everything it mounts ends with it.
#
#     sh host.sh DIRECTORY NAME PYTHON_ENVIRONMENT CGROUP [ARGUMENT OF runner…]
set -eu
directory=$1 name=$2 environment=$3 cgroup=$4
shift 4

if [ $$ -ne 1 ]; then
    echo "this ends processes, and is not process 1 of a namespace of its own" >&2
    exit 70
fi

# A cgroup of its own, as a service of systemd has; empty where cgroup v2 cannot be written.
if [ -n "$cgroup" ]; then
    echo 0 >"$cgroup/cgroup.procs"
fi

mount -t tmpfs -o mode=755 tmpfs /run
for file in passwd group; do
    mount --bind "$directory/etc/$file" "/etc/$file"
done
mount --bind "$directory/etc/boot_id" /proc/sys/kernel/random/boot_id
mount --bind "$environment" "$directory/buildbot"
mount -o remount,bind,ro "$directory/buildbot"
hostname "$name"
cd /

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# What else this host starts at boot.
if [ -x "$directory/etc/rc.local" ]; then
    "$directory/etc/rc.local" &
fi

# Not by `exec`: an orphan becomes a child of process 1, and this shell reaps it.
code=0
"$directory/bin/runner" "$@" || code=$?
exit "$code"
