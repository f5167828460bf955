# The lab VM's kernel, initrd and root disk. Source it after common.sh, packages.sh, debian.sh and initrd.sh.
#
# The product, $(lab_image): kernel, initrd, root.img (read-only base of every lab's overlay), id_ed25519 (logs in as root),
# known_hosts. The generic kernel and not the cloud one: it has 9p, by which the lab sees the checkout.
# shellcheck shell=bash disable=SC2034,SC2154

lab_packages=openssh-server,openssh-client,iproute2,nftables,iputils-ping,tcpdump,socat,python3,fio,e2fsprogs,dnsutils,jq
lab_packages+=,curl,procps,wireguard-tools,qemu-system-x86,rsync,git,netcat-openbsd,strace,busybox-static,kmod,util-linux
# chromium-headless-shell, and not chromium: the same engine without GTK and all that a screen needs.
lab_packages+=,ca-certificates,sqlite3,fdisk,bsdextrautils,iperf3,less,time,openssl,nghttp2-client,pebble,python3-websockets,python3-grpcio,chromium-headless-shell,libnss3-tools

# What the initrd needs to reach the root disk. ext4 asks for crc32c by a soft dependency, which modules.dep does not name.
lab_initrd_modules=(virtio_pci virtio_blk crc32c_intel crc32c_generic ext4)

# Kernel directories that no lab uses: left out, they would be three quarters of the root disk.
lab_dropped_modules=(sound drivers/gpu drivers/media drivers/net/wireless drivers/net/ethernet drivers/usb drivers/scsi
    drivers/infiniband drivers/iio drivers/input drivers/hid drivers/staging drivers/hwmon drivers/mtd drivers/bluetooth
    drivers/isdn drivers/video drivers/ata drivers/platform drivers/comedi drivers/thunderbolt net/bluetooth net/mac80211)

lab_image() {
    local here=$repo_root/scripts/lib
    printf '%s/lab/%s\n' "$(cache_dir)" \
        "$(recipe_key "$here"/{debian,initrd,lab-image}.sh "$here"/lab-{boot,init})"
}

build_lab_image() {
    local out=$1 root=$1/root kernel=$1/kernel-package version dropped
    need_packages mke2fs=e2fsprogs cpio=cpio zstd=zstd depmod=kmod busybox=busybox-static ssh-keygen=openssh-client
    say "building the lab's root disk (once, about two minutes)"
    debian_root "$root" "$lab_packages" &
    local bootstrap=$!
    debian_kernel "$kernel" linux-image-amd64
    version=$(ls "$kernel/lib/modules")
    cp "$kernel/boot/vmlinuz-$version" "$out/kernel"
    for dropped in "${lab_dropped_modules[@]}"; do rm -rf "$kernel/lib/modules/$version/kernel/$dropped"; done
    depmod -b "$kernel" "$version"
    build_lab_initrd "$out/initrd" "$kernel/lib/modules/$version"
    wait "$bootstrap"
    cp -a "$kernel/lib/modules" "$root/usr/lib/"
    configure_lab_root "$root" "$out"
    # No journal: a lab's disk never outlives its power.
    ext4_image "$out/root.img" 24G "$root" -O ^has_journal -L lab
    rm -rf --one-file-system "$root" "$kernel"
}

build_lab_initrd() {
    local initrd=$1 modules=$2 root
    root=$(mktemp -d)
    mkdir -p "$root"/{bin,dev,proc,sys,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    install -m 755 "$repo_root/scripts/lib/lab-boot" "$root/init"
    add_modules "$root" "$modules" "${lab_initrd_modules[@]}"
    pack_initrd "$root" "$initrd"
    rm -rf "$root"
}

configure_lab_root() {
    local root=$1 out=$2
    install -m 755 "$repo_root/scripts/lib/lab-init" "$root/sbin/lab-init"
    printf '::sysinit:/sbin/lab-init boot\n::shutdown:/bin/sync\n' >"$root/etc/inittab"
    mkdir -p "$root"/{src,var/lib/mashines-images} "$root/root/.ssh"
    printf 'lab\n' >"$root/etc/hostname"
    printf '127.0.0.1 localhost lab\n::1 localhost lab\n' >"$root/etc/hosts"
    rm -f "$root/etc/resolv.conf"
    printf 'nameserver 10.0.2.3\n' >"$root/etc/resolv.conf"
    # A fresh file system has no owner that git knows.
    printf '[safe]\n\tdirectory = *\n' >"$root/etc/gitconfig"

    # The host key is the cache's own: made here, for labs on loopback only.
    rm -f "$root"/etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$root/etc/ssh/ssh_host_ed25519_key"
    printf 'lab %s\n' "$(cut -d' ' -f1,2 "$root/etc/ssh/ssh_host_ed25519_key.pub")" >"$out/known_hosts"
    ssh-keygen -q -t ed25519 -N '' -C mashines-lab -f "$out/id_ed25519"
    install -m 600 "$out/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
    chmod 700 "$root/root/.ssh"
    cat >"$root/etc/ssh/sshd_config" <<'CONFIG'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxSessions 200
MaxStartups 200
AcceptEnv *
Subsystem sftp /usr/lib/openssh/sftp-server
CONFIG
}
