# What the steps share. They run with errexit, nounset and pipefail.

trap 'echo "line $LINENO: $BASH_COMMAND: exit status $?"' ERR

# The daemon that should run, and what it leaves.
case $LAB_STORE in
c) DAEMON=/usr/lib/xen-4.17/bin/xenstored ;;
ours) DAEMON=/usr/lib/xenbus/bin/xenstored ;;
esac
PID_FILES="/run/xenstore.pid /run/xen/xenstored.pid"

die() {
    trap - ERR
    echo "$*"
    exit 1
}

# lost NAME WHY: this guest did not start, has crashed or is silent. That alone may be tried again, from a fresh boot: xtask's `verdict` decides.
lost() {
    touch /tmp/lost
    about "$1"
    die "$1: ${*:2}"
}

# fact NAME VALUE: a figure for the table, or for the record.
fact() { echo "$1 $2" >>/results/facts; }

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# The daemon's process.
daemon_pid() {
    local file
    for file in $PID_FILES; do
        [ ! -e "$file" ] || { cat "$file"; return; }
    done
    die "the daemon has no pid file"
}

# Its processor time in ms, all threads; the kernel counts in 10 ms.
daemon_cpu_ms() { awk '{sub(/.*\) /, ""); print ($12 + $13) * 10}' "/proc/$(daemon_pid)/stat"; }

# Its resident memory in KiB.
daemon_rss_kib() { awk '/^VmRSS/ {print $2}' "/proc/$(daemon_pid)/status"; }

# Its memory that is no file's, in KiB: what it allocates, without the code that it has run.
daemon_anon_kib() { awk '/^RssAnon/ {print $2}' "/proc/$(daemon_pid)/status"; }

# without_privileges PID: our daemon serves without any capability, and under its filter of system calls, every thread of it.
without_privileges() {
    local task name
    for task in "/proc/$1/task/"*; do
        for name in "CapEff 0000000000000000" "CapPrm 0000000000000000" "NoNewPrivs 1" "Seccomp 2"; do
            grep -q "^${name% *}:[[:space:]]*${name#* }\$" "$task/status" || die "$task has not $name: $(grep -E '^(Cap|NoNew|Secc)' "$task/status" | tr '\n\t' '; ')"
        done
    done
}

# store_is_sound: xenstore-control check, and what the daemon has found, which it tells its log alone.
store_is_sound() {
    local said before left=50 last
    case $LAB_STORE in
    c) last="Checking store complete." ;;
    ours) last="check: the store is in order" ;;
    esac
    before=$(wc -l </results/syslog)
    xenstore-control check
    # What is new of the daemon's own; the logger takes a moment.
    until said=$(tail -n +$((before + 1)) /results/syslog | grep " xenstored") && grep -qF "$last" <<<"$said"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || die "the daemon does not say \"$last\" but: $said"
        sleep 0.2
    done
    ! grep -vF -e "$last" -e "Checking store ..." <<<"$said" || die "the check has found something: $said"
    echo "$last"
}

# The whole tree with permissions, sorted.
tree() { xenstore-ls -fp / | sort; }

# make_disk NAME: 8 MiB with a word for the guest at its start.
make_disk() {
    truncate -s 8M "/disks/$1.img"
    printf 'from-dom0-012345' | dd of="/disks/$1.img" conv=notrunc status=none
}

# create NAME pv|pvh NUMBER [MEMORY_MIB [OPTION... SETTING...]]: the number makes uuid, MAC and address.
create() {
    local name=$1 number
    number=$(printf %02x "$3")
    make_disk "$name"
    cat >"/tmp/$name.cfg" <<C
name="$name"
type="$2"
uuid="00000000-0000-0000-0000-0000000000$number"
kernel="/boot/vmlinux"
ramdisk="/boot/domu.cpio"
extra="console=hvc0 mitigations=off tsc=reliable quiet lab.name=$name lab.ip=10.9.0.$((10 + $3))"
memory=${4:-160}
vcpus=1
disk=["/disks/$name.img,raw,xvda,w"]
vif=["mac=00:16:3e:00:00:$number,bridge=xenbr0"]
on_crash="destroy"
on_reboot="destroy"
C
    timeout 60 xl create "/tmp/$name.cfg" "${@:5}"
}

# about NAME: what Xen, the store, xl and the guest itself say of a guest that does not do what it should.
about() {
    local id
    tail -n 20 "/var/log/xen/console/guest-$1.log" || true
    tail -n 5 "/var/log/xen/xl-$1.log" || true
    xl dmesg | grep -E '^(\(XEN\) (d[1-9]|Dom|domain_crash)|\(d[1-9])' | tail -n 10 || true
    id=$(xl domid "$1") || { echo "guest $1 is not there any more"; return 0; }
    xenstore-ls "/local/domain/$id/console" || true
    # Where its processor is, twice: one that goes on is told from one that stands.
    for _ in 1 2; do
        xl list "$1" | tail -n 1
        timeout 10 xenctx "$id" 2>&1 | head -n 3 || true
        sleep 1
    done
}

# until_said NAME SECONDS WORDS: until the guest's console has a line with these words first, whole ones.
until_said() {
    local fd tail status=0 log=/var/log/xen/console/guest-$1.log
    exec {fd}< <(exec tail -n +1 -F "$log" 2>/dev/null)
    tail=$!
    timeout "$2" grep -qE -m 1 "^GUEST ${3% }([[:space:]]|\$)" <&"$fd" || status=$?
    kill "$tail" || true
    exec {fd}<&-
    [ "$status" = 0 ] || lost "$1" "did not say \"$3\" within $2 s; its last words: $(tail -n 2 "$log" | tr '\r\n' '  ')"
}

# The PV guest that several steps use one after the other; with --only, it may not be there yet.
guest_pv() {
    xl domid pv >/dev/null 2>&1 && return
    create pv pv 1
    until_said pv 60 ready
}

# tell NAME WORDS: on its console. xenconsoled makes it in a moment of its own, and a guest that was restored may be up before.
tell() {
    local name=$1 id tty left=100
    shift
    id=$(xl domid "$name") || lost "$name" "is gone before it is told \"$*\""
    until tty=$(xenstore-read "/local/domain/$id/console/tty" 2>/dev/null) && [ -n "$tty" ]; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || about "$name"
        [ "$left" -gt 0 ] || die "guest $name, domain $id, has no console"
        sleep 0.2
    done
    echo "$*" >"$tty"
}

# works NAME NUMBER: its disk and its network, and dom0 reaches it.
works() {
    tell "$1" "check $2"
    until_said "$1" 60 "checked $2"
}

# nothing_is_left TREE: no guest, and no node that was not in this tree before the guests but those that the toolstack makes once for a host:
# folders without a domain's number or uuid in their paths.
nothing_is_left() {
    xl list
    [ "$(xl list | wc -l)" = 2 ] || die "a guest is left: $(xl list)"
    tree | comm -13 "$1" - >/tmp/new
    ! grep -E '/(local/domain|libxl|backend/[a-z]+|vm)/[1-9]|/vm/0|uuid' /tmp/new || die "nodes of dead guests are left"
    store_is_sound
    kill -0 "$(daemon_pid)"
}

# until_gone NAME SECONDS: until Xen has it no more.
until_gone() {
    local end=$((SECONDS + $2))
    while xl domid "$1" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "guest $1 is still there after $2 s: $(xl list "$1" | tail -n 1)"
        sleep 0.2
    done
}

# The state in Xen's list, as in r-----.
state_of() { xl list "$1" | awk 'NR == 2 {print $5}'; }
