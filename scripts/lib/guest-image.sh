# What machines boot: kernel, initrd with mashines-guest, root file systems. Source it after common.sh, packages.sh,
# debian.sh and initrd.sh.
#
# An image set is one directory: NAME/manifest.json with the files it names beside it. Its parts are cached by themselves
# (kernel, root file systems) and hard-linked into the set, so a changed mashines-guest costs a new initrd and no more.
# shellcheck shell=bash disable=SC2034,SC2154

# virtio over mmio (our monitor, announced by ACPI) and over PCI (QEMU); button and evdev carry the power button to logind.
# ptp_kvm: the host's clock. autofs4: systemd's, which would otherwise wait for modprobe. crc32c: ext4's soft dependency, which modules.dep does not name.
guest_modules=(virtio_mmio virtio_pci virtio_blk virtio_net vsock vmw_vsock_virtio_transport virtio_rng button evdev
    crc32c_intel crc32c_generic autofs4 ext4 ptp_kvm)

# quiet: each byte on the serial console is an exit of the machine. kvm-clock, and never the bare TSC: it is what stays true on a
# host with another TSC frequency. reboot=k, panic=1: a guest that reboots or panics ends its monitor at once.
guest_cmdline='console=ttyS0 quiet loglevel=3 reboot=k panic=1 clocksource=kvm-clock net.ifnames=0 8250.nr_uarts=1'
guest_cmdline+=' i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on rcupdate.rcu_expedited=1'

guest_kernel() {
    printf '%s/guest-kernel/%s\n' "$(cache_dir)" "$(recipe_key "$repo_root/scripts/lib/debian.sh")"
}

# DIR/kernel (bzImage), DIR/kernel.elf (the vmlinux inside it), DIR/modules/VERSION.
build_guest_kernel() {
    local out=$1 package=$1/package version
    need_packages depmod=kmod lz4=lz4
    debian_kernel "$package" linux-image-cloud-amd64
    version=$(ls "$package/lib/modules")
    depmod -b "$package" "$version"
    cp "$package/boot/vmlinuz-$version" "$out/kernel"
    extract_vmlinux "$out/kernel" "$out/kernel.elf"
    mkdir "$out/modules"
    mv "$package/lib/modules/$version" "$out/modules/"
    rm -rf "$package"
}

# Debian's payload is in lz4's legacy frame format, whose magic is 02 21 4c 18.
extract_vmlinux() {
    local offset
    offset=$(LC_ALL=C grep -abom1 $'\x02\x21\x4c\x18' "$1" | head -n 1 | cut -d: -f1)
    [[ $offset ]] || die "$1 holds no lz4 kernel"
    # What follows the payload is no lz4: the decoder complains about it after it has written all.
    tail -c "+$((offset + 1))" "$1" | lz4 -d -q - "$2" 2>/dev/null || true
    [[ $(head -c 4 "$2" | tail -c 3) == ELF ]] || die "the kernel inside $1 is no ELF file"
}

container_os() {
    printf '%s/rootfs/container-os-%s\n' "$(cache_dir)" \
        "$(recipe_key "$repo_root"/scripts/{lib/debian.sh,images/container-os.sh})"
}

build_container_os() {
    local out=$1 kernel=$2 root=$1/root
    need_packages mke2fs=e2fsprogs
    debian_root "$root" "$container_os_packages"
    configure_container_os "$root"
    cp -a "$kernel/modules" "$root/usr/lib/"
    ext4_image "$out/rootfs.img" "$container_os_size" "$root" -L container-os
    sha256sum "$out/rootfs.img" | cut -d' ' -f1 >"$out/rootfs.sha256"
    rm -rf --one-file-system "$root"
}

single_process() {
    printf '%s/rootfs/single-process-%s\n' "$(cache_dir)" \
        "$(recipe_key "$repo_root"/scripts/{lib/debian.sh,images/single-process.sh})"
}

build_single_process() {
    local out=$1 root=$1/root
    mkdir "$root"
    configure_single_process "$root"
    ext4_image "$out/rootfs.img" "$single_process_size" "$root" -L single-process
    sha256sum "$out/rootfs.img" | cut -d' ' -f1 >"$out/rootfs.sha256"
    rm -rf --one-file-system "$root"
}

# build_ssh_archive FILE BINARY: what the host puts behind the initrd of a machine of a single process.
build_ssh_archive() {
    local file=$1 binary=$2 root
    root=$(mktemp -d)
    mkdir -m 700 "$root/mashines"
    install -m 755 "$binary" "$root/mashines/ssh"
    pack_initrd "$root" "$file"
    rm -rf "$root"
}

# build_guest_initrd FILE KERNEL_DIR BINARY
build_guest_initrd() {
    local file=$1 kernel=$2 binary=$3 root
    need_packages cpio=cpio zstd=zstd
    root=$(mktemp -d)
    mkdir -p "$root"/{dev,proc,sys,run,root,etc,tmp}
    install -m 755 "$binary" "$root/init"
    add_modules "$root" "$kernel"/modules/* "${guest_modules[@]}"
    pack_initrd "$root" "$file"
    rm -rf "$root"
}

# build_image_set DIR KERNEL_DIR CONTAINER_OS_DIR SINGLE_PROCESS_DIR BINARY SSH_BINARY
build_image_set() {
    local out=$1 kernel=$2 container_os=$3 single_process=$4 binary=$5 ssh=$6 name
    build_guest_initrd "$out/initrd" "$kernel" "$binary"
    build_ssh_archive "$out/ssh.cpio" "$ssh"
    for name in container-os single-process bench; do
        mkdir "$out/$name"
        ln "$kernel/kernel" "$kernel/kernel.elf" "$out/initrd" "$out/$name/"
    done
    # A machine of any image with a root disk may be told to run a single process (init.exec).
    for name in container-os single-process; do ln "$out/ssh.cpio" "$out/$name/"; done
    ln "$container_os/rootfs.img" "$out/container-os/"
    ln "$single_process/rootfs.img" "$out/single-process/"
    rm "$out/initrd" "$out/ssh.cpio"
    write_manifest "$out/container-os" "sha256:$(cat "$container_os/rootfs.sha256")"
    write_manifest "$out/single-process" "sha256:$(cat "$single_process/rootfs.sha256")" "$single_process_exec"
    write_manifest "$out/bench" "sha256:$(sha256sum "$out/bench/initrd" | cut -d' ' -f1)"
}

# write_manifest DIR DIGEST [INIT_EXEC]: file names are relative to the manifest. An image without a root disk is known by its initrd.
write_manifest() {
    local dir=$1 digest=$2 exec=${3:+\"$3\"} rootfs=null size=null fstype=null ssh=null
    [[ ! -e $dir/ssh.cpio ]] || ssh='"ssh.cpio"'
    if [[ -e $dir/rootfs.img ]]; then
        rootfs='"rootfs.img"' fstype='"ext4"' size=$(stat -c %s "$dir/rootfs.img")
    fi
    cat >"$dir/manifest.json" <<MANIFEST
{
  "name": "${dir##*/}",
  "digest": "$digest",
  "kernel": "kernel",
  "kernel_elf": "kernel.elf",
  "initrd": "initrd",
  "ssh": $ssh,
  "rootfs": $rootfs,
  "rootfs_size_bytes": $size,
  "fstype": $fstype,
  "cmdline": "$guest_cmdline",
  "init_exec": ${exec:-null}
}
MANIFEST
}

# build_lab_images_disk DIR SET: DIR/images.ext4, the set as a disk for a lab.
build_lab_images_disk() {
    local out=$1 set=$2
    ext4_image "$out/images.ext4" 6G "$set" -O ^has_journal -L images
}
