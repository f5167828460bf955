# Recipe: Debian 12 with systemd and sshd, for machines that people log in to. Sourced by scripts/images/build.
#
# Nothing of ours is inside: init and agent come with the initrd. No host keys, no machine id, no password.

container_os_size=3G
container_os_packages=systemd,systemd-sysv,dbus,udev,openssh-server,openssh-sftp-server,git,iproute2,iputils-ping
container_os_packages+=,ca-certificates,procps,curl,e2fsprogs,rsync,fio,python3-minimal,less,nano-tiny,kmod,netcat-openbsd

# Units that a machine of one purpose does not need, or that wait for something it does not have: each costs boot time.
container_os_masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty.target getty@tty1.service serial-getty@ttyS0.service console-getty.service
    systemd-firstboot.service systemd-pstore.service systemd-random-seed.service systemd-update-utmp.service
    systemd-update-utmp-runlevel.service systemd-udev-settle.service systemd-binfmt.service
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service systemd-journal-flush.service
    systemd-hwdb-update.service systemd-ask-password-wall.path systemd-ask-password-console.path
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
    modprobe@.service kmod-static-nodes.service systemd-fsck-root.service systemd-remount-fs.service rsync.service
)

configure_container_os() {
    local root=$1 unit
    for unit in "${container_os_masked[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
    : >"$root/etc/machine-id"
    rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id" "$root/etc/motd"
    mkdir -p "$root"/etc/{ssh/sshd_config.d,systemd/journald.conf.d,systemd/logind.conf.d,systemd/system/ssh.service.d}
    # init names the links (eth0) and configures them; udev leaves them alone.
    ln -sf /dev/null "$root/etc/systemd/network/99-default.link"
    cat >"$root/etc/ssh/sshd_config.d/50-login.conf" <<'CONFIG'
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintLastLog no
CONFIG
    # The check before each start loads sshd twice; the configuration is written by init, not by hand at that moment.
    printf '[Unit]\nAfter=\nDefaultDependencies=no\nAfter=local-fs.target systemd-tmpfiles-setup.service\nConflicts=shutdown.target\nBefore=shutdown.target\n\n[Service]\nExecStartPre=\n' \
        >"$root/etc/systemd/system/ssh.service.d/50-quick.conf"
    printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nForwardToSyslog=no\n' >"$root/etc/systemd/journald.conf.d/50-volatile.conf"
    printf '[Login]\nNAutoVTs=0\nReserveVT=0\nHandlePowerKey=poweroff\n' >"$root/etc/systemd/logind.conf.d/50-machine.conf"
    sed -i '/pam_motd\|pam_mail/d' "$root/etc/pam.d/sshd"
}
