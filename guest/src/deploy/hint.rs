//! What a person may do about a phase that failed: read off its last lines. Pure.

/// A hint for what went wrong, from the last lines and the exit code (as a shell gives it).
pub fn of(lines: &[String], code: Option<i32>) -> Option<&'static str> {
    let text = lines.join("\n").to_ascii_lowercase();
    let said = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if said(&["no space left on device"]) {
        Some("the machine's disk is full: look with `df -h`; `podman system prune -a` frees unused images")
    } else if said(&["address already in use", "eaddrinuse"]) {
        Some("something has that port already: let the program listen on $PORT, which each release gets anew")
    } else if said(&[
        "temporary failure in name resolution",
        "could not resolve host",
        "network is unreachable",
    ]) {
        Some("the machine could not reach that name: try it there, with `mashines enter MACHINE`")
    } else if said(&["out of memory", "cannot allocate memory", "oomkill"]) || code == Some(137) {
        Some("most likely the memory ran out: give the machine more, or build elsewhere and push the result")
    } else if said(&["short-name", "unqualified-search registries"]) {
        Some("name the image in full: docker.io/library/NAME")
    } else if code == Some(127) || said(&["command not found", ": not found"]) {
        Some(
            "a program is missing in the machine: install it there (`mashines enter MACHINE`, apt-get install), or push a Dockerfile",
        )
    } else if code == Some(126) || said(&["permission denied"]) {
        Some("is the file executable? `git update-index --chmod=+x FILE`, commit, push")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_failures_have_a_hint_and_others_none() {
        for (line, code, word) in [
            ("sh: 1: npm: not found", 127, "missing"),
            ("write /x: No space left on device", 1, "disk is full"),
            ("Error: listen EADDRINUSE: address already in use :::3000", 1, "$PORT"),
            ("sh: 1: ./run: Permission denied", 126, "executable"),
            ("", 137, "memory"),
        ] {
            let hint = of(&[line.to_owned()], Some(code)).unwrap();
            assert!(hint.contains(word), "{line}: {hint}");
        }
        assert_eq!(of(&["a test failed".to_owned()], Some(1)), None);
    }
}
