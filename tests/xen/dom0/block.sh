# What the steps of the boot `block` share, beside lib.sh.

BLOCKD=/usr/lib/xenbus/bin/xen-blockd
BLOCKD_LOG=/run/xen-blockd.log
BLOCKD_PID=/run/xen-blockd.pid
# There while the kernel's block backend is loaded.
KERNEL_VBD=/sys/bus/xen-backend/drivers/vbd

# start_blockd: until it serves.
start_blockd() {
    local lines end=$((SECONDS + 20))
    touch $BLOCKD_LOG
    lines=$(grep -c serving $BLOCKD_LOG || true)
    $BLOCKD </dev/null >>$BLOCKD_LOG 2>&1 &
    echo $! >$BLOCKD_PID
    until [ "$(grep -c serving $BLOCKD_LOG || true)" -gt "$lines" ]; do
        kill -0 "$(cat $BLOCKD_PID)" 2>/dev/null || die "xen-blockd has ended: $(tail -n 1 $BLOCKD_LOG)"
        [ $SECONDS -lt $end ] || die "xen-blockd does not serve after 20 s: $(tail -n 1 $BLOCKD_LOG)"
        sleep 0.1
    done
}

# kill_blockd: as the kernel's OOM killer would.
kill_blockd() {
    local pid end=$((SECONDS + 20))
    pid=$(cat $BLOCKD_PID)
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        [ $SECONDS -lt $end ] || die "the killed xen-blockd is still there after 20 s"
        sleep 0.05
    done
}

# connected_again NAME DEVID: until the backend that was started last has taken the disk over.
connected_again() {
    local domid end=$((SECONDS + 30))
    domid=$(xl domid "$1")
    until awk -v what="$domid/$2: Connected" '/serving/ {found = 0} index($0, what) {found = 1} END {exit !found}' $BLOCKD_LOG; do
        [ $SECONDS -lt $end ] || die "xen-blockd has not taken $2 over after 30 s: $(tail -n 1 $BLOCKD_LOG)"
        sleep 0.1
    done
}

# kernel_vbd: from now on the kernel serves `vbd`, and xen-blockd `qdisk`.
kernel_vbd() {
    [ ! -e $KERNEL_VBD ] || return 0
    kill_blockd
    modprobe xen-blkback
    start_blockd
}

# own_vbd: from now on xen-blockd serves `vbd` too. No guest has a disk of the kernel's.
own_vbd() {
    [ -e $KERNEL_VBD ] || return 0
    rmmod xen_blkback
    kill_blockd
    start_blockd
}

# boot NAME pv|pvh DISK ARGUMENTS [VCPUS]: a guest with this disk specification.
boot() {
    cat >"/tmp/$1.cfg" <<C
name="$1"
type="$2"
kernel="/boot/vmlinux"
ramdisk="/boot/block.cpio"
extra="console=hvc0 mitigations=off tsc=reliable quiet $4"
memory=224
vcpus=${5:-1}
disk=[${3:-}]
on_crash="destroy"
on_reboot="destroy"
C
    timeout 60 xl create "/tmp/$1.cfg" || return
    until_said "$1" 120 "ready on"
}

# guest_root: the guest that several steps use one after the other; with --only, it may not be there yet.
guest_root() {
    xl domid root >/dev/null 2>&1 && return
    boot root pv '"format=raw,vdev=xvda,access=w,script=block-xenbus,target=/dev/vda"' lab.root=/dev/xvda
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

# await DISK: words for a guest, until it has this disk.
await() { echo "i=0; until [ -b /dev/$1 ] || [ \$i = 300 ]; do usleep 100000; i=\$((i + 1)); done; [ -b /dev/$1 ] || exit 1"; }

# await_gone DISK: until it has this disk no more.
await_gone() { echo "i=0; while [ -b /dev/$1 ] && [ \$i -lt 300 ]; do usleep 100000; i=\$((i + 1)); done; [ ! -b /dev/$1 ]"; }

# detach NAME DISK DEVID KIND: libxl waits until the backend is Closed; then nothing of the disk is left on either side.
detach() {
    local domid end=$((SECONDS + 60))
    domid=$(xl domid "$1")
    timeout 40 xl block-detach "$1" "$2"
    # It says so after it has written the state that libxl waits for.
    until grep -q "$domid/$3: Closed" $BLOCKD_LOG; do
        [ $SECONDS -lt $end ] || die "the backend of $2 was not Closed before it was taken away: $(tail -n 3 $BLOCKD_LOG)"
        sleep 0.1
    done
    [ -z "$(xenstore-ls -f "/local/domain/0/backend/$4" 2>/dev/null | grep "/$domid/$3/" || true)" ] || die "the backend's nodes of the detached disk are left"
    ask "$1" 40 "$(await_gone "$2")"
}

# until_node PATH START: until the node's value begins so.
until_node() {
    local value end=$((SECONDS + 30))
    until value=$(xenstore-read "$1" 2>/dev/null) && [[ $value = "$2"* ]]; do
        [ $SECONDS -lt $end ] || die "$1 is \"$value\" after 30 s, not \"$2\""
        sleep 0.2
    done
}

# power_off NAME: its file system is left clean, and nothing of it stays.
power_off() {
    local domid
    domid=$(xl domid "$1")
    begin "$1" 'sync; mount -o remount,ro / ; poweroff -f'
    until_gone "$1" 60
    for kind in vbd qdisk; do
        [ -z "$(xenstore-ls -f /local/domain/0/backend/$kind 2>/dev/null | grep "/$kind/$domid/" || true)" ] || die "nodes of the backend are left"
    done
}

# state_log NAME DEVID KIND: writes down each state of both ends from now on.
state_log() {
    local domid end=$((SECONDS + 20))
    domid=$(xl domid "$1")
    xenstore-watch "/local/domain/0/backend/$3/$domid/$2/state" "/local/domain/$domid/device/vbd/$2/state" >"/tmp/$1.states" 2>&1 &
    echo $! >"/tmp/$1.states.pid"
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
