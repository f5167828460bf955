# Builds what runs in the lab. Source it after common.sh.
#
# One profile, release, for the demo, the tests and the benches: one build, and the code that people run.

# What all calls name: a call with fewer packages would have other features of the crates that they share, and build those once more.
lab_packages=(-p mashines-daemon -p mashines-vmm -p mashines-cli -p mashines-netd -p mashines-tests)

# Prints the executables of lab tests, one a line: `CRATE NAME PATH`, with PATH relative to the checkout.
lab_test_executables() {
    cargo test --release --quiet --no-run --message-format=json "${lab_packages[@]}" --test=machine --test=moves --test=faults \
        --test=life --test=people --test=web --test=single --test=refusals --test=convergence --test=containers |
        python3 -c '
import json, os, sys
root = os.getcwd() + "/"
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    if message.get("executable") and message["profile"]["test"] and "test" in target["kind"]:
        crate = target["src_path"].removeprefix(root).split("/")[0]
        if crate in ("vmm", "netd", "tests"):
            print(crate, target["name"], message["executable"].removeprefix(root))
'
}

# Builds the programs that a fleet consists of.
build_programs() {
    need_toolchain
    cargo build --release --quiet "${lab_packages[@]}" --bins
}

need_toolchain() {
    command -v cargo >/dev/null || die "cargo is missing: install the Rust toolchain that Cargo.toml names in rust-version (rustup does), then run this again"
    need_packages cc=gcc
}

# Puts the programs, without debug information, where the lab starts them fast; prints that directory as the lab sees it.
programs_into_lab() {
    local program bin=.lab/bin
    mkdir -p "$bin"
    for program in mashinesd mashines mashines-vmm mashines-demo mashines-bench mashines-echo mashines-web; do
        [[ "$bin/$program" -nt target/release/$program ]] || strip -o "$bin/$program" "target/release/$program"
    done
    scripts/lab run sh -c 'mkdir -p /opt/mashines && cp -u --remove-destination .lab/bin/* /opt/mashines/'
    echo /opt/mashines
}
