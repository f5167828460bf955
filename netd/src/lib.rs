//! One host's network: taps, addresses, routes, hand-over.
