//! Sets of records of one name and type, encoded: what answers, signatures and transfers are made of.
//!
//! Invariant: the data of a set are in canonical form and order (RFC 4034 §6.2, §6.3), each once. So a set is signed as it is.

use std::net::IpAddr;

use crate::kind;

/// A set that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedSet {
    /// The type.
    pub kind: u16,
    /// How long resolvers may keep it, seconds.
    pub ttl: u32,
    data: Box<[Box<[u8]>]>,
}

impl OwnedSet {
    /// A set of `data` in any order.
    pub fn new(kind: u16, ttl: u32, mut data: Vec<Box<[u8]>>) -> Self {
        data.sort_unstable();
        data.dedup();
        Self { kind, ttl, data: data.into() }
    }

    /// The same set, borrowed.
    pub fn borrowed(&self) -> RrSet<'_> {
        RrSet { kind: self.kind, ttl: self.ttl, data: Data::Kept(&self.data) }
    }

    /// The data.
    pub fn data(&self) -> &[Box<[u8]>] {
        &self.data
    }

    /// With these data too, and the lesser time to live: all records of a set have the same (RFC 2181 §5.2).
    pub fn merged(self, ttl: u32, more: Vec<Box<[u8]>>) -> Self {
        let mut data = self.data.into_vec();
        data.extend(more);
        Self::new(self.kind, self.ttl.min(ttl), data)
    }
}

/// A set as a question finds it.
#[derive(Debug, Clone)]
pub struct RrSet<'a> {
    /// The type.
    pub kind: u16,
    /// How long resolvers may keep it, seconds.
    pub ttl: u32,
    /// The data.
    pub data: Data<'a>,
}

/// The data of a set. Those of machines are not kept one by one, which is what a million of them would cost.
#[derive(Debug, Clone)]
pub enum Data<'a> {
    /// Exactly one.
    One(&'a [u8]),
    /// As kept.
    Kept(&'a [Box<[u8]>]),
    /// Addresses of an entry.
    Ipv4(&'a [[u8; 4]]),
    /// Made for this question.
    Made(Box<[u8]>),
}

impl Data<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::One(_) | Self::Made(_) => 1,
            Self::Kept(data) => data.len(),
            Self::Ipv4(data) => data.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| match self {
            Self::One(data) => Some(*data),
            Self::Made(data) => Some(data.as_ref()),
            Self::Kept(data) => data.get(index).map(AsRef::as_ref),
            Self::Ipv4(data) => data.get(index).map(<[u8; 4]>::as_slice),
        })
    }
}

/// The type and the data of an address record.
pub fn address(ip: IpAddr) -> (u16, Box<[u8]>) {
    match ip {
        IpAddr::V4(ip) => (kind::A, ip.octets().into()),
        IpAddr::V6(ip) => (kind::AAAA, ip.octets().into()),
    }
}
