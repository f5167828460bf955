//! unbound as a validating resolver that knows nothing but where servers are and what it is told to trust.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::{Process, free_port};

/// One that runs.
pub struct Unbound {
    _process: Process,
    pub at: SocketAddr,
}

impl Unbound {
    /// Starts it in a new directory. `settings`: of `server:`, a line each; `stubs`: zones and their servers.
    pub fn start(directory: &Path, settings: &[&str], stubs: &[(&str, &[SocketAddr])]) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut text = format!(
            "server:\n interface: 127.0.0.1@{port}\n port: {port}\n username: \"\"\n chroot: \"\"\n directory: \"{here}\"\n pidfile: \"\"\n \
             use-syslog: no\n logfile: \"\"\n do-daemonize: no\n do-not-query-localhost: no\n num-threads: 1\n use-caps-for-id: yes\n \
             module-config: \"validator iterator\"\n target-fetch-policy: \"0 0 0 0 0\"\n val-log-level: 2\n aggressive-nsec: no\n",
            port = at.port(),
            here = directory.display(),
        );
        for line in settings {
            writeln!(text, " {line}").unwrap();
        }
        text.push_str("remote-control:\n control-enable: no\n");
        for (zone, servers) in stubs {
            writeln!(text, "stub-zone:\n name: \"{zone}\"\n stub-prime: no").unwrap();
            for server in *servers {
                writeln!(text, " stub-addr: 127.0.0.1@{}", server.port()).unwrap();
            }
        }
        let file = directory.join("unbound.conf");
        std::fs::write(&file, text).unwrap();
        let log = directory.join("unbound.log");
        let _process = Process::start(Command::new("unbound").arg("-d").arg("-c").arg(&file), log);
        Self { _process, at }
    }
}
