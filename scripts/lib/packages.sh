# Debian packages that the scripts themselves use. Source it after common.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# need_packages COMMAND=PACKAGE...: installs the packages whose command is missing, or says exactly what to install.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "missing programs and no apt-get here: install the equivalents of these Debian packages: ${missing[*]}"
    [[ $(id -u) -eq 0 ]] || die "missing Debian packages; install them with: sudo apt-get install --no-install-recommends ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]} (its last lines are above)"
    fi
    rm -f "$log"
}
