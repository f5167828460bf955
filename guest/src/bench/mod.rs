//! The built-in userland of the benches and fault tests (`init_exec: "builtin:bench"`): what a probe needs, and no more,
//! so that a machine is up in the time its kernel takes.
//!
//! | port | what |
//! | --- | --- |
//! | UDP 7, TCP 7 | echo ([`echo`]) |
//! | TCP 9 | numbered streams, each way, verified ([`stream`]) |
//! | TCP 10 | commands, one line each ([`control`]): a memory writer, and who and how old the machine is |
//!
//! All listen on every address of both families.

mod control;
mod echo;
mod stream;
mod writer;

use std::io;
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

use crate::log;

/// Starts all services in threads of their own.
pub fn start() -> Result<()> {
    echo::start_udp(7)?;
    serve_tcp(7, echo::tcp)?;
    serve_tcp(9, stream::serve)?;
    let writer = writer::Writer::default();
    serve_tcp(10, move |connection| control::serve(connection, &writer))
}

/// Serves each connection to `port` in a thread of its own.
fn serve_tcp(port: u16, serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("listening on TCP port {port}"))?;
    spawn(format!("tcp-{port}"), move || {
        for connection in listener.incoming() {
            let connection = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    log::note(format_args!("bench: TCP port {port}: {error}"));
                    continue;
                }
            };
            let serve = serve.clone();
            let started = spawn(format!("tcp-{port}"), move || {
                // Probes leave at any moment: that is no event.
                let _ = connection.set_nodelay(true).and_then(|()| serve(connection));
            });
            if let Err(error) = started {
                log::note(format_args!("bench: TCP port {port}: {error:#}"));
            }
        }
    })
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name).spawn(work).map(drop).context("starting a thread")
}
