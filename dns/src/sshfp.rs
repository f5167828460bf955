//! SSHFP records (RFC 4255) from an OpenSSH public key line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// SHA-256 only: RFC 8709 and OpenSSH deprecate SHA-1 fingerprints.
const SHA256: u8 = 2;

/// The data of the record for `line` (`ssh-ed25519 AAAA…`); `None` where the key's kind has no number or the line is no key.
pub fn sshfp(line: &str) -> Option<[u8; 34]> {
    let mut words = line.split_ascii_whitespace();
    // IANA's registry of SSHFP parameters.
    let algorithm = match words.next()? {
        "ssh-rsa" => 1,
        "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => 3,
        "ssh-ed25519" => 4,
        _ => return None,
    };
    let blob = STANDARD.decode(words.next()?).ok()?;
    let mut data = [0; 34];
    let (head, fingerprint) = data.split_at_mut(2);
    head.copy_from_slice(&[algorithm, SHA256]);
    fingerprint.copy_from_slice(&Sha256::digest(blob));
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_what_ssh_keygen_prints() {
        // `ssh-keygen -r host -f key.pub` printed these for this key.
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR comment";
        let hex: String = sshfp(key).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0402045940bb46b82110de3c16404e9bf36de5ab8f38ddf61dbfb4aa9dfff1167754");
    }

    #[test]
    fn what_is_no_host_key_has_no_record() {
        for bad in ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-unknown AAAA"] {
            assert!(sshfp(bad).is_none(), "{bad:?}");
        }
    }
}
