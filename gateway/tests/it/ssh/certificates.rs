//! User certificates of an account's own CA, made by `ssh-keygen` and shown by OpenSSH's client.

use std::net::Ipv6Addr;

use crate::common::{Output, Stage, account, finish, machine};
use mashines_fleet::view::Change;
use serde_json::json;
use tokio::process::Command;

/// A stage where ann's account trusts a CA of her own, and bob's trusts another.
async fn stage() -> Stage {
    let stage = Stage::new().await;
    for name in ["team_ca", "foreign_ca", "visitor"] {
        crate::common::run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", stage.path(name).to_str().unwrap()],
        );
    }
    stage.publish_more(|_| (), vec![trusting(&stage, "operator", &[]), another_of_anns()]);
    stage
}

fn trusting(stage: &Stage, role: &str, principals: &[&str]) -> Change {
    let mut ann = account("ann", &[stage.public_key("ann")]);
    ann.value.as_mut().unwrap()["ssh_cas"] =
        json!([{"public_key": stage.public_key("team_ca"), "principals": principals, "role": role}]);
    ann
}

fn another_of_anns() -> Change {
    machine(4, "db", "ann", Ipv6Addr::LOCALHOST, "started")
}

/// Signs the visitor's key with `ca`; `terms` are `ssh-keygen`'s.
fn sign(stage: &Stage, ca: &str, terms: &[&str]) {
    let (ca, key) = (stage.path(ca), stage.path("visitor.pub"));
    let mut arguments = vec!["-q", "-s", ca.to_str().unwrap(), "-I", "visitor 7", "-z", "7"];
    arguments.extend(terms);
    arguments.push(key.to_str().unwrap());
    crate::common::run("ssh-keygen", &arguments);
}

async fn visit(stage: &Stage, user: &str, options: &[&str], command: &[&str]) -> Output {
    let certificate = format!("CertificateFile={}", stage.path("visitor-cert.pub").display());
    let mut ssh = Command::new("ssh");
    // At ssh's usual log level, what the server has to say is shown.
    ssh.args(
        stage.options("visitor").into_iter().map(|option| option.replace("LogLevel=ERROR", "LogLevel=INFO")),
    );
    ssh.args(["-o", &certificate, "-p", &stage.gateway.port().to_string()]).args(options);
    finish(
        {
            ssh.arg(format!("{user}@127.0.0.1")).args(command).kill_on_drop(true);
            ssh
        },
        b"",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_enters_what_its_principals_name() {
    let stage = stage().await;
    sign(&stage, "team_ca", &["-n", "ann", "-V", "-1m:+1h"]);
    for user in ["web", "db"] {
        let output = visit(&stage, user, &[], &["echo in"]).await;
        assert_eq!(output.text(), "in\n", "{output:?}");
    }
    let output = visit(&stage, "theirs", &[], &["echo in"]).await;
    assert!(output.err.contains("another account"), "{output:?}");

    sign(&stage, "team_ca", &["-n", "web", "-V", "-1m:+1h"]);
    assert_eq!(visit(&stage, "web", &[], &["echo in"]).await.text(), "in\n");
    let output = visit(&stage, "db", &[], &["echo in"]).await;
    assert!(output.err.contains("another account"), "{output:?}");
    let output = visit(&stage, "lobby", &[], &["ls"]).await;
    assert!(output.err.contains("for single machines (web)"), "{output:?}");

    stage.publish_more(|_| (), vec![trusting(&stage, "viewer", &["devs"]), another_of_anns()]);
    sign(&stage, "team_ca", &["-n", "devs", "-V", "-1m:+1h"]);
    let output = visit(&stage, "web", &[], &["echo in"]).await;
    assert!(output.err.contains("you are viewer there"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_none_of_ours_is_refused_with_its_reason() {
    let stage = stage().await;
    for (ca, terms, why) in [
        ("foreign_ca", &["-n", "ann", "-V", "-1m:+1h"][..], "no account trusts the CA"),
        (
            "team_ca",
            &["-n", "ann", "-V", "-1m:+1h", "-O", "source-address=198.51.100.0/24"],
            "not for your address",
        ),
        ("team_ca", &["-V", "-1m:+1h"], "names no principals"),
    ] {
        sign(&stage, ca, terms);
        let output = visit(&stage, "web", &[], &["echo in"]).await;
        assert_eq!(output.code, Some(255), "{output:?}");
        let told = [output.text(), output.err.clone()].concat();
        assert!(told.contains(why), "{why}: {output:?}");
    }
    // One that has expired is refused by the protocol's own check, before anybody asks whose it is.
    sign(&stage, "team_ca", &["-n", "ann", "-V", "-2h:-1h"]);
    assert_eq!(visit(&stage, "web", &[], &["echo in"]).await.code, Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_certificate_does_not_permit_is_refused() {
    let stage = stage().await;
    sign(&stage, "team_ca", &["-n", "ann", "-V", "-1m:+1h", "-O", "no-pty", "-O", "no-port-forwarding"]);
    let output = visit(&stage, "web", &["-tt"], &["true"]).await;
    assert!(output.err.contains("PTY allocation request failed"), "{output:?}");
    assert_eq!(visit(&stage, "web", &[], &["echo in"]).await.text(), "in\n");
    let output = visit(&stage, "lobby", &["-W", "web:22"], &[]).await;
    assert!(output.err.contains("permits no port forwarding"), "{output:?}");
    let refused =
        visit(&stage, "web", &["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1"], &["true"]).await;
    assert_eq!(refused.code, Some(255), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_command_runs_whatever_is_asked_for() {
    let stage = stage().await;
    let forced = "force-command=echo \"asked: $SSH_ORIGINAL_COMMAND\"";
    sign(&stage, "team_ca", &["-n", "ann", "-V", "-1m:+1h", "-O", forced]);
    assert_eq!(visit(&stage, "web", &[], &["rm 'a b'"]).await.text(), "asked: rm 'a b'\n");
    assert_eq!(visit(&stage, "web", &[], &[]).await.text(), "asked: \n");
    let sftp = visit(&stage, "web", &["-s"], &["sftp"]).await;
    assert_eq!(sftp.text(), "asked: sftp\n", "{sftp:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_taken_out_of_its_account_opens_no_further_door() {
    let stage = stage().await;
    sign(&stage, "team_ca", &["-n", "ann", "-V", "-1m:+1h"]);
    assert_eq!(visit(&stage, "web", &[], &["echo in"]).await.text(), "in\n");
    stage.publish(None);
    assert_eq!(visit(&stage, "web", &[], &["echo in"]).await.code, Some(255));
}
