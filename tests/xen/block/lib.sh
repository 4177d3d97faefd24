# What the steps of block devices share, beside ../dom0/lib.sh.

BLOCKD=/usr/lib/xenbus/bin/xen-blockd
BLOCKD_LOG=/run/xen-blockd.log

# start_blockd: until it serves.
start_blockd() {
    local lines
    touch $BLOCKD_LOG
    lines=$(grep -c serving $BLOCKD_LOG || true)
    $BLOCKD </dev/null >>$BLOCKD_LOG 2>&1 &
    echo $! >/run/xen-blockd.pid
    local end=$((SECONDS + 20))
    until [ "$(grep -c serving $BLOCKD_LOG || true)" -gt "$lines" ]; do
        kill -0 "$(cat /run/xen-blockd.pid)" 2>/dev/null || die "xen-blockd has ended: $(tail -n 1 $BLOCKD_LOG)"
        [ $SECONDS -lt $end ] || die "xen-blockd does not serve after 20 s: $(tail -n 1 $BLOCKD_LOG)"
        sleep 0.1
    done
}

# serve: as start_blockd, if none runs.
serve() {
    [ -e /run/xen-blockd.pid ] && kill -0 "$(cat /run/xen-blockd.pid)" 2>/dev/null || start_blockd
}

# kill_blockd: as the kernel's OOM killer would.
kill_blockd() {
    local pid end=$((SECONDS + 20))
    pid=$(cat /run/xen-blockd.pid)
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        [ $SECONDS -lt $end ] || die "the killed xen-blockd is still there after 20 s"
        sleep 0.05
    done
}

# boot NAME DISK ARGUMENTS: a PV guest with this disk specification.
boot() {
    cat >"/tmp/$1.cfg" <<C
name="$1"
type="pv"
kernel="/boot/vmlinux"
ramdisk="/boot/block.cpio"
extra="console=hvc0 mitigations=off tsc=reliable quiet $3"
memory=192
vcpus=1
disk=[$2]
on_crash="destroy"
on_reboot="destroy"
C
    timeout 60 xl create "/tmp/$1.cfg"
    until_said "$1" 90 "ready on"
}

# ask NAME SECONDS COMMAND: in the guest; what it says goes to this step's log. Fails as the command does.
ask() {
    begin "$1" "$3"
    finish "$1" "$2"
}

# begin NAME COMMAND, finish NAME SECONDS: the same in two parts.
begin() {
    local number=$(($(cat "/tmp/$1.asked" 2>/dev/null || echo 0) + 1))
    echo $number >"/tmp/$1.asked"
    tell "$1" "$number" "$2"
}
finish() {
    local number before=ready log=/var/log/xen/console/guest-$1.log
    number=$(cat "/tmp/$1.asked")
    [ "$number" = 1 ] || before="done $((number - 1))"
    until_said "$1" "$2" "done $number "
    tr -d '\r' <"$log" | sed -n "/^GUEST $before /,\$p" >"/tmp/$1.said"
    cat "/tmp/$1.said"
    grep -aq "^GUEST done $number 0\$" "/tmp/$1.said" || die "in guest $1, \"$(tr '\n' ' ' <"/tmp/$1.said")\""
}

# state_log NAME DEVID KIND: writes down each state of both ends from now on.
state_log() {
    local domid
    domid=$(xl domid "$1")
    xenstore-watch "/local/domain/0/backend/$3/$domid/$2/state" "/local/domain/$domid/device/vbd/$2/state" >"/tmp/$1.states" 2>&1 &
    echo $! >"/tmp/$1.states.pid"
    local end=$((SECONDS + 20))
    until [ "$(wc -l <"/tmp/$1.states")" -ge 2 ]; do
        [ $SECONDS -lt $end ] || die "no first events of the watches within 20 s"
        sleep 0.1
    done
}

# no_state_since NAME: none was written.
no_state_since() {
    kill "$(cat "/tmp/$1.states.pid")" || true
    [ "$(wc -l <"/tmp/$1.states")" = 2 ] || die "states were written: $(tr '\n' ' ' <"/tmp/$1.states")"
}

# quiet_kernel NAME: the guest's kernel has complained of nothing.
quiet_kernel() {
    ask "$1" 30 '! dmesg | grep -iE "i/o error|blkfront.*(err|fail)|xenbus.*(err|fail)|ext4.*error|buffer i/o|barrier.*fail|flush.*fail|blocked for more"'
}

# is_done NAME: whether what was begun has ended.
is_done() { tr -d '\r' <"/var/log/xen/console/guest-$1.log" | grep -aq "^GUEST done $(cat "/tmp/$1.asked") "; }
