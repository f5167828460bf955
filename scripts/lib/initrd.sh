# Initial RAM disks with kernel modules. Source it after common.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# module_closure MODULES_DIR NAME...: paths below MODULES_DIR (lib/modules/VERSION), each after the modules it needs. A
# name that is built into the kernel is left out; one that does not exist at all is an error.
module_closure() {
    local dir=$1
    shift
    awk -v wanted="$*" '
        function key(path, name) {
            name = path
            sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name)
            return name
        }
        # modules.dep lists what a module needs with the deepest last.
        function emit(path, list, n, i) {
            if (path in done) return
            done[path] = 1
            n = split(deps[path], list, " ")
            for (i = n; i >= 1; i--) emit(list[i])
            print path
        }
        FILENAME ~ /modules\.builtin$/ { builtin[key($1)] = 1; next }
        { path = $1; sub(/:$/, "", path); $1 = ""; deps[path] = $0; at[key(path)] = path }
        END {
            n = split(wanted, names, " ")
            for (i = 1; i <= n; i++) {
                name = key(names[i])
                if (name in at) emit(at[name])
                else if (!(name in builtin)) { print "no kernel module named " names[i] > "/dev/stderr"; bad = 1 }
            }
            exit bad
        }' "$dir/modules.builtin" "$dir/modules.dep"
}

# add_modules ROOT MODULES_DIR NAME...: copies the modules and what they need to ROOT/modules, and lists them in loading
# order in ROOT/modules.list.
add_modules() {
    local root=$1 dir=$2 path list
    shift 2
    list=$(module_closure "$dir" "$@") || die "the kernel in $dir lacks a module that the recipe names"
    mkdir -p "$root/modules"
    while read -r path; do
        cp "$dir/$path" "$root/modules/"
        printf '%s\n' "${path##*/}"
    done <<<"$list" >"$root/modules.list"
}

# pack_initrd ROOT FILE: a compressed cpio archive, padded to 4 bytes: the kernel reads another archive behind it only there.
pack_initrd() {
    (cd "$1" && find . -print0 | sort -z | cpio --null --quiet --create --format=newc --reproducible --owner=0:0) |
        zstd -q -10 -o "$2"
    truncate -s %4 "$2"
}
