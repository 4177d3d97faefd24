# What the steps of the boot `driver` share, beside lib.sh, block.sh and console.sh: the driver domain `drv`, whose xen-blockd serves a guest.
. /lab/console.sh

# The console of drv has the lines of its xb devd and of its xen-blockd.
DRV_LOG=$LOGS/guest-drv.log
BLOCKD_LOG=$DRV_LOG

# short_or_long SHORT LONG: the first, and with `cargo xtask xen --long` the second.
short_or_long() {
    case " $(cat /proc/cmdline) " in
    *" lab.form=long "*) echo "$2" ;;
    *) echo "$1" ;;
    esac
}

# forget NAME: what an earlier guest of this name was asked and has said is not what the next one is and says.
forget() {
    rm -f "/tmp/$1.asked"
    [ ! -e "$LOGS/guest-$1.log" ] || mv "$LOGS/guest-$1.log" "$LOGS/earlier-$(now_ms)-$1.log"
}

# lines WORDS: how many lines of the console of drv begin with these words.
lines() { grep -ac "^$1" "$DRV_LOG" || true; }
more_lines() { [ "$(lines "$1")" -gt "$2" ]; }

# start_devd: until it serves. What serves already goes on.
start_devd() {
    local before
    before=$(lines "devd: serving domain")
    ask drv 30 'xb devd </dev/null >/dev/hvc0 2>&1 & echo $! >/tmp/devd.pid'
    until_true 30 "xb devd does not serve: $(tail -n 3 "$DRV_LOG")" more_lines "devd: serving domain" "$before"
}

# driver_domain: drv, a stock PV guest, with two disks of dom0: /dev/vda is its xvdb, and a file its xvdc. With --only, it may not be there yet.
driver_domain() {
    ! xl domid drv >/dev/null 2>&1 || return 0
    [ -e /disks/data.img ] || make_data
    forget drv
    cat >/tmp/drv.cfg <<C
name="drv"
type="pv"
kernel="/boot/vmlinux"
ramdisk="/boot/drv.cpio"
extra="console=hvc0 mitigations=off tsc=reliable quiet"
memory=256
vcpus=1
driver_domain=1
disk=["phy:/dev/vda,xvdb,w", "/disks/data.img,raw,xvdc,w"]
on_crash="destroy"
on_reboot="destroy"
C
    timeout 60 xl create /tmp/drv.cfg
    until_said drv 120 "ready on"
    ask drv 60 "$(await xvdb); $(await xvdc); mount -t tmpfs run /run && modprobe xen-evtchn && modprobe xen-gntdev && grep xen /sys/hypervisor/type"
    start_devd
    until_true 30 "xen-blockd does not serve: $(tail -n 3 "$DRV_LOG")" more_lines "xen-blockd: serving" 0
}
make_data() {
    truncate -s 32M /disks/data.img
    printf 'from-dom0-012345' | dd of=/disks/data.img conv=notrunc status=none
}

# guest_web: a stock guest whose root file system drv serves; with --only, it may not be there yet.
guest_web() {
    driver_domain
    ! xl domid web >/dev/null 2>&1 || return 0
    forget web
    boot web pv '"format=raw,vdev=xvda,access=w,backend=drv,target=/dev/xvdb"' lab.root=/dev/xvda
}

# kill_backend NAME DEVID: the xen-blockd of drv is killed (SIGKILL); until the next one has taken this disk over.
kill_backend() {
    local before
    before=$(lines "xen-blockd: serving")
    ask drv 30 'kill -9 $(pidof xen-blockd)'
    until_true 30 "xb devd does not start xen-blockd again: $(tail -n 3 "$DRV_LOG")" more_lines "xen-blockd: serving" "$before"
    connected_again "$1" "$2"
}

# nodes_of_drv: the nodes of the devices that it serves.
nodes_of_drv() { xenstore-ls -f "/local/domain/$(xl domid drv)/backend" 2>/dev/null || true; }

none_of_guests() { ! nodes_of_drv | grep -E "/backend/[a-z]+/[0-9]"; }

# says STATUS WORDS COMMAND...: it ends with this status and says this.
says() {
    local status=0
    timeout 60 "${@:3}" >/tmp/says 2>&1 || status=$?
    cat /tmp/says
    [ "$status" = "$1" ] || die "${*:3}: exit status $status, not $1"
    grep -qE "$2" /tmp/says || die "${*:3} does not say \"$2\""
}

# well NAME: xb doctor finds nothing wrong with the guest, 30 s from now at the latest.
well() { until_true 30 "xb doctor finds something wrong with $1" timeout 30 xb doctor "$1"; }
