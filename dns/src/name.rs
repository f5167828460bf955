//! Names as they are on the wire: labels with their lengths, the root last, in lower case.
//!
//! Order is DNSSEC's canonical one (RFC 4034 §6.1): by labels from the right, each as bytes. So a name comes before all
//! names below it, and these before its next sibling.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The longest name, the root's byte included (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;

/// The longest label.
pub const MAX_LABEL: usize = 63;

/// The most labels that fit a name, the root not counted.
pub const MAX_LABELS: usize = 127;

/// A name in full.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8]>);

/// Text or bytes that are no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a DNS name: {why}")]
pub struct BadName {
    text: String,
    why: &'static str,
}

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// From wire bytes without compression.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let mut rest = wire;
        while let Some((&length, tail)) = rest.split_first() {
            if length == 0 {
                let whole = tail.is_empty() && wire.len() <= MAX_NAME;
                return whole.then(|| Self(wire.to_ascii_lowercase().into()));
            }
            if usize::from(length) > MAX_LABEL {
                return None;
            }
            rest = tail.get(usize::from(length)..)?;
        }
        None
    }

    /// `labels` (wire form without the root's byte) below this name.
    ///
    /// # Errors
    /// [`BadName`] when it would be longer than a name can be.
    pub fn below(&self, labels: &[u8]) -> Result<Self, BadName> {
        let wire = [labels, &self.0].concat();
        Self::from_wire(&wire).ok_or_else(|| BadName {
            text: String::from_utf8_lossy(labels).chars().take(80).collect(),
            why: "with the zone's name it is longer than 255 bytes",
        })
    }

    /// The name one label below this one.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn child(&self, label: &[u8]) -> Result<Self, BadName> {
        let bad = |why| BadName { text: String::from_utf8_lossy(label).chars().take(80).collect(), why };
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n));
        let length = length.ok_or_else(|| bad("a label has 1 to 63 bytes"))?;
        self.below(&[&[length], label].concat())
    }

    /// The wire form.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The labels from the left, without the root.
    pub fn labels(&self) -> Labels<'_> {
        Labels(&self.0)
    }

    /// How many labels there are; the root has none.
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// The name without its first label; none for the root.
    pub fn parent(&self) -> Option<Self> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 {
            return None;
        }
        rest.get(usize::from(length)..).map(|wire| Self(wire.into()))
    }

    /// The labels in front of `apex`, wire form without the root; none when it is neither this name nor above it.
    pub fn relative_to(&self, apex: &Self) -> Option<&[u8]> {
        let depth = self.label_count().checked_sub(apex.label_count())?;
        let at: usize = self.labels().take(depth).map(|label| label.len() + 1).sum();
        let (relative, rest) = self.0.split_at_checked(at)?;
        (rest == &*apex.0).then_some(relative)
    }

    /// Whether it is `apex` or below it.
    pub fn is_within(&self, apex: &Self) -> bool {
        self.relative_to(apex).is_some()
    }
}

/// Labels of a wire name from the left.
#[derive(Debug, Clone)]
pub struct Labels<'a>(&'a [u8]);

impl<'a> Labels<'a> {
    /// Of a wire name, with or without the root's byte.
    pub fn of(wire: &'a [u8]) -> Self {
        Self(wire)
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(label)
    }
}

/// A lower-case wire name and where its labels begin, to walk it from the apex down.
#[derive(Debug, Clone)]
pub struct Path<'a> {
    wire: &'a [u8],
    /// Where each label begins; after the last the root's byte.
    starts: [u8; MAX_LABELS + 1],
    labels: usize,
}

impl<'a> Path<'a> {
    /// Of a valid lower-case wire name of at most 255 bytes; of anything else some name in it.
    pub fn new(wire: &'a [u8]) -> Self {
        let mut path = Path { wire, starts: [0; MAX_LABELS + 1], labels: 0 };
        let mut at = 0usize;
        for start in &mut path.starts {
            *start = u8::try_from(at).unwrap_or(u8::MAX);
            match wire.get(at) {
                None | Some(0) => return path,
                Some(length) => at += usize::from(*length) + 1,
            }
            path.labels += 1;
        }
        path.labels = MAX_LABELS;
        path
    }

    /// The whole name.
    pub fn wire(&self) -> &'a [u8] {
        self.wire
    }

    /// How many labels there are.
    pub fn labels(&self) -> usize {
        self.labels
    }

    fn start(&self, depth: usize) -> usize {
        let at = self.labels.saturating_sub(depth);
        self.starts.get(at).map_or(0, |start| usize::from(*start))
    }

    /// The last `depth` labels and the root.
    pub fn suffix(&self, depth: usize) -> &'a [u8] {
        self.wire.get(self.start(depth)..).unwrap_or_default()
    }

    /// The label that the suffix of `depth` labels begins with.
    pub fn label(&self, depth: usize) -> &'a [u8] {
        Labels(self.suffix(depth)).next().unwrap_or_default()
    }

    /// The labels of the suffix of `deep` labels that are not in that of `shallow`: wire form without the root.
    pub fn between(&self, deep: usize, shallow: usize) -> &'a [u8] {
        self.wire.get(self.start(deep)..self.start(shallow)).unwrap_or_default()
    }
}

/// Canonical order of two lower-case wire names, or of two relative ones below the same name.
pub fn canonical_order(one: &[u8], two: &[u8]) -> Ordering {
    let (one, one_count) = labels_of(one);
    let (two, two_count) = labels_of(two);
    let one = one.get(..one_count).unwrap_or_default().iter().rev();
    let two = two.get(..two_count).unwrap_or_default().iter().rev();
    one.cmp(two)
}

fn labels_of(wire: &[u8]) -> ([&[u8]; MAX_LABELS + 1], usize) {
    let mut labels: [&[u8]; MAX_LABELS + 1] = [&[]; MAX_LABELS + 1];
    let mut count = 0;
    for (slot, label) in labels.iter_mut().zip(Labels(wire)) {
        *slot = label;
        count += 1;
    }
    (labels, count)
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        canonical_order(&self.0, &other.0)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Name {
    type Err = BadName;

    /// With or without the last dot; `\.` and `\DDD` as in zone files (RFC 1035 §5.1).
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { text: text.chars().take(80).collect(), why };
        let mut wire = Vec::with_capacity(text.len() + 2);
        if text != "." {
            relative_wire(text, true, &mut wire).map_err(bad)?;
        }
        wire.push(0);
        Self::from_wire(&wire).ok_or_else(|| bad("it is longer than 255 bytes"))
    }
}

/// The wire form, without the root, of labels with dots between them; nothing for the empty text.
///
/// # Errors
/// [`BadName`].
pub fn relative(text: &str) -> Result<Vec<u8>, BadName> {
    let mut wire = Vec::with_capacity(text.len() + 1);
    if !text.is_empty() {
        relative_wire(text, false, &mut wire)
            .map_err(|why| BadName { text: text.chars().take(80).collect(), why })?;
    }
    if wire.len() >= MAX_NAME {
        return Err(BadName { text: text.chars().take(80).collect(), why: "it is longer than 255 bytes" });
    }
    Ok(wire.to_ascii_lowercase())
}

fn relative_wire(text: &str, may_end_with_dot: bool, wire: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut label = Vec::new();
    let mut bytes = text.bytes();
    loop {
        let byte = bytes.next();
        match byte {
            None if may_end_with_dot && label.is_empty() && !wire.is_empty() => return Ok(()),
            None | Some(b'.') => {
                let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n));
                wire.push(length.ok_or("a label has 1 to 63 bytes")?);
                wire.append(&mut label);
                if byte.is_none() {
                    return Ok(());
                }
            }
            Some(b'\\') => label
                .push(escaped(&mut bytes).ok_or("a backslash is followed by a character or three digits")?),
            Some(byte) => label.push(byte),
        }
        if wire.len() + label.len() > MAX_NAME {
            return Err("it is longer than 255 bytes");
        }
    }
}

fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let digits = [first, bytes.next()?, bytes.next()?];
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(byte))?;
                    }
                    0x21..=0x7e => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_in_the_order_of_the_rfcs_example() {
        // RFC 4034 §6.1.
        let order = [
            "example.",
            "a.example.",
            "yljkjljk.a.example.",
            "z.a.example.",
            "zabc.a.example.",
            "z.example.",
            "\\001.z.example.",
            "*.z.example.",
            "\\200.z.example.",
        ];
        let mut names: Vec<Name> = order.iter().rev().map(|text| name(text)).collect();
        names.sort();
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), order);
    }

    #[test]
    fn a_name_is_within_itself_and_what_is_above_it() {
        let web = name("x.WEB.mashine.dev");
        assert_eq!(web.relative_to(&name("mashine.dev.")), Some(b"\x01x\x03web".as_slice()));
        assert!(web.is_within(&web) && web.is_within(&Name::root()));
        assert!(!web.is_within(&name("eb.mashine.dev")) && !name("mashine.dev").is_within(&web));
        assert_eq!(web.parent().unwrap(), name("web.mashine.dev."));
        assert_eq!(Name::root().parent(), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "a..b", ".a", "a.\\", "a.\\1", "a.\\999", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for bad in [&b""[..], b"\x01", b"\x01a", b"\x40a\x00", b"\x00\x00", b"\xc0\x0c"] {
            assert!(Name::from_wire(bad).is_none(), "{bad:?}");
        }
        assert!(name("mashine.dev").child(&[b'a'; 64]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn text_and_wire_are_each_others_inverse(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8),
        ) {
            let mut wire: Vec<u8> =
                labels.iter().flat_map(|l| [&[u8::try_from(l.len()).unwrap()], l.as_slice()].concat()).collect();
            wire.push(0);
            let name = Name::from_wire(&wire).unwrap();
            prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name.clone());
            prop_assert_eq!(name.label_count(), labels.len());
        }

        #[test]
        fn a_name_comes_before_what_is_below_it_and_that_before_its_sibling(
            label in prop::collection::vec(any::<u8>(), 1..8), sibling in prop::collection::vec(any::<u8>(), 1..8),
        ) {
            let apex = name("mashine.dev");
            let (one, two) = (apex.child(&label).unwrap(), apex.child(&sibling).unwrap());
            let below = one.child(b"\xff").unwrap();
            prop_assert!(apex < one && one < below);
            prop_assert_eq!(one < two, one != two && below < two);
        }
    }
}
