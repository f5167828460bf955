# Debian root file systems, kernels and ext4 images. Source it after common.sh and packages.sh.
#
# mmdebstrap and not debootstrap: it resolves with apt itself, so security updates come in the same pass, and it takes half the
# time. Images are made by `mke2fs -d`, without mounting anything.
# shellcheck shell=bash disable=SC2034,SC2154

debian_suite=bookworm
PATH=$PATH:/usr/sbin:/sbin

# The mirrors that apt uses on this machine, as one-line sources; empty means mmdebstrap's own default.
debian_sources() {
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' "Codename: $debian_suite" 'Component: main' 2>/dev/null | sort -u
    local other
    for other in "$debian_suite-updates" "$debian_suite-security"; do
        apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
            'Created-By: Packages' 'Origin: Debian' "Codename: $other" 'Component: main' 2>/dev/null | sort -u
    done
}

# debian_root DIR PACKAGE,PACKAGE,...: a minimal Debian with these packages and without their recommendations.
debian_root() {
    local dir=$1 packages=$2 sources
    need_root "building a Debian root file system"
    need_packages mmdebstrap=mmdebstrap
    sources=$(debian_sources)
    say "bootstrapping Debian $debian_suite (about 40 s)"
    local log=$dir.log
    if ! mmdebstrap --variant=minbase --include="$packages" --skip=check/qemu \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "$debian_suite" "$dir" ${sources:+-} <<<"$sources" >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        die "mmdebstrap could not build $dir from: ${sources:-its default mirror}"
    fi
    rm -f "$log"
}

# debian_kernel DIR PACKAGE: unpacks the kernel that the meta package PACKAGE stands for into DIR (boot/, lib/modules/).
debian_kernel() {
    local dir=$1 meta=$2 package deb
    package=$(kernel_package "$meta")
    if [[ -z $package ]]; then
        need_root "fetching apt's package lists"
        apt-get update >/dev/null || die "apt-get update failed; without it the kernel package $meta cannot be found"
        package=$(kernel_package "$meta")
    fi
    [[ $package ]] || die "apt knows no kernel behind $meta; is this Debian 12 with its main archive enabled?"
    deb=$(mktemp -d)
    # apt drops to _apt for downloads.
    chmod 755 "$deb"
    (cd "$deb" && apt-get download -q -o APT::Sandbox::User=root "$package" >download.log 2>&1) || {
        tail -n 5 "$deb/download.log" >&2
        die "apt-get download $package failed; if the version is gone from the mirror, run apt-get update"
    }
    mkdir -p "$dir"
    dpkg-deb -x "$deb"/*.deb "$dir"
    rm -rf "$deb"
}

kernel_package() {
    apt-cache depends "$1" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ {print $2; exit}'
}

# ext4_image IMAGE SIZE DIR [MKE2FS_OPTION...]: a sparse image of SIZE (K, M, G) with the contents of DIR.
ext4_image() {
    local image=$1 size=$2 dir=$3 log
    shift 3
    truncate -s "$size" "$image"
    if ! log=$(mke2fs -q -F -t ext4 -b 4096 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d "$dir" "$@" "$image" 2>&1); then
        die "mke2fs could not fill $image ($size) from $dir: $log"
    fi
}
