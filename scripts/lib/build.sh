# Builds what runs in the lab. Source it after common.sh.
#
# The demo and the tests run one build, of the profile release; a bench sets `profile=dist`, what people install.
profile=release

# What all calls name: a call with fewer packages would have other features of the crates that they share, and build those once more.
lab_packages=(-p mashines-daemon -p mashines-vmm -p mashines-cli -p mashines-netd -p mashines-tests)

# test_executables CARGO-ARGUMENT...: what it builds of tests, a line each: `CRATE NAME PATH KIND`, with the crate's directory and PATH relative to
# the checkout. KIND is test for a program of its own, unit for what is inside a crate.
test_executables() {
    cargo "$@" --quiet --message-format=json | python3 -c '
import json, os, sys
root = os.getcwd() + "/"
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        target, path = message["target"], message["executable"].removeprefix(root)
        crate = os.path.dirname(message["manifest_path"].removeprefix(root))
        print(crate, target["name"], path, "test" if "test" in target["kind"] else "unit")
'
}

# Builds the programs that a fleet consists of, and the tests that run in the lab, which it lists as test_executables does. In one call: what tests alone
# depend on adds features to shared crates, and two calls would build those twice.
lab_test_executables() {
    need_toolchain
    test_executables build --profile "$profile" "${lab_packages[@]}" --bins --test=machine --test=moves --test=faults --test=life --test=people --test=web \
        --test=single --test=refusals --test=convergence --test=containers --test=resolver | grep -E '^(vmm|netd|tests) '
}

# Builds the programs alone.
build_programs() {
    need_toolchain
    cargo build --profile "$profile" --quiet "${lab_packages[@]}" --bins
}

need_toolchain() {
    command -v cargo >/dev/null || die "cargo is missing: install the Rust toolchain that Cargo.toml names in rust-version (rustup does), then run this again"
    need_packages cc=gcc
}

# Puts the programs, without debug information, where the lab starts them fast; prints that directory as the lab sees it.
programs_into_lab() {
    local program bin=.lab/bin/$profile
    mkdir -p "$bin"
    for program in mashinesd mashines mashines-vmm mashines-demo mashines-bench mashines-echo mashines-web; do
        [[ "$bin/$program" -nt target/$profile/$program ]] || strip -o "$bin/$program" "target/$profile/$program"
    done
    scripts/lab run sh -c 'mkdir -p /opt/mashines && cp -u --remove-destination "$0"/* /opt/mashines/' "$bin"
    echo /opt/mashines
}
