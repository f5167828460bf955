//! The fleet's own name server and edge: the real ones, on ports that the kernel gives.

use std::net::SocketAddr;
use std::sync::Arc;

use mashines_fleet::daemon::Common;
use mashines_fleet::pki::Identity;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use mashines_gateway::Doors;
use serde_json::json;
use tokio::sync::watch;

pub struct Edge {
    pub http: u16,
    pub tls: u16,
    pub dns: SocketAddr,
    stop_dns: watch::Sender<bool>,
    _alive: watch::Sender<bool>,
}

impl Edge {
    pub async fn start(
        identity: Identity,
        views: watch::Receiver<Arc<View>>,
        secret: EntrySecret,
        state_dir: &std::path::Path,
    ) -> Self {
        let (alive, shutdown) = watch::channel(false);
        let secrets = watch::channel(Some(secret)).1;
        let (stop_dns, mut stopped) = watch::channel(false);
        let config = mashines_dns::Config {
            listen: vec![SocketAddr::from((super::LOCAL, 0))],
            threads: 1,
            responses_per_second: 0,
            ..Default::default()
        };
        let server = mashines_dns::Server::bind(&config).await.unwrap();
        let dns = server.addresses().unwrap()[0];
        let (seen, opens) = (views.clone(), secrets.clone());
        tokio::spawn(async move {
            let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
            // It ends with the test, in the middle of whatever it does.
            let _ended = server.serve(seen, opens, stop).await;
        });
        let config: mashines_gateway::Config = serde_json::from_value(json!({
            "ssh_listen": [], "tls_listen": ["127.0.0.1:0"], "http_listen": ["127.0.0.1:0"],
        }))
        .unwrap();
        let common =
            Common { state_dir: state_dir.join("doors"), identity, view: views, secret: secrets, shutdown };
        let doors = Doors::open(&config, &common).await.unwrap();
        let tls = doors.ssh_addresses().unwrap()[0].port();
        let http = doors.web_addresses().unwrap()[0].port();
        tokio::spawn(async move { doors.serve(common).await.map(drop) });
        Self { http, tls, dns, stop_dns, _alive: alive }
    }

    /// The name server is gone, as after kill -9.
    pub fn kill_dns(&self) {
        self.stop_dns.send_replace(true);
    }
}
