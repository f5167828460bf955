use proptest::prelude::*;

use super::*;

fn record(name: &str, kind: &str, data: &str) -> OwnRecord {
    OwnRecord { name: name.into(), kind: kind.into(), ttl: 300, data: data.into() }
}

fn wire(kind: &str, data: &str) -> String {
    hex::encode(encode(&record("", kind, data)).unwrap().bytes)
}

fn why(kind: &str, data: &str) -> String {
    encode(&record("", kind, data)).unwrap_err().to_string()
}

#[test]
fn each_type_becomes_the_bytes_of_its_rfc() {
    assert_eq!(wire("A", "192.0.2.7"), "c0000207");
    assert_eq!(wire("AAAA", "2001:db8::7"), "20010db8000000000000000000000007");
    assert_eq!(
        wire("CNAME", "Www.example."),
        format!("03{}07{}00", hex::encode("www"), hex::encode("example"))
    );
    assert_eq!(wire("MX", "10 ."), "000a00", "RFC 7505");
    assert_eq!(wire("SRV", "1 2 5060 s.e."), "0001000213c40173016500");
    assert_eq!(
        wire("CAA", "128 ISSUE \"ca.example; a=b\""),
        format!("8005{}", hex::encode("issueca.example; a=b"))
    );
    assert_eq!(wire("SSHFP", &format!("4 2 {}", "ab".repeat(32))), format!("0402{}", "ab".repeat(32)));
    assert_eq!(
        wire("TLSA", &format!("3 1 1 {} {}", "0".repeat(32), "1".repeat(32))),
        format!("030101{}{}", "0".repeat(32), "1".repeat(32))
    );
    assert_eq!(
        wire("TXT", "one \"two \\\"and\\\" \\255\" \\065"),
        format!("03{}0b{}ff01{}", hex::encode("one"), hex::encode("two \"and\" "), hex::encode("A"))
    );
    assert_eq!(wire("TXT", "\"\""), "00");
    assert_eq!(wire("TXT", "é"), "02c3a9");
}

#[test]
fn wrong_data_is_told_with_what_is_right() {
    for (kind, data, says) in [
        ("A", "300.1.1.1", "is not an IPv4 address"),
        ("A", "192.0.2.1 192.0.2.2", "more than it takes"),
        ("A", "", "an IPv4 address is missing"),
        ("AAAA", "192.0.2.1", "is not an IPv6 address"),
        ("CNAME", "www.example.org", "end the name with a dot: \"www.example.org.\""),
        ("CNAME", "a..b.", "a label has 1 to 63 bytes"),
        ("CNAME", "bücher.example.", "xn--"),
        ("MX", "mail.example.org.", "is not a preference"),
        ("MX", "+1 mail.example.org.", "is not a preference"),
        ("SRV", "0 5 70000 a.", "is not a port"),
        ("CAA", "1 issue ca", "0, or 128"),
        ("CAA", "0 is-sue ca", "letters and digits"),
        ("SSHFP", "4 2 abcd", "has 64 hex digits, not 4"),
        ("TLSA", "3 1 1 xy", "hex digits"),
        ("TXT", "", "there is no text"),
        ("TXT", "\"open", "a quote is not closed"),
        ("TXT", "\\999", "\\255"),
        ("TXT", "a ; b", "comment"),
        ("NS", "ns.example.", "no zone of its own"),
        ("HTTPS", "1 .", "the platform makes it"),
        ("WKS", "x", "types: A, AAAA"),
    ] {
        assert!(why(kind, data).contains(says), "{kind} {data}: {}", why(kind, data));
    }
    assert!(why("TXT", &"x".repeat(256)).contains("split it"));
    assert!(why("TXT", &"x ".repeat(2000)).contains("at most 2048 characters"));
}

#[test]
fn names_are_below_the_machines_and_lower_case() {
    for (text, kept) in [
        ("@", ""),
        ("", ""),
        ("WWW", "www"),
        ("*.Preview", "*.preview"),
        ("_acme-challenge.a", "_acme-challenge.a"),
    ] {
        assert_eq!(checked_name(text).unwrap(), kept);
    }
    for bad in ["a.", ".a", "a..b", "a.*", "a b", "é", "a/b", &"x".repeat(64), &"a.".repeat(8).repeat(2)] {
        assert!(checked_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_machines_own_name_keeps_what_the_platform_says_of_it() {
    for (kind, data) in
        [("A", "192.0.2.7"), ("AAAA", "::1"), ("CNAME", "a."), ("SSHFP", &format!("4 2 {}", "ab".repeat(32)))]
    {
        assert!(checked(&record("", kind, data)).is_err(), "{kind}");
        assert!(checked(&record("www", kind, data)).is_ok(), "{kind}");
    }
    assert!(checked(&record("", "MX", "10 mail.example.")).is_ok());
    assert!(checked(&OwnRecord { ttl: 29, ..record("a", "TXT", "x") }).is_err());
    assert!(checked(&OwnRecord { ttl: 86_401, ..record("a", "TXT", "x") }).is_err());
}

#[test]
fn an_alias_stands_alone_whoever_comes_first() {
    let mut records = vec![];
    add(&mut records, &record("www", "TXT", "x")).unwrap();
    let error = add(&mut records, &record("www", "cname", "a.example.")).unwrap_err().to_string();
    assert!(error.contains("a CNAME stands alone"), "{error}");
    add(&mut records, &record("ftp", "CNAME", "a.example.")).unwrap();
    add(&mut records, &record("ftp", "CNAME", "a.example.")).unwrap();
    assert!(add(&mut records, &record("ftp", "TXT", "x")).is_err());
    assert!(add(&mut records, &record("ftp", "CNAME", "b.example.")).is_err());
    assert_eq!(records.len(), 2);
}

#[test]
fn the_same_record_twice_is_one_and_a_set_has_one_ttl() {
    let mut records = vec![];
    add(&mut records, &record("a", "TXT", "x")).unwrap();
    add(&mut records, &OwnRecord { ttl: 60, ..record("a", "TXT", "\"y\"") }).unwrap();
    add(&mut records, &OwnRecord { ttl: 90, ..record("a", "TXT", "\"x\"") }).unwrap();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|r| r.ttl == 90));
    assert_eq!(
        remove(&mut records, "A", Some("txt"), Some("\"\\120\"")).unwrap(),
        1,
        "x by another spelling"
    );
    assert_eq!(remove(&mut records, "a", None, None).unwrap(), 1);
    assert_eq!(remove(&mut records, "a", None, None).unwrap(), 0);
    assert!(remove(&mut records, "a", None, Some("x")).is_err());
}

#[test]
fn a_machine_has_so_many_records_and_no_more() {
    let mut records = vec![];
    for n in 0..MOST {
        add(&mut records, &record(&format!("n{n}"), "A", "192.0.2.1")).unwrap();
    }
    assert!(
        add(&mut records, &record("more", "A", "192.0.2.1")).unwrap_err().to_string().contains("at most 64")
    );
    let mut records = vec![];
    let long = format!("\"{}\"", "x".repeat(255)).repeat(7);
    let taken =
        (0..MOST).take_while(|n| add(&mut records, &record(&format!("n{n}"), "TXT", &long)).is_ok()).count();
    assert_eq!(taken, LONGEST_IN_ALL / long.len());
}

proptest! {
    #[test]
    fn no_text_panics(kind in "[A-Z]{1,6}", name in ".{0,40}", data in ".{0,80}") {
        let _ = checked(&record(&name, &kind, &data));
        for known in KINDS {
            let _ = checked(&record(&name, known, &data));
        }
    }

    #[test]
    fn a_quoted_string_says_what_it_was_made_of(bytes in proptest::collection::vec(any::<u8>(), 0..=255)) {
        let encoded = encode(&record("", "TXT", &rdata::quoted(&bytes))).unwrap();
        prop_assert_eq!(&encoded.bytes[1..], &bytes[..]);
    }

    #[test]
    fn whatever_is_added_keeps_the_rules(added in proptest::collection::vec(("[ab]", prop_oneof!["TXT", "CNAME", "MX"], 0u8..3), 0..30)) {
        let mut records = vec![];
        for (name, kind, n) in added {
            let data = match kind.as_str() { "MX" => format!("{n} m."), "CNAME" => format!("c{n}."), _ => n.to_string() };
            let _ = add(&mut records, &record(&name, &kind, &data));
        }
        for r in &records {
            let at: Vec<_> = records.iter().filter(|o| o.name == r.name).collect();
            prop_assert!(r.kind != "CNAME" || at.len() == 1);
            prop_assert_eq!(at.iter().filter(|o| encode(o) == encode(r)).count(), 1);
        }
    }
}
