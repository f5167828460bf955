# Recipe: one process and no sshd, for what people bring as a container. Sourced by scripts/images/build.
#
# Busybox's web server on port 8080 serves /srv. There is a shell, and nothing else of a system: no init, no libraries, no users but root.
# shellcheck shell=bash disable=SC2034,SC2154

single_process_size=64M
single_process_exec='/bin/busybox httpd -f -p 8080 -h /srv'

configure_single_process() {
    local root=$1 busybox applet
    need_packages busybox=busybox-static
    busybox=$(command -v busybox)
    ! ldd "$busybox" >/dev/null 2>&1 || die "$busybox needs libraries: apt-get install busybox-static takes its place"
    mkdir -p "$root"/{bin,dev,etc,proc,root,run,srv,sys,tmp}
    install -m 755 "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    chmod 700 "$root/root"
    chmod 1777 "$root/tmp"
    printf 'one process\n' >"$root/srv/index.html"
}
