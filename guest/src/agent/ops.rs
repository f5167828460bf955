//! What each request does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use mashines_guest::Config;
use mashines_guest::config::Ready;
use mashines_guest::protocol::{Request, Response};

use super::{clock, exec, shutdown};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Does it, and says how it went. `asker_gone` ends what takes long.
pub fn carry_out(request: &Request, config: &Config, asker_gone: impl Fn() -> bool) -> Response {
    match request {
        Request::Ready => ready(&config.ready),
        Request::Exec(exec) => exec::run(exec, &config.env, asker_gone).map_or_else(refused, Response::Exec),
        Request::Status => clock::status().map_or_else(refused, Response::Status),
        Request::Sync => {
            nix::unistd::sync();
            Response::Done
        }
        Request::Shutdown => {
            shutdown::prepare();
            Response::Done
        }
    }
}

/// What must wait until the answer is out: the shutdown itself.
pub fn afterwards(response: &Response) {
    if *response == Response::Done {
        shutdown::begin_if_prepared();
    }
}

fn refused(error: anyhow::Error) -> Response {
    Response::Error { error: format!("{error:#}") }
}

fn ready(condition: &Ready) -> Response {
    let Some(port) = condition.tcp_port else {
        return Response::Ready { ready: true, why: "the agent answers, and no port was named".to_owned() };
    };
    let loopbacks = [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let mut why = String::new();
    for address in loopbacks.map(|ip| SocketAddr::new(ip, port)) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Response::Ready { ready: true, why: format!("{address} accepts connections") },
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Response::Ready { ready: false, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn without_a_condition_the_machine_is_ready_when_the_agent_answers() {
        assert!(matches!(ready(&Ready::default()), Response::Ready { ready: true, .. }));
    }

    #[test]
    fn a_port_counts_on_either_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(ready(&Ready { tcp_port: Some(port) }), Response::Ready { ready: true, .. }));
        drop(listener);
        let Response::Ready { ready, why } = ready(&Ready { tcp_port: Some(port) }) else { panic!() };
        assert!(!ready && why.contains(&port.to_string()), "{why}");
    }
}
