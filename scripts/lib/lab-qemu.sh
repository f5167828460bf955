# The QEMU that a lab runs in. Source it after common.sh, packages.sh and debian.sh.
#
# From version 8.2 on, QEMU computes an emulated CPU's AES with the real CPU's: five times the bytes a second in TLS. Debian 12 has
# 7.2, and a newer one in its backports, which is unpacked into the cache and not installed: it replaces nothing of this machine.
# shellcheck shell=bash disable=SC2034,SC2154

lab_qemu_backport=(qemu-system-x86 qemu-system-common qemu-system-data)

# Sets lab_qemu_command: $LAB_QEMU, the installed one when it is new enough, the backport, else the installed one.
find_lab_qemu() {
    lab_qemu_command=(${LAB_QEMU:-})
    ((${#lab_qemu_command[@]})) && return
    # It brings the firmware and the libraries along, whichever version it is.
    need_packages qemu-system-x86_64=qemu-system-x86
    lab_qemu_command=(qemu-system-x86_64)
    local version dir
    version=$(qemu-system-x86_64 --version | grep -om1 '[0-9]*\.[0-9]*')
    [[ $(printf '%s\n' 8.2 "$version" | sort -V | head -n 1) == 8.2 ]] && return
    dir=$(cache_dir)/qemu/backport-$debian_suite
    if [[ -d $dir ]] || (cached "$dir" unpack_lab_qemu); then
        lab_qemu_command=("$dir/usr/bin/qemu-system-x86_64")
        for dir in "$dir/usr/share/qemu" /usr/share/seabios /usr/lib/ipxe/qemu /usr/share/qemu; do lab_qemu_command+=(-L "$dir"); done
    else
        say "going on with QEMU $version: the lab works, but encrypts slowly"
    fi
}

# With package lists of its own: this machine's are not touched. It runs inside a condition, where `set -e` does nothing.
unpack_lab_qemu() {
    local out=$1 mirror options deb
    mirror=$(debian_sources | awk -v suite="$debian_suite" '$3 == suite {print $2; exit}')
    [[ $mirror ]] || die "apt names no mirror of Debian $debian_suite here, so its backports cannot be asked for a newer QEMU"
    say "fetching a newer QEMU from Debian's $debian_suite-backports (once)"
    mkdir -p "$out"/apt/{lists/partial,cache/archives/partial}
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' "$mirror" "$debian_suite" >"$out/apt/sources.list"
    options=(-qq -o APT::Sandbox::User=root -o "Dir::Etc::SourceList=$out/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$out/apt/lists" -o "Dir::Cache=$out/apt/cache")
    apt-get "${options[@]}" update || die "$debian_suite-backports cannot be listed"
    (cd "$out/apt" && apt-get "${options[@]}" download "${lab_qemu_backport[@]/%//$debian_suite-backports}") ||
        die "$debian_suite-backports cannot be fetched"
    for deb in "$out"/apt/*.deb; do dpkg-deb -x "$deb" "$out"; done
    rm -rf "$out/apt"
    "$out/usr/bin/qemu-system-x86_64" --version >/dev/null || die "the QEMU of $debian_suite-backports does not run here"
}
