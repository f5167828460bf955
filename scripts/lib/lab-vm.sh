# One running lab VM. Source it after lab-image.sh.
#
# Everything of a lab is in its own directory, .lab/NAME: pid, port, overlay.qcow2, console.log, qemu.log. A lab runs when the process
# of `pid` is a QEMU that was started with that very pid file; any other process with that number is not ours to touch.
# shellcheck shell=bash disable=SC2034,SC2154

lab_name=${LAB_NAME:-default}
[[ $lab_name =~ ^[A-Za-z0-9_-]{1,40}$ ]] || die "LAB_NAME '$lab_name' may have only letters, digits, - and _"
lab_dir=$repo_root/.lab/$lab_name

# RCU looks ten times less often whether CPUs are through (250 times a second else, which is a twentieth of the lab), and no CPU waits for a
# guest that has nothing to do.
lab_quiet='rcutree.jiffies_till_first_fqs=10 rcutree.jiffies_till_next_fqs=10 kvm.halt_poll_ns=0'

lab_up() {
    if lab_runs; then return; fi
    need_packages qemu-img=qemu-utils ssh=openssh-client
    find_lab_qemu
    local image started=$SECONDS
    image=$(lab_image)
    cached "$image" build_lab_image
    mkdir -p "$lab_dir"
    (
        exec 9>"$lab_dir/lock"
        flock 9
        if lab_runs; then exit; fi
        lab_start_until_ready "$image"
    )
    say "lab '$lab_name' is up after $((SECONDS - started)) s"
}

# The image set that a lab of this checkout attaches when it starts; nothing before scripts/images/build has run once.
lab_images() {
    readlink "$repo_root/.lab/images" || true
}

lab_runs() {
    local pid
    pid=$(cat "$lab_dir/pid" 2>/dev/null) || return 1
    [[ $pid ]] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF "$lab_dir/pid"
}

lab_start() {
    local image=$1 attempt
    rm -f "$lab_dir"/{pid,overlay.qcow2,console.log}
    ln -sfn "$image" "$lab_dir/image"
    lab_images >"$lab_dir/images"
    qemu-img create -q -f qcow2 -F raw -b "$image/root.img" "$lab_dir/overlay.qcow2"
    # The port is chosen at random: another lab may take it in between, so a refusal is tried again.
    for attempt in 1 2 3 4 5; do
        shuf -n 1 -i 20000-32000 >"$lab_dir/port"
        if lab_qemu "$image" >"$lab_dir/qemu.log" 2>&1; then return; fi
        grep -q 'host forwarding rule' "$lab_dir/qemu.log" || break
    done
    cat "$lab_dir/qemu.log" >&2
    die "QEMU did not start (its words are above; tried $attempt times)"
}

# One CPU more than asked for, and nothing runs on it by itself: QEMU (7.2 to 10.0 at least) lets every emulated CPU that restores FPU
# state write to the *first* CPU's flags (cpu_clear_ignne, not atomic), which loses the flags of a VM exit on that CPU about once in
# two minutes: the guest runs its host's code, or the host crashes. So no guest may run on CPU 0.
lab_qemu() {
    local image=$1 emulated=mashines.emulated accel=(-accel "tcg,thread=multi,tb-size=2000" -cpu "EPYC,+svm,+npt") images_disk=()
    case ${LAB_ACCEL:-tcg} in
    tcg) ;;
    kvm) accel=(-accel kvm -cpu host) emulated= ;;
    *) die "LAB_ACCEL is '$LAB_ACCEL'; it must be tcg or kvm" ;;
    esac
    local disk
    disk=$(cat "$lab_dir/images")-disk/images.ext4
    if [[ -e $disk ]]; then
        images_disk=(-drive "if=none,id=images,format=raw,readonly=on,cache=unsafe,file=$disk" -device "virtio-blk-pci,drive=images")
    fi
    local tunables=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=8388608:glibc.malloc.top_pad=16777216
    # A quarter of the emulator's time goes to finding translated code in tables of 100 MB. In huge pages, where only one heap for all threads ends
    # up, it is a fifth.
    GLIBC_TUNABLES=$tunables "${lab_qemu_command[@]}" -name "mashines-lab-$lab_name" -M q35 "${accel[@]}" \
        -smp "$((${LAB_CPUS:-2} + 1))" -m "${LAB_MEMORY_MIB:-6144}" -nodefaults -no-user-config -display none \
        -daemonize -pidfile "$lab_dir/pid" -monitor "unix:$lab_dir/monitor,server=on,wait=off" -serial "file:$lab_dir/console.log" -no-reboot \
        -kernel "$image/kernel" -initrd "$image/initrd" \
        -append "console=ttyS0 loglevel=4 mitigations=off tsc=reliable panic=1 net.ifnames=0 isolcpus=0 $emulated $lab_quiet" \
        -drive "if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file=$lab_dir/overlay.qcow2" \
        -device virtio-blk-pci,drive=root "${images_disk[@]}" \
        -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$(cat "$lab_dir/port")-:22" -device virtio-net-pci,netdev=net \
        -device virtio-rng-pci \
        -fsdev "local,id=src,path=$repo_root,security_model=none,multidevs=remap" -device virtio-9p-pci,fsdev=src,mount_tag=src
}

# Seldom (once in some fifty starts) one hangs: the emulated CPU 0 gets no timer interrupt any more, and the kernel complains of RCU stalls. It usually
# takes 10 s; the last attempt has the patience for a very slow machine.
lab_start_until_ready() {
    local patience
    for patience in 45 45 120; do
        lab_start "$1"
        if lab_wait_ready "$patience"; then return; fi
        if lab_runs; then
            say "the lab was not ready after $patience s; its console: $(tail -n 1 "$lab_dir/console.log")"
            lab_kill
        else
            say "the lab's QEMU ended while it started; its words: $(lab_words)"
        fi
    done
    lab_failed "the lab did not become ready"
}

# lab_wait_ready SECONDS
lab_wait_ready() {
    local deadline=$((SECONDS + $1))
    until grep -q '^lab: ready' "$lab_dir/console.log" 2>/dev/null; do
        lab_runs || return 1
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# What QEMU said, without what it always says.
lab_words() { grep -v 'support requested feature' "$lab_dir/qemu.log" || true; }

lab_failed() {
    {
        printf -- '--- last lines of %s\n' "$lab_dir/console.log"
        tail -n 20 "$lab_dir/console.log"
        lab_words
    } >&2
    die "$*"
}

# Whether the lab does what it is told. One that runs and does not answer is shown: what its kernel said last, and where each of its
# CPUs stands, twice, two seconds apart: one that stands still has lost its interrupts, one that goes round is busy.
lab_answers() {
    lab_runs || return 1
    # A connection that is open already may hang for its own reasons.
    lab_ssh -O exit 2>/dev/null || true
    lab_ssh true </dev/null && return
    say "lab '$lab_name' runs and does not answer; its console and its CPUs:"
    {
        tail -n 15 "$lab_dir/console.log"
        lab_cpus
        sleep 2
        lab_cpus
    } >&2
    return 1
}

# Where the emulated CPUs stand.
lab_cpus() {
    python3 - "$lab_dir/monitor" <<'PYTHON' 2>/dev/null || say "QEMU's monitor does not answer either"
import re, socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.settimeout(10)
monitor.connect(sys.argv[1])
def prompt():
    text = b""
    while not text.endswith(b"(qemu) "):
        text += monitor.recv(65536)
    return text.decode(errors="replace")
prompt()
monitor.sendall(b"info registers -a\n")
for line in prompt().splitlines():
    if re.match(r"CPU#|RIP=", line):
        print(line)
PYTHON
}

# lab_ssh OPTION... [COMMAND]: nothing of the user's own SSH set-up is read or written.
lab_ssh() {
    local control=${TMPDIR:-/tmp}/mashines-lab-$UID image=$lab_dir/image
    (umask 077 && mkdir -p "$control")
    [[ -O $control ]] || die "$control belongs to someone else; set TMPDIR to a directory of your own"
    # The name of the socket must be short, and no two labs may share it: hash of directory and port.
    control+=/$(printf '%s %s' "$lab_dir" "$(cat "$lab_dir/port")" | sha256sum | cut -c1-12)
    ssh -F /dev/null -i "$image/id_ed25519" -o IdentitiesOnly=yes -o IdentityAgent=none \
        -o UserKnownHostsFile="$image/known_hosts" -o GlobalKnownHostsFile=/dev/null -o HostKeyAlias=lab \
        -o StrictHostKeyChecking=yes -o LogLevel=ERROR -o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=8 \
        -o ControlMaster=auto -o ControlPersist=120 -o ControlPath="$control" \
        -p "$(cat "$lab_dir/port")" root@127.0.0.1 "$@"
}

# lab_run CMD ARG...: interrupted, it ends the command in the lab too: sshd itself would let it run on. The command's shell leads a
# process group of its own, whose number it leaves in /run.
lab_run() {
    local quoted status=0 tag=/run/lab-run-$$-$RANDOM
    printf -v quoted '%q ' "$@"
    # In the background, since bash looks at signals only between commands and in `wait`.
    lab_ssh "echo \$\$ >$tag; cd /src && exec $quoted" <&0 &
    local ssh=$!
    # shellcheck disable=SC2064
    trap "lab_ssh 'kill -- -\$(cat $tag)' </dev/null 2>/dev/null || true; kill $ssh 2>/dev/null; exit 130" INT TERM HUP
    wait "$ssh" || status=$?
    trap - INT TERM HUP
    return "$status"
}

lab_shell() {
    local quoted='bash -l'
    if (($#)); then printf -v quoted '%q ' "$@"; fi
    lab_ssh -t "cd /src && exec $quoted"
}

# Its disk is thrown away: no need to ask the kernel in it.
lab_kill() {
    local pid
    pid=$(cat "$lab_dir/pid")
    kill "$pid"
    for _ in {1..100}; do
        lab_runs || return 0
        sleep 0.05
    done
    kill -9 "$pid"
}

lab_down() {
    if ! lab_runs; then
        say "lab '$lab_name' does not run"
        return
    fi
    lab_ssh -O exit 2>/dev/null || true
    lab_kill
    rm -f "$lab_dir"/{pid,port,monitor,overlay.qcow2}
    say "lab '$lab_name' is down"
}

lab_status() {
    if lab_runs; then
        [[ $(lab_images) == "$(cat "$lab_dir/images")" ]] || say "guest images were built since this lab started; down and up takes them"
        printf 'lab %s: runs, pid %s, ssh port %s, console %s\n' "$lab_name" "$(cat "$lab_dir/pid")" "$(cat "$lab_dir/port")" "$lab_dir/console.log"
    else
        printf 'lab %s: down\n' "$lab_name"
        return 1
    fi
}
