# Shared by every script: messages, the checkout's root, the cache. Source it; it runs nothing.
#
# A cached product lives in $(cache_dir)/KIND/KEY, where KEY is a hash of the recipe that made it: a changed recipe
# builds anew, an unchanged one costs nothing. `cached` builds beside the final name and renames, so that a product
# that exists is whole.
# shellcheck shell=bash disable=SC2034,SC2154

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# The directory for everything that can be built again.
cache_dir() {
    printf '%s\n' "${MASHINES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mashines}"
}

# recipe_key FILE...: 16 hex digits over the contents of the files, in the order given; comments do not count.
recipe_key() {
    grep -ahv '^[[:space:]]*\(#\|$\)' -- "$@" | sha256sum | cut -c1-16
}

# cached DIR BUILDER ARG...: makes DIR by `BUILDER TEMPORARY_DIR ARG...` unless it exists. Others who want the same DIR
# wait for the one that builds it. A failed build leaves nothing behind. Call it plainly: bash ignores `set -e` in all that
# runs inside a condition.
cached() {
    local product=$1 builder=$2
    shift 2
    [[ -d $product ]] && return
    mkdir -p "$(dirname "$product")"
    (
        exec 9>"$product.lock"
        flock 9
        [[ -d $product ]] && exit
        building=$product.building.$$
        trap 'rm -rf --one-file-system "$building"; [[ -d $product ]] || say "could not build $product; the reason is above"' EXIT
        mkdir "$building"
        set -e
        "$builder" "$building" "$@"
        mv -T "$building" "$product"
    )
}

# need_root WHY: packages' maintainer scripts and file owners in an image need it.
need_root() {
    [[ $(id -u) -eq 0 ]] || die "$1 needs root; run this again with sudo, or set MASHINES_CACHE to a cache that root built"
}
