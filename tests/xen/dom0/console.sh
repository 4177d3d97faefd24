# What the steps of the boot `console` share, beside lib.sh and block.sh, whose guest does what its console says.
. /lab/block.sh

# The path that Debian's script starts, and the daemon that is there.
XENCONSOLED=/usr/lib/xen-4.17/bin/xenconsoled
XENCONSOLED_PID=/run/xenconsoled.pid
LOGS=/var/log/xen/console
case $LAB_STORE in
c) CONSOLED=$XENCONSOLED ;;
ours) CONSOLED=/usr/lib/xenbus/bin/xenconsoled ;;
esac

# running_consoles: the processes whose program is the daemon's.
running_consoles() {
    local process
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/exe" 2>/dev/null)" != "$CONSOLED" ] || echo "${process#/proc/}"
    done
}

# console_pid: the daemon's process, with the name and the program that Debian's script looks for.
console_pid() {
    local pid
    [ -s $XENCONSOLED_PID ] || die "the daemon has written no $XENCONSOLED_PID"
    pid=$(cat $XENCONSOLED_PID)
    [ "$(cat "/proc/$pid/comm")" = xenconsoled ] || die "process $pid is $(cat "/proc/$pid/comm"), not xenconsoled"
    [ "$(readlink "/proc/$pid/exe")" = "$CONSOLED" ] || die "$(readlink "/proc/$pid/exe") runs, not $CONSOLED"
    echo "$pid"
}

# start_console [ARGUMENT...]: by Debian's script, with these arguments; `restart` is what starts consoles alone, beside a store that runs.
start_console() {
    sed -i "s|^XENCONSOLED_ARGS=.*|XENCONSOLED_ARGS=\"--log-dir=$LOGS ${*:---log=all}\"|" /etc/default/xen
    /etc/init.d/xen restart
    until_true 20 "the daemon has no process" running_pid
}
running_pid() { [ -s $XENCONSOLED_PID ] && [ -d "/proc/$(cat $XENCONSOLED_PID)" ]; }

# kill_console: as the kernel's OOM killer would end the daemon; other processes of its program go with it.
kill_console() {
    kill -9 "$(console_pid)"
    until_true 10 "processes of the killed daemon are left" no_consoles
}
no_consoles() { [ -z "$(running_consoles)" ]; }

# until_true SECONDS WHY COMMAND...: until the command succeeds.
until_true() {
    local end=$((SECONDS + $1)) why=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt "$end" ] || die "$why"
        sleep 0.1
    done
}

# attach NAME: `xl console` on a terminal of its own. What it shows is in /tmp/NAME.seen; `type_in` types on it, `detach_console` ends it.
attach() {
    attach_by "$1" "exec xl console $1"
    until_true 30 "xl console $1 does not open the console: $(cat "/tmp/$1.seen")" opened "$1"
    # It makes its terminal raw next.
    sleep 0.3
}
attach_by() {
    rm -f "/tmp/$1.keys" "/tmp/$1.seen"
    mkfifo "/tmp/$1.keys"
    touch "/tmp/$1.seen"
    script -qfc "$2" "/tmp/$1.seen" <"/tmp/$1.keys" >/dev/null 2>&1 &
    echo $! >"/tmp/$1.client"
    exec {KEYS}>"/tmp/$1.keys"
}
# opened NAME: true if the client has opened the terminal that the daemon made.
opened() {
    local client tty fd
    client=$(cat "/tmp/$1.client")
    client=$(cat "/proc/$client/task/$client/children") && client=${client% }
    tty=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")
    for fd in "/proc/$client/fd/"*; do
        [ "$(readlink "$fd")" != "$tty" ] || [ "$(cat "/proc/$client/comm")" != xenconsole ] || return 0
    done
    return 1
}

# type_in WORDS: a line on the terminal that was attached last.
type_in() { printf '%s\n' "$*" >&"$KEYS"; }

# until_seen NAME SECONDS PATTERN: until the terminal shows a line that begins so.
until_seen() {
    local end=$((SECONDS + $2))
    until grep -aqE "^$3" "/tmp/$1.seen"; do
        [ $SECONDS -lt "$end" ] || die "the terminal of $1 does not show \"$3\" within $2 s; its end: $(tail -c 200 "/tmp/$1.seen" | tr '\r\n' '  ')"
        sleep 0.1
    done
}

# detach_console NAME: types the key that ends the client, alone, and waits for its end.
detach_console() {
    local client
    client=$(cat "/tmp/$1.client")
    sleep 0.5
    printf '\035' >&"$KEYS"
    until_true 10 "xl console $1 does not end" gone "$client"
    exec {KEYS}>&-
}
gone() { ! kill -0 "$1" 2>/dev/null; }

# type_command NAME COMMAND: on the attached terminal, as `begin` does by the pty.
type_command() {
    local number=$(($(cat "/tmp/$1.asked" 2>/dev/null || echo 0) + 1))
    echo $number >"/tmp/$1.asked"
    type_in "$number" "$2"
}

# console_nodes NAME: the terminal that clients and the toolstack find.
console_nodes() {
    local domid tty
    domid=$(xl domid "$1")
    tty=$(xenstore-read "/local/domain/$domid/console/tty")
    [ -c "$tty" ] || die "tty is \"$tty\", which is no terminal"
    xenstore-ls -fp "/local/domain/$domid/console" >/tmp/nodes
    grep -qE "/console/tty = \"$tty\" +\(n0,r$domid\)\$" /tmp/nodes || die "tty has other permissions: $(grep /tty /tmp/nodes)"
}

# config NAME pv|pvh: of a guest that does what its console says.
config() {
    cat >"/tmp/$1.cfg" <<C
name="$1"
type="$2"
kernel="/boot/vmlinux"
ramdisk="/boot/block.cpio"
extra="console=hvc0 mitigations=off tsc=reliable quiet"
memory=160
vcpus=1
on_crash="destroy"
on_reboot="destroy"
C
}

# guest NAME pv|pvh: one that several steps use; with --only, it may not be there yet.
guest() {
    ! xl domid "$1" >/dev/null 2>&1 || return 0
    rm -f "/tmp/$1.asked" "/tmp/$1.started"
    config "$1" "$2"
    timeout 60 xl create "/tmp/$1.cfg"
    until_said "$1" 120 "ready on"
    touch "/tmp/$1.started"
}

# lost NAME WHY: as elsewhere, for a guest that did not start or is gone. Where one that has started is silent, that may be the daemon's fault;
# under emulation a PVH guest is silent without any.
lost() {
    if [ ! -e "/tmp/$1.started" ] || [ "$1" = pvh ] || ! xl domid "$1" >/dev/null 2>&1; then
        touch /tmp/lost
    fi
    about "$1"
    die "$1: ${*:2}"
}

# logs_of NAME: all that is in its logs, the older one first.
logs_of() {
    [ ! -e "$LOGS/guest-$1.log.1" ] || cat "$LOGS/guest-$1.log.1"
    cat "$LOGS/guest-$1.log"
}

# begin_written NAME COMMAND, finish_written NAME SECONDS: the command's output as the log has it, byte by byte, is /tmp/NAME.written then.
begin_written() {
    logs_of "$1" | wc -c >"/tmp/$1.before"
    begin "$1" "$2"
}
finish_written() {
    local number
    number=$(cat "/tmp/$1.asked")
    until_said "$1" "$2" "done $number "
    logs_of "$1" | tail -c +$(($(cat "/tmp/$1.before") + 1)) >"/tmp/$1.written"
    printf 'GUEST done %s 0\r\n' "$number" >"/tmp/$1.last"
    [ "$(tail -c "$(wc -c <"/tmp/$1.last")" "/tmp/$1.written")" = "$(cat "/tmp/$1.last")" ] || die "in guest $1: $(tail -n 2 "/tmp/$1.written")"
    truncate -s "-$(wc -c <"/tmp/$1.last")" "/tmp/$1.written"
}

# echo_ms NAME COUNT: the median time from a line on the guest's terminal to the guest's answer there, in ms. Fails where
# there is none within 20 s.
echo_ms() {
    local fd number line begin tty
    tty=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")
    exec {fd}<>"$tty"
    for number in $(seq "$2"); do
        begin=$(now_ms)
        echo "7$number-$begin true" >&"$fd"
        until read -r -t 20 -u "$fd" line && [[ $line = "GUEST done 7$number-$begin 0"* ]]; do
            [ $(($(now_ms) - begin)) -lt 20000 ] || { echo none; exit 1; }
        done
        echo $(($(now_ms) - begin))
    done | sort -n | sed -n "$((($2 + 1) / 2))p"
    exec {fd}<&-
}

# last_words NAME COMMAND: the guest prints a line and ends at once, by the command; the line is in its log. Debian's daemon may lose it.
last_words() {
    begin "$1" "echo last words of $1; $2"
    until_gone "$1" 60
    if grep -aq "^last words of $1" "$LOGS/guest-$1.log"; then
        fact "console_last_words_$1" 1
    else
        fact "console_last_words_$1" 0
        [ "$LAB_STORE" = c ] || die "the log lacks the last words of $1: $(tail -n 2 "$LOGS/guest-$1.log")"
    fi
}
