//! The commands about who may enter, against the real control: both sides of each call fit. And the log, which tells no secret.

use std::io::Write;
use std::sync::{Arc, Mutex};

use crate::support::Fleet;
use http::{HeaderName, HeaderValue};
use mashines_cli::{Client, Session, words};
use mashines_fleet::api::ACCOUNT_HEADER;
use mashines_fleet::pki::Identity;
use mashines_fleet::record::HostRole;
use mashines_fleet::rpc;
use serde_json::Value;
use tokio::io::AsyncReadExt;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR";

/// What control has logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn begin() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        subscriber.with_writer(move || writer.clone()).init();
        log
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

struct Lobby<'a> {
    fleet: &'a Fleet,
    entry: Identity,
}

impl Lobby<'_> {
    /// A line in the lobby; exit code, standard output, standard error.
    async fn run(&self, me: &str, line: &str) -> (u8, String, String) {
        let client = rpc::Client::to_control(&self.entry, &self.fleet.url).unwrap();
        let client =
            client.with_header(HeaderName::from_static(ACCOUNT_HEADER), HeaderValue::from_str(me).unwrap());
        let ((out, mut stdout), (err, mut stderr)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
        let mut session = Session::lobby(Client::new(client), "mashine.test", Box::new(out), Box::new(err));
        let code = mashines_cli::run(words::split(line).unwrap(), &mut session).await;
        drop(session);
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).await.unwrap();
        stderr.read_to_string(&mut err).await.unwrap();
        (code, out, err)
    }

    /// The same, which must work.
    async fn good(&self, me: &str, line: &str) -> String {
        let (code, out, err) = self.run(me, line).await;
        assert_eq!(code, 0, "{me}: {line}: {err}");
        out
    }

    async fn json(&self, me: &str, line: &str) -> Value {
        serde_json::from_str(&self.good(me, &format!("{line} --json")).await).unwrap()
    }

    /// The same, which must be refused with these words.
    async fn refused(&self, me: &str, line: &str, says: &str) {
        let (code, out, err) = self.run(me, line).await;
        assert!(code != 0 && out.is_empty() && err.contains(says), "{me}: {line}: {code} {out} {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_and_control_understand_each_other_and_the_log_tells_no_secret() {
    let log = Log::begin();
    let mut fleet = Fleet::up(&["hosta"]).await;
    let entry = fleet.join("entry160", vec![HostRole::Entry]).await;
    let lobby = Lobby { fleet: &fleet, entry };
    assert!(lobby.good("ann", "sign-up").await.starts_with("closed"));
    lobby.good("ann", "sign-up invite").await;
    let newcomer = lobby.json("ann", "invite --fleet --for 1h").await;
    let code = newcomer["code"].as_str().unwrap().to_owned();
    let body = serde_json::json!({"public_key": KEY, "name": "bob", "invite": code});
    let internal = rpc::Client::to_control(&lobby.entry, &fleet.url).unwrap();
    internal.post::<_, Value>("/internal/v1/sign-up", &body).await.unwrap();

    lobby.good("ann", "launch --name web --memory 256M").await;
    assert!(lobby.good("ann", "share web").await.starts_with("web is shared with nobody"));
    lobby.good("ann", "share web bob --for 1h").await;
    assert!(lobby.good("ann", "share web").await.contains("bob      operator  2"));
    assert!(lobby.good("bob", "ls").await.contains("ann, as operator"));
    assert!(
        lobby
            .good("bob", "show web")
            .await
            .contains("owner    ann, who shares it with you as operator until")
    );
    assert!(lobby.good("bob", "ssh-config").await.contains("User web"));
    lobby.good("bob", "stop web").await;
    lobby.good("bob", "start web").await;
    lobby
        .refused(
            "bob",
            "rm web --yes --force",
            "bob is operator here and may not remove machine web: admins and the owner may",
        )
        .await;
    assert!(lobby.good("bob", "top --once").await.contains("web   started  hosta"));
    lobby.good("bob", "unshare web bob").await;
    lobby.refused("bob", "show web", "no machine `web`").await;
    let share = lobby.json("ann", "share web --invite --role viewer --for 1h").await;
    assert!(
        lobby
            .good("bob", &format!("join {}", share["code"].as_str().unwrap()))
            .await
            .contains("next: mashines show web")
    );
    lobby.good("ann", "unshare web bob").await;

    let invite = lobby.json("ann", "invite --role operator").await;
    assert!(lobby.good("ann", "invites").await.contains("the role of operator in account ann"));
    let joined = lobby.good("bob", &format!("join {}", invite["code"].as_str().unwrap())).await;
    assert!(joined.contains("next: mashines ls --account ann"), "{joined}");
    assert!(lobby.good("bob", "whoami --account ann").await.contains("you are   bob, its operator"));
    assert!(lobby.good("bob", "ls --account ann").await.contains("web"));
    lobby.refused("bob", "show web", "no machine `web`").await;
    lobby.refused("bob", "members add cem --role viewer --account ann", "may not make members viewer").await;
    assert_eq!(lobby.good("ann", "members").await, "ACCOUNT  ROLE\nbob      operator\n");
    lobby.good("ann", "members add bob --role viewer").await;
    lobby.good("bob", "members rm bob --account ann").await;
    lobby.refused("bob", "ls --account ann", "bob is no member of account ann").await;
    let id = lobby.json("ann", "invite --role viewer").await["id"].as_str().unwrap().to_owned();
    lobby.good("ann", &format!("invites rm {id}")).await;
    assert!(lobby.good("ann", "invites").await.starts_with("no invites"));

    assert_eq!(lobby.json("bob", "keys").await[0]["public_key"], KEY);
    let id = lobby.json("bob", "keys").await[0]["id"].as_str().unwrap().to_owned();
    lobby.refused("bob", &format!("keys rm {id}"), "there is no terminal to ask on").await;
    lobby.good("ann", &format!("keys add {KEY} ann@home")).await;
    let ca = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAyKHjkRLCcYLYTFZ8xMHUoIaaNPQqvmNhZYiUOtvP/b";
    assert!(
        lobby
            .good("ann", &format!("ca add {ca} --principals dev --role viewer"))
            .await
            .contains("viewer  dev")
    );
    let id = lobby.json("ann", "ca").await[0]["id"].as_str().unwrap().to_owned();
    lobby.good("ann", &format!("ca rm {id}")).await;
    lobby.good("ann", "tokens rm --nonce abcdefgh12").await;
    assert!(lobby.good("ann", "tokens").await.contains("revoked"));

    let text = log.text();
    for told in [
        "audit",
        "used an invite",
        "a newcomer signed up",
        "shared machine web with bob",
        "revoked a signed token",
    ] {
        assert!(text.contains(told), "{told} is not in the log");
    }
    for secret in [&newcomer["code"], &share["code"], &invite["code"]] {
        assert!(!text.contains(secret.as_str().unwrap()), "an invite's code is in the log");
    }
    assert!(!text.contains(&fleet.token) && !text.contains("abcdefgh12") && !text.contains("PRIVATE KEY"));
}
