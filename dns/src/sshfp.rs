//! SSHFP records (RFC 4255) from an OpenSSH public key line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::rr::rdata::SSHFP;
use hickory_proto::rr::rdata::sshfp::{Algorithm, FingerprintType};
use sha2::{Digest as _, Sha256};

/// The record for `line` (`ssh-ed25519 AAAA…`); `None` where the key's kind has no number or the line is no key.
/// SHA-256 only: RFC 8709 and OpenSSH deprecate SHA-1 fingerprints.
pub fn sshfp(line: &str) -> Option<SSHFP> {
    let mut words = line.split_ascii_whitespace();
    let algorithm = match words.next()? {
        "ssh-ed25519" => Algorithm::Ed25519,
        "ssh-rsa" => Algorithm::RSA,
        "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => Algorithm::ECDSA,
        _ => return None,
    };
    let blob = STANDARD.decode(words.next()?).ok()?;
    Some(SSHFP::new(algorithm, FingerprintType::SHA256, Sha256::digest(blob).to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_what_ssh_keygen_prints() {
        // `ssh-keygen -r host -f key.pub` printed these for this key.
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR comment";
        let record = sshfp(key).unwrap();
        assert_eq!(record.algorithm, Algorithm::Ed25519);
        let hex: String = record.fingerprint.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "045940bb46b82110de3c16404e9bf36de5ab8f38ddf61dbfb4aa9dfff1167754");
    }

    #[test]
    fn what_is_no_host_key_has_no_record() {
        for bad in ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-unknown AAAA"] {
            assert!(sshfp(bad).is_none(), "{bad:?}");
        }
    }
}
