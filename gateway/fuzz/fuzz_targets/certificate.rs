//! A user certificate: any bytes, and any options in one that is well formed otherwise. Nobody gets in whom no principal names.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use mashines_fleet::record::{Role, TrustedCa};
use mashines_gateway::certificate::{is_from, judge};
use russh::keys::Certificate;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;

fuzz_target!(|bytes: &[u8]| {
    let from = [192, 0, 2, 7].into();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let ca = TrustedCa { public_key: String::new(), principals: Vec::new(), role: Role::Operator };
    let Ok(ann) = "ann".parse() else { return };
    let trust = [(ann, ca)];
    if let Ok(certificate) = Certificate::from_bytes(bytes) {
        let _judged = judge(&certificate, &trust, from, now);
    }
    let text = String::from_utf8_lossy(bytes);
    let _included = is_from(&text, from);
    if let Some(certificate) = with(&text) {
        let named = certificate.valid_principals().iter().any(|principal| principal == "ann");
        if let Ok(holder) = judge(&certificate, &trust, from, now) {
            assert_eq!(!holder.whole.is_nobody(), named);
        }
    }
});

/// A certificate with what the lines say: `=name` a principal, `!name value` a critical option, `name value` an extension.
fn with(text: &str) -> Option<Certificate> {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
    let mut builder =
        Builder::new(vec![7; 16], key.public_key().key_data().clone(), 1_700_000_000, 1_900_000_000).ok()?;
    builder.cert_type(CertType::User).ok()?;
    let mut principals = 0;
    for line in text.lines().take(16) {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(principal) = name.strip_prefix('=') {
            builder.valid_principal(principal).ok()?;
            principals += 1;
        } else if let Some(option) = name.strip_prefix('!') {
            builder.critical_option(option, value).ok()?;
        } else {
            builder.extension(name, value).ok()?;
        }
    }
    if principals == 0 {
        builder.all_principals_valid().ok()?;
    }
    builder.sign(&key).ok()
}
