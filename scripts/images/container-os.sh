# Recipe: Debian 12 with systemd and sshd, git and podman, for machines that people log in to and push to. Sourced by scripts/images/build.
#
# Nothing of ours is inside: init and agent come with the initrd. No host keys, no machine id, no password.
# shellcheck shell=bash disable=SC2034,SC2154

container_os_size=3G
container_os_packages=systemd,systemd-sysv,dbus,udev,openssh-server,openssh-sftp-server,git,iproute2,iputils-ping
container_os_packages+=,ca-certificates,procps,curl,e2fsprogs,rsync,fio,python3-minimal,less,nano-tiny,kmod,netcat-openbsd
# What a push builds and runs with. aardvark-dns: the services of a compose file find each other by name. iptables: netavark's.
container_os_packages+=,podman,crun,podman-compose,netavark,aardvark-dns,iptables,catatonit

# Units that a machine of one purpose does not need, or that wait for something it does not have: each costs boot time.
container_os_masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty.target getty@tty1.service serial-getty@ttyS0.service console-getty.service
    systemd-firstboot.service systemd-pstore.service systemd-random-seed.service systemd-update-utmp.service
    systemd-update-utmp-runlevel.service systemd-user-sessions.service systemd-udev-settle.service systemd-binfmt.service
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service systemd-journal-flush.service
    systemd-hwdb-update.service systemd-ask-password-wall.path systemd-ask-password-console.path
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
    modprobe@.service kmod-static-nodes.service systemd-fsck-root.service systemd-remount-fs.service rsync.service
    podman-auto-update.timer podman-restart.service
)

# Generators for what a machine of ours cannot have: encrypted or automatic partitions, hibernation, consoles to log in on.
container_os_masked_generators=(
    systemd-bless-boot-generator systemd-cryptsetup-generator systemd-getty-generator systemd-gpt-auto-generator
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator
    systemd-system-update-generator systemd-veritysetup-generator
)

configure_container_os() {
    local root=$1
    forget_identity "$root"
    quicken_boot "$root"
    configure_sshd "$root"
    configure_podman "$root"
}

forget_identity() {
    local root=$1
    : >"$root/etc/machine-id"
    rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/{hostname,resolv.conf,motd} "$root/var/lib/dbus/machine-id"
}

quicken_boot() {
    local root=$1 unit generator etc=$1/etc/systemd
    mkdir -p "$etc"/{system-generators,journald.conf.d,logind.conf.d,network} "$root"/etc/{udev/rules.d,tmpfiles.d}
    for unit in "${container_os_masked[@]}"; do ln -sf /dev/null "$etc/system/$unit"; done
    for generator in "${container_os_masked_generators[@]}"; do ln -sf /dev/null "$etc/system-generators/$generator"; done
    ln -sf /lib/systemd/system/multi-user.target "$etc/system/default.target"
    # init has named and configured the links, and loaded the drivers of all devices there are: udev does neither again.
    ln -sf /dev/null "$etc/network/99-default.link"
    ln -sf /dev/null "$root/etc/udev/rules.d/80-drivers.rules"
    rm -f "$root/etc/modules-load.d/modules.conf"
    # With systemd-user-sessions gone nobody would take /run/nologin away.
    ln -sf /dev/null "$root/etc/tmpfiles.d/systemd-nologin.conf"
    # The power button is the agent's. logind and D-Bus start when something first asks for them.
    rm -f "$root"/lib/systemd/system/multi-user.target.wants/{dbus.service,systemd-logind.service} \
        "$etc"/system/multi-user.target.wants/{dbus.service,systemd-logind.service}
    printf '[Login]\nNAutoVTs=0\nReserveVT=0\nHandlePowerKey=ignore\n' >"$etc/logind.conf.d/50-machine.conf"
    printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nForwardToSyslog=no\n' >"$etc/journald.conf.d/50-volatile.conf"
    # Nothing to bring up to date at first boot (systemd-update-done.service).
    touch "$root/etc/.updated" "$root/var/.updated"
}

configure_sshd() {
    local root=$1 drop_in=$1/etc/systemd/system/ssh.service.d
    mkdir -p "$root/etc/ssh/sshd_config.d" "$drop_in"
    cat >"$root/etc/ssh/sshd_config.d/50-login.conf" <<'CONFIG'
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintLastLog no
CONFIG
    # sshd needs nothing of the other units: network, keys and volumes are there before systemd. The check before its start would
    # load it twice, for a configuration that init has just written.
    cat >"$drop_in/50-quick.conf" <<'CONFIG'
[Unit]
DefaultDependencies=no
After=
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStartPre=
CONFIG
    sed -i '/pam_motd\|pam_mail/d' "$root/etc/pam.d/sshd"
}

configure_podman() {
    local root=$1 etc=$1/etc/containers
    mkdir -p "$etc/registries.conf.d"
    cat >"$etc/storage.conf" <<'CONFIG'
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
CONFIG
    printf '[network]\nnetwork_backend = "netavark"\n\n[engine]\nruntime = "crun"\n' >"$etc/containers.conf"
    # Dockerfiles say `FROM node:22`; nobody is there to be asked from where.
    printf 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "permissive"\n' >"$etc/registries.conf.d/50-docker-hub.conf"
    # Its programs run as units of their own; who wants the API enables its socket.
    rm -f "$root"/etc/systemd/system/sockets.target.wants/podman.socket "$root"/etc/systemd/system/{default,multi-user}.target.wants/podman.service
}
