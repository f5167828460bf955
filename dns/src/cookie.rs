//! DNS cookies (RFC 7873) in the form that servers share (RFC 9018): whoever has one was seen at its address.
//!
//! The secret of each week is derived from what the entries share, and a cookie says when it was made: so any server of the
//! fleet knows any other's cookies, and a secret's turn is no event.

use std::net::IpAddr;
use std::sync::RwLock;

use mashines_fleet::sealed::EntrySecret;
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;

/// A cookie of the client's.
pub const CLIENT: usize = 8;

/// What the server adds: version, reserved, time, hash.
const SERVER: usize = 16;

/// How long one secret is used, seconds.
const TERM: u64 = 7 * 86_400;

/// Older cookies say nothing (RFC 9018 §4.3).
const OLDEST: u32 = 3600;

/// Nor do those from further in the future.
const NEWEST: u32 = 300;

/// What cookies are made with.
#[derive(Debug)]
pub struct Cookies {
    secret: Option<EntrySecret>,
    /// Used while the fleet's is not known: then this server knows only its own.
    own: [u8; 16],
    /// Secrets of the last terms asked for.
    terms: RwLock<Vec<(u64, [u8; 16])>>,
}

/// What a client's cookie is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The client was seen at its address within the hour.
    Known,
    /// Nothing is known.
    Unknown,
}

impl Cookies {
    /// Of the fleet's secret, if there is one.
    pub fn new(secret: Option<EntrySecret>) -> Self {
        Self { secret, own: rand::random(), terms: RwLock::default() }
    }

    /// What the option's value is worth for a client at `address` at the time `now` (seconds since 1970).
    pub fn check(&self, value: &[u8], address: IpAddr, now: u64) -> Standing {
        let Some((client, server)) = value.split_at_checked(CLIENT) else { return Standing::Unknown };
        let [1, _, _, _, a, b, c, d, ..] = *server else { return Standing::Unknown };
        if server.len() != SERVER {
            return Standing::Unknown;
        }
        let made = u32::from_be_bytes([a, b, c, d]);
        // Serial arithmetic (RFC 1982), as the RFC wants it.
        let age = low(now).wrapping_sub(made);
        if age > OLDEST && made.wrapping_sub(low(now)) > NEWEST {
            return Standing::Unknown;
        }
        let made_at = if age <= OLDEST {
            now.saturating_sub(age.into())
        } else {
            now + u64::from(made.wrapping_sub(low(now)))
        };
        let expected = self.server_part(client, address, made_at);
        let same = server.iter().zip(&expected).fold(0, |differs, (one, two)| differs | (one ^ two)) == 0;
        if same { Standing::Known } else { Standing::Unknown }
    }

    /// What is added to the client's eight bytes.
    pub fn server_part(&self, client: &[u8], address: IpAddr, now: u64) -> [u8; SERVER] {
        let mut part = [0; SERVER];
        let (head, hash) = part.split_at_mut(8);
        let [a, b, c, d] = low(now).to_be_bytes();
        head.copy_from_slice(&[1, 0, 0, 0, a, b, c, d]);
        let mut hasher = SipHasher24::new_with_key(&self.secret_of(now / TERM));
        hasher.write(client.get(..CLIENT).unwrap_or_default());
        hasher.write(head);
        match address {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        // The byte order of SipHash's reference code, which RFC 9018's examples follow.
        hash.copy_from_slice(&hasher.finish().to_le_bytes());
        part
    }

    fn secret_of(&self, term: u64) -> [u8; 16] {
        let Some(secret) = &self.secret else { return self.own };
        let known = self.terms.read().ok();
        let known =
            known.and_then(|terms| terms.iter().find(|(known, _)| *known == term).map(|(_, secret)| *secret));
        if let Some(known) = known {
            return known;
        }
        let derived = secret.derive(&format!("dns cookies {term}")).unwrap_or_default();
        let mut short = [0; 16];
        short.copy_from_slice(derived.get(..16).unwrap_or(&[0; 16]));
        if let Ok(mut terms) = self.terms.write() {
            // This week's, and the last for an hour.
            terms.retain(|(known, _)| known.abs_diff(term) <= 1);
            terms.push((term, short));
        }
        short
    }
}

fn low(time: u64) -> u32 {
    let [.., a, b, c, d] = time.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = TERM * 3000 + 10;

    fn client_at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn the_hash_is_that_of_the_rfcs_example() {
        // RFC 9018 appendix A.1.
        let mut cookies = Cookies::new(None);
        cookies.own = *b"\xe5\xe9\x73\xe5\xa6\xb2\xa4\x3f\x48\xe7\xdc\x84\x9e\x37\xbf\xcf";
        let client = *b"\x24\x64\xc4\xab\xcf\x10\xc9\x57";
        let part = cookies.server_part(&client, client_at("198.51.100.100"), 1_559_731_985);
        assert_eq!(part, *b"\x01\x00\x00\x00\x5c\xf7\x9f\x11\x1f\x81\x30\xc3\xee\xe2\x94\x80");
    }

    #[test]
    fn a_cookie_is_known_to_every_server_of_the_fleet_for_an_hour_at_its_address() {
        let fleet = EntrySecret::random();
        let (one, two) = (Cookies::new(Some(fleet.clone())), Cookies::new(Some(fleet)));
        let (here, there) = (client_at("192.0.2.1"), client_at("2001:db8::1"));
        // Also across the turn of a week.
        for made in [NOW, NOW - 60] {
            let cookie = [&b"12345678"[..], &one.server_part(b"12345678", here, made)].concat();
            assert_eq!(two.check(&cookie, here, NOW), Standing::Known);
            assert_eq!(two.check(&cookie, there, NOW), Standing::Unknown);
            assert_eq!(two.check(&cookie, here, made + 3601), Standing::Unknown);
            assert_eq!(two.check(&cookie, here, made - 301), Standing::Unknown);
            assert_eq!(two.check(&cookie, here, made - 300), Standing::Known);
            let mut forged = cookie.clone();
            forged[0] ^= 1;
            assert_eq!(two.check(&forged, here, NOW), Standing::Unknown);
        }
        assert_eq!(two.check(b"12345678", here, NOW), Standing::Unknown);
        assert_eq!(two.check(&[1; 40], here, NOW), Standing::Unknown);
    }
}
