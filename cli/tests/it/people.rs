//! The commands about who may enter, and the live view, against a fake fleet: what they ask, what they say, how they end.

use crate::support::{Fleet, machine};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mashines_fleet::api;
use mashines_fleet::record::{MachineState, MigrationStep, Role};
use serde_json::{Value, json};

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("no single JSON document ({e}): {text:?}"))
}

fn can(fleet: &Fleet, call: &str, answer: Value) {
    fleet.fake.lock().canned.insert(call.to_owned(), answer);
}

fn last(fleet: &Fleet) -> (String, Value) {
    fleet.fake.lock().asked.last().unwrap().clone()
}

fn whoami(account: &str) -> Value {
    json!({"me": "alice", "account": account, "standing": "owner", "admin": false, "domain": "mashine.test",
           "acts_for": [{"account": "team", "role": "operator"}]})
}

fn key(id: &str) -> Value {
    json!({"id": id, "algorithm": "ssh-ed25519", "fingerprint": format!("SHA256:{id}"), "public_key": "ssh-ed25519 AAAA"})
}

#[tokio::test]
async fn whoami_tells_account_standing_and_for_whom_one_acts() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/whoami", whoami("alice"));
    let (code, out, err) = fleet.lobby("whoami").await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "account   alice at mashine.test\nyou are   alice, its owner\nacts for  team as operator\n"
    );
    assert_eq!(document(&fleet.lobby("whoami --json").await.1)["standing"], "owner");
}

#[tokio::test]
async fn the_account_option_goes_with_every_call_of_any_command() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/whoami", whoami("team"));
    for line in ["--account team whoami", "whoami --account team", "whoami --account=team"] {
        assert_eq!(fleet.lobby(line).await.0, 0, "{line}");
        assert_eq!(last(&fleet).0, "GET /v1/whoami for team", "{line}");
    }
    assert_eq!(fleet.lobby("whoami").await.0, 0);
    assert_eq!(last(&fleet).0, "GET /v1/whoami", "and with no call after it");
    let (code, _, err) = fleet.lobby("ls --account 'No Such'").await;
    assert_eq!(code, 2);
    assert!(err.contains("account id"), "{err}");
}

/// A gateway of before: it would ask for the person's own account.
struct Deaf;

impl mashines_cli::Transport for Deaf {
    fn call<'a>(&'a self, _: mashines_cli::Request<'a>) -> mashines_cli::client::Answer<'a> {
        panic!("a call that is meant for another account reached the person's own")
    }
}

#[tokio::test]
async fn a_transport_that_drops_the_account_is_never_called_for_another() {
    let client = mashines_cli::Client::new(Deaf);
    let (out, err) = (crate::support::Pen::default(), crate::support::Pen::default());
    let mut session =
        mashines_cli::Session::lobby(client, "mashine.test", Box::new(out.clone()), Box::new(err.clone()));
    let code = mashines_cli::run(["rm", "web", "--yes", "--account", "team"], &mut session).await;
    assert_eq!(code, 2);
    assert!(err.text().contains("does not act for other accounts"), "{}", err.text());
}

#[tokio::test]
async fn members_are_listed_added_and_removed() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/account/members", json!([]));
    assert!(fleet.lobby("members").await.1.starts_with("no members; add one with"));
    can(&fleet, "GET /v1/account/members", json!([{"account": "bob", "role": "operator"}]));
    assert_eq!(fleet.lobby("members ls").await.1, "ACCOUNT  ROLE\nbob      operator\n");
    can(&fleet, "POST /v1/account/members", json!([{"account": "bob", "role": "admin"}]));
    assert_eq!(fleet.lobby("members add bob --role admin").await.1, "bob is admin now\n");
    assert_eq!(last(&fleet).1, json!({"account": "bob", "role": "admin"}));
    can(&fleet, "DELETE /v1/account/members/bob", json!([]));
    assert_eq!(fleet.lobby("members rm bob").await.1, "bob is no member any more\n");
    assert_eq!(document(&fleet.lobby("members rm bob --json").await.1), json!([]));
    let (code, _, err) = fleet.lobby("members add bob --role owner").await;
    assert_eq!(code, 2);
    assert!(err.contains("it is viewer, operator or admin"), "{err}");
    assert_eq!(fleet.lobby("members add bob").await.0, 2, "a role is chosen, not guessed");
    can(
        &fleet,
        "POST /v1/account/members",
        json!("alice is viewer here and may not make members viewer: admins may"),
    );
    let (code, _, err) = fleet.lobby("members add bob --role viewer").await;
    assert_eq!(code, 4);
    assert!(err.contains("cannot make bob a member: alice is viewer here"), "{err}");
}

#[tokio::test]
async fn a_machine_is_shared_by_name_or_by_invite_and_marked_where_it_is_anothers() {
    let fleet = Fleet::start().await;
    let mut web = machine("web", MachineState::Started);
    fleet.fake.lock().machines = vec![web.clone()];
    let shares = format!("/v1/apps/default/machines/{}/shares", web.id);
    let share = json!([{"account": "bob", "role": "viewer", "expires_at": "2026-11-29T00:00:00Z"}]);
    can(&fleet, &format!("GET {shares}"), json!([]));
    assert!(fleet.lobby("share web").await.1.starts_with("web is shared with nobody; share it with"));
    can(&fleet, &format!("POST {shares}"), share.clone());
    let (code, out, err) = fleet.lobby("share web bob --role viewer --for 7d").await;
    assert_eq!(
        (code, out.as_str()),
        (0, "web is shared with bob as viewer until 2026-11-29T00:00:00Z\n"),
        "{err}"
    );
    assert_eq!(last(&fleet).1, json!({"account": "bob", "role": "viewer", "ttl": 604_800}));
    fleet.lobby("share web bob").await;
    assert_eq!(last(&fleet).1, json!({"account": "bob", "role": "operator"}));
    can(&fleet, &format!("GET {shares}"), share);
    assert_eq!(
        fleet.lobby("share web").await.1,
        "ACCOUNT  ROLE    UNTIL\nbob      viewer  2026-11-29T00:00:00Z\n"
    );
    can(&fleet, &format!("DELETE {shares}/bob"), json!([]));
    assert_eq!(fleet.lobby("unshare web bob").await.1, "web is not shared with bob any more\n");

    let made = json!({"code": "msi_1", "id": "ab", "expires_at": "T", "uses": 1, "by": "alice", "gives":
        {"to": "machine", "machine": web.id, "slug": "web", "owner": "alice", "role": "operator"}});
    can(&fleet, "POST /v1/account/invites", made);
    let (_, out, err) = fleet.lobby("share web --invite --for 12h").await;
    assert!(
        out.starts_with(
            "msi_1\n\ngives the role of operator at machine web of account alice; good once, until T\n"
        ),
        "{out}{err}"
    );
    let asked =
        json!({"to": "machine", "machine": web.id, "role": "operator", "ttl": 43_200, "valid": 43_200});
    assert_eq!(last(&fleet).1, asked);
    assert_eq!(fleet.lobby("share web bob --invite").await.0, 2);

    web.account = "carl".parse().unwrap();
    web.shared = Some(api::Shared { role: Role::Operator, expires_at: None });
    fleet.fake.lock().machines = vec![web];
    let (_, out, _) = fleet.lobby("ls").await;
    assert!(out.lines().next().unwrap().ends_with("AGE  SHARED BY") || out.contains("SHARED BY"), "{out}");
    assert!(out.contains("carl, as operator"), "{out}");
    let (_, out, _) = fleet.lobby("show web").await;
    assert!(out.contains("carl, who shares it with you as operator: enter it through the gateway"), "{out}");
    let (_, out, _) = fleet.lobby("ssh-config").await;
    assert!(out.contains("Host web web.mashine.test\n  HostName mashine.test\n  User web\n"), "{out}");
    assert!(!out.contains("User root"), "{out}");
}

#[tokio::test]
async fn invites_are_made_listed_withdrawn_and_used() {
    let fleet = Fleet::start().await;
    let invite = json!({"id": "ab", "expires_at": "T", "uses": 20, "by": "alice",
                        "gives": {"to": "account", "account": "alice", "role": "viewer"}});
    let mut made = invite.clone();
    made["code"] = json!("msi_2");
    can(&fleet, "POST /v1/account/invites", made);
    let (code, out, err) = fleet.lobby("invite --role viewer --uses 20 --for 1d").await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("the role of viewer in account alice; good 20 times")
            && out.contains("mashines join msi_2"),
        "{out}"
    );
    assert_eq!(last(&fleet).1, json!({"to": "account", "role": "viewer", "valid": 86_400, "uses": 20}));
    fleet.lobby("invite --fleet").await;
    assert_eq!(last(&fleet).1, json!({"to": "fleet"}));
    assert_eq!(fleet.lobby("invite").await.0, 2, "for what?");
    assert_eq!(fleet.lobby("invite --fleet --role viewer").await.0, 2);

    can(&fleet, "GET /v1/account/invites", json!([invite]));
    let (_, out, _) = fleet.lobby("invites").await;
    let line = out.lines().nth(1).unwrap();
    assert_eq!(line, "ab  the role of viewer in account alice  20    T      alice");
    can(&fleet, "DELETE /v1/account/invites/ab", json!({"ok": true}));
    assert_eq!(fleet.lobby("invites rm ab").await.1, "invite ab is withdrawn\n");

    let given =
        json!({"account": "alice", "given": {"to": "account", "account": "team", "role": "operator"}});
    can(&fleet, "POST /v1/invites/accept", given);
    let (code, out, _) = fleet.lobby("join msi_3").await;
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "account alice has now the role of operator in account team\n  next: mashines ls --account team\n"
    );
    assert_eq!(last(&fleet).1, json!({"invite": "msi_3"}));
}

#[tokio::test]
async fn keys_are_added_by_their_text_and_the_last_is_not_removed_silently() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/account/keys", json!([key("aa"), key("bb")]));
    assert_eq!(
        fleet.lobby("keys").await.1,
        "ID  ALGORITHM    FINGERPRINT\naa  ssh-ed25519  SHA256:aa\nbb  ssh-ed25519  SHA256:bb\n"
    );
    let account =
        json!({"id": "alice", "ssh_keys": ["a", "b", "c"], "admin": false, "domain": "d", "ssh_ca": null});
    can(&fleet, "POST /v1/account/keys", account);
    assert_eq!(fleet.lobby("keys add ssh-ed25519 AAAA ann@home").await.1, "account alice has 3 keys now\n");
    assert_eq!(last(&fleet).1, json!({"public_key": "ssh-ed25519 AAAA ann@home"}));
    let (code, _, err) = fleet.lobby("keys add id.pub").await;
    assert_eq!(code, 2);
    assert!(
        err.contains("the lobby cannot read your files") && err.contains("keys add \"$(cat FILE.pub)\""),
        "{err}"
    );
    can(&fleet, "DELETE /v1/account/keys/bb", json!([key("aa")]));
    assert_eq!(fleet.lobby("keys rm SHA256:bb").await.1, "key SHA256:bb is removed; 1 left\n");
    let (code, _, err) = fleet.lobby("keys rm ab").await;
    assert_eq!(code, 3);
    assert!(err.contains("no key `ab`; did you mean `aa`?"), "{err}");

    can(&fleet, "GET /v1/account/keys", json!([key("aa")]));
    let (code, _, err) = fleet.lobby("keys rm aa").await;
    assert_eq!(code, 2);
    assert!(err.contains("next: mashines keys rm aa --yes"), "{err}");
    can(&fleet, "DELETE /v1/account/keys/aa?last=true", json!([]));
    assert_eq!(fleet.lobby("keys rm aa --yes").await.1, "key SHA256:aa is removed; 0 left\n");
}

#[tokio::test]
async fn certificate_authorities_are_trusted_with_principals_and_a_role() {
    let fleet = Fleet::start().await;
    let mut ca = key("cc");
    (ca["principals"], ca["role"]) = (json!(["dev", "ops"]), json!("operator"));
    can(&fleet, "GET /v1/account/cas", json!([ca]));
    can(&fleet, "POST /v1/account/cas", json!([ca]));
    let (code, out, err) = fleet.lobby("ca add ssh-ed25519 AAAA --principals dev,ops --role operator").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("cc  operator  dev,ops"), "{out}");
    let asked = json!({"public_key": "ssh-ed25519 AAAA", "principals": ["dev", "ops"], "role": "operator"});
    assert_eq!(last(&fleet).1, asked);
    can(&fleet, "DELETE /v1/account/cas/cc", json!([]));
    assert_eq!(fleet.lobby("ca rm cc").await.1, "certificates of SHA256:cc enter no more\n");
    assert_eq!(fleet.lobby("ca rm dd").await.0, 3);
    assert_eq!(fleet.lobby("ca add ssh-ed25519 AAAA").await.0, 2);
}

#[tokio::test]
async fn tokens_are_listed_removed_by_id_and_revoked_by_nonce_or_whole() {
    let fleet = Fleet::start().await;
    let kept = json!({"id": "0a", "kind": "kept", "created_at": "2026-01-01T00:00:00Z", "this": true});
    can(&fleet, "GET /v1/account/tokens", json!([kept]));
    let (_, out, _) = fleet.lobby("tokens").await;
    assert!(out.contains("0a  kept") && out.contains("the one you use"), "{out}");
    can(&fleet, "DELETE /v1/account/tokens/0a", json!({"ok": true}));
    assert_eq!(fleet.lobby("tokens rm 0a").await.0, 0);
    assert_eq!(fleet.lobby("tokens rm 0b").await.0, 3);
    can(&fleet, "POST /v1/account/tokens/revoke", json!({"ok": true}));
    assert_eq!(fleet.lobby("tokens rm --nonce abcdefgh").await.1, "the token is revoked\n");
    assert_eq!(last(&fleet).1, json!({"nonce": "abcdefgh"}));
    fleet.lobby("tokens rm mss_a.b").await;
    assert_eq!(last(&fleet).1, json!({"token": "mss_a.b"}));
    assert_eq!(fleet.lobby("tokens rm").await.0, 2);
    let (code, _, err) = fleet.lobby("tokens new --key id").await;
    assert_eq!(code, 2);
    assert!(err.contains("on your own machine"), "{err}");
    can(&fleet, "GET /v1/fleet/sign-up", json!({"sign_up": "invite"}));
    assert!(fleet.lobby("sign-up").await.1.starts_with("invite: "));
    can(&fleet, "POST /v1/fleet/sign-up", json!({"sign_up": "open"}));
    assert!(fleet.lobby("sign-up open").await.1.starts_with("open: "));
    assert_eq!(last(&fleet).1, json!({"sign_up": "open"}));
}

/// The binary itself, on a machine of a person's own.
async fn mashines(fleet: &Fleet, words: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mashines"));
    command.args(words).env_clear().env("PATH", std::env::var("PATH").unwrap());
    command.env("MASHINES_CONFIG", fleet.config()).env("MASHINES_API", &fleet.url);
    command.env("MASHINES_TOKEN", crate::support::TOKEN).env("MASHINES_CA", fleet.ca_file());
    command.envs(environment.iter().copied()).kill_on_drop(true);
    let output =
        tokio::time::timeout(std::time::Duration::from_secs(20), command.output()).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_token_is_signed_by_the_key_for_the_fleets_domain() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/whoami", whoami("alice"));
    let key = fleet.directory.path().join("id");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", "ed25519", "-f"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    let file = key.to_str().unwrap();
    let line =
        ["tokens", "new", "--key", file, "--for", "2h", "--role", "viewer", "--machine", "web", "--json"];
    let (code, out, err) = mashines(&fleet, &line, &[]).await;
    assert_eq!(code, 0, "{err}");
    let made = document(&out);
    let token = made["token"].as_str().unwrap();
    let (json, signature) = token.strip_prefix("mss_").unwrap().split_once('.').unwrap();
    let claims: api::Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(json).unwrap()).unwrap();
    assert_eq!((claims.account.as_str(), claims.role), ("alice", Role::Viewer.into()));
    assert_eq!((claims.machines.as_slice(), &json!(claims.nonce)), (&["web".to_owned()][..], &made["nonce"]));
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert!(signature.starts_with(b"SSHSIG"));
    let namespace = b"api@mashine.test";
    assert!(signature.windows(namespace.len()).any(|part| part == namespace));
    assert!(err.contains("good as viewer for web of account alice, for 2h") && !err.contains(token), "{err}");

    // Nobody is asked when account and domain are known.
    fleet.fake.lock().asked.clear();
    let line = ["tokens", "new", "--key", file, "--account", "team", "--domain", "other.test"];
    let (code, out, err) = mashines(&fleet, &line, &[]).await;
    assert_eq!((code, out.starts_with("mss_")), (0, true), "{err}");
    assert!(fleet.fake.lock().asked.is_empty());
    let (code, _, err) = mashines(&fleet, &["tokens", "new", "--key", "/nowhere"], &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("cannot sign with /nowhere"), "{err}");
}

#[tokio::test]
async fn the_environment_names_an_account_and_files_hold_keys_on_ones_own_machine() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/whoami", whoami("team"));
    mashines(&fleet, &["whoami"], &[("MASHINES_ACCOUNT", "team")]).await;
    assert_eq!(last(&fleet).0, "GET /v1/whoami for team");
    mashines(&fleet, &["whoami", "--account", "other"], &[("MASHINES_ACCOUNT", "team")]).await;
    assert_eq!(last(&fleet).0, "GET /v1/whoami for other");
    let file = fleet.directory.path().join("id.pub");
    std::fs::write(&file, "ssh-ed25519 AAAA ann@home\n").unwrap();
    let account = json!({"id": "alice", "ssh_keys": ["a"], "admin": false, "domain": "d", "ssh_ca": null});
    can(&fleet, "POST /v1/account/keys", account);
    let (code, _, err) = mashines(&fleet, &["keys", "add", file.to_str().unwrap()], &[]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(last(&fleet).1, json!({"public_key": "ssh-ed25519 AAAA ann@home\n"}));
    std::fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n").unwrap();
    let (code, _, err) = mashines(&fleet, &["keys", "add", file.to_str().unwrap()], &[]).await;
    assert_eq!(code, 2);
    assert!(err.contains("stays with you") && !err.contains("secret"), "{err}");
}

#[tokio::test]
async fn top_shows_use_and_moves_once_or_again_and_again() {
    let fleet = Fleet::start().await;
    let mut web = machine("web", MachineState::Started);
    let id = web.id.clone();
    can(
        &fleet,
        "GET /v1/usage",
        json!([{"machine": id, "slug": "web", "cpu_percent": 12.5, "cpu_time_us": 1, "resident_bytes": 209_715_200}]),
    );
    fleet.fake.lock().machines = vec![web.clone(), machine("db", MachineState::Stopped)];
    let (code, out, err) = fleet.lobby("top --once").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("web   started  a     12.5   2   200 MiB  512 MiB"), "{out}");
    assert!(out.contains("db    stopped  a     -      2   -        512 MiB"), "{out}");
    fleet.lobby("migrate web --no-wait").await;
    let migration = fleet.fake.lock().migrations[0].clone();
    assert_eq!(migration.step, MigrationStep::Reserved);
    web.migration = Some(migration.id);
    fleet.fake.lock().machines = vec![web];
    let look = document(&fleet.lobby("top --once --json").await.1);
    assert_eq!(look["machines"][0]["migration"]["to"], "b");
    assert_eq!(look["machines"][0]["cpu_percent"], 12.5);

    // On a terminal in the lobby: drawn over, until q is typed there.
    let (out, err) = (crate::support::Pen::default(), crate::support::Pen::default());
    let mut session = mashines_cli::Session::lobby(
        fleet.client(),
        "mashine.test",
        Box::new(out.clone()),
        Box::new(err.clone()),
    );
    let (mut typed, stdin) = tokio::io::duplex(64);
    session.terminal = true;
    session.stdin = Some(Box::new(tokio::io::BufReader::new(stdin)));
    let quit = async {
        tokio::time::sleep(std::time::Duration::from_millis(1300)).await;
        tokio::io::AsyncWriteExt::write_all(&mut typed, b"q\n").await.unwrap();
    };
    let top =
        tokio::time::timeout(std::time::Duration::from_secs(15), mashines_cli::run(["top"], &mut session));
    let (code, ()) = tokio::join!(top, quit);
    assert_eq!(code.unwrap(), 0, "{}", err.text());
    assert!(out.text().contains("\x1b[2A\r\x1b[J"), "the second block goes over the first: {:?}", out.text());
}

/// A terminal: the side that a person sits at, and the one that a program has.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let program = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (person.into(), program)
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ends_at_q_and_at_ctrl_c_and_leaves_the_terminal_as_it_was() {
    use std::io::{Read, Write};
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/usage", json!([]));
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    for interrupt in [false, true] {
        let (mut person, program) = terminal();
        let modes = || rustix::termios::tcgetattr(&program).unwrap().local_modes;
        let before = modes();
        let end = || std::process::Stdio::from(program.try_clone().unwrap());
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mashines"));
        command.arg("top").env_clear().env("MASHINES_CONFIG", fleet.config()).env("MASHINES_API", &fleet.url);
        command.env("MASHINES_TOKEN", crate::support::TOKEN).env("MASHINES_CA", fleet.ca_file());
        let mut top = command.stdin(end()).stdout(end()).stderr(end()).kill_on_drop(true).spawn().unwrap();
        let mut screen = person.try_clone().unwrap();
        let drawn = tokio::task::spawn_blocking(move || {
            let mut seen = String::new();
            let mut buffer = [0; 4096];
            while !seen.contains("\x1b[2A") {
                let length = screen.read(&mut buffer).unwrap();
                seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            seen
        });
        let drawn = tokio::time::timeout(std::time::Duration::from_secs(15), drawn).await.unwrap().unwrap();
        assert!(drawn.contains("web"), "{drawn:?}");
        assert_ne!(modes(), before, "keys come one by one");
        match interrupt {
            // What a terminal does at Ctrl-C for the program that it controls.
            true => {
                let id = rustix::process::Pid::from_raw(i32::try_from(top.id().unwrap()).unwrap()).unwrap();
                rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
            }
            false => person.write_all(b"xq").unwrap(),
        }
        let ended =
            tokio::time::timeout(std::time::Duration::from_secs(10), top.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0));
        assert_eq!(modes(), before);
    }
}
