# Debian packages that the scripts themselves use. Source it after common.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# need_packages COMMAND=PACKAGE...: installs the packages whose command (or file) is missing, or says exactly what to install.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        [[ -e ${pair%%=*} ]] || PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "missing programs and no apt-get here: install the equivalents of these Debian packages: ${missing[*]}"
    [[ $(id -u) -eq 0 ]] || die "missing Debian packages; install them with: sudo apt-get install --no-install-recommends ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    install_packages "${missing[@]}" || exit 1
}

# Servers among them are for tests, which start their own: none is to come up on this machine's ports (Debian's policy-rc.d interface).
install_packages() (
    # One at a time: scripts that run beside each other may miss something at the same moment.
    exec 8>/run/lock/mashines-packages && flock 8
    policy=/usr/sbin/policy-rc.d log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$log" "$policy"' EXIT
    fi
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        die "apt-get could not install: $* (its last lines are above)"
    fi
)
