//! Where machines ask for names.
//!
//! Every host answers its own machines at one address that is the same on all hosts. So a machine keeps its resolver when it moves, no question
//! crosses the network, and nobody else's end stops answers. netd lets a host's machines reach port 53 of it, and nobody else anything.

use std::net::Ipv6Addr;

/// The resolver's address. It is the one that machines of the Fly platform ask, so that what has it in its configuration runs here.
pub const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);

/// Whether it lies in the /48 that begins with `prefix`: no account may have that one.
pub fn is_in(prefix: Ipv6Addr) -> bool {
    RESOLVER.segments().iter().zip(prefix.segments()).take(3).all(|(own, other)| *own == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_48_has_it() {
        assert!(is_in("fdaa::".parse().unwrap()));
        for other in ["fdaa:0:1::", "fdaa:1::", "fd6d:6173:6800::", "fdab::"] {
            assert!(!is_in(other.parse().unwrap()), "{other}");
        }
    }
}
