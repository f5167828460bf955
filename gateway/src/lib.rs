//! Every public door: SSH (lobby, machines, jump), shared IPv4 ports.
