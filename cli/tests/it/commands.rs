//! Each command against a fake fleet, as the lobby runs it: what it says, what it asks for, how it ends.

use crate::support::{Fleet, machine, volume};
use mashines_fleet::id::Epoch;
use mashines_fleet::record::{MachineState, MigrationStep};
use serde_json::{Value, json};

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("no single JSON document ({e}): {text:?}"))
}

#[tokio::test]
async fn launch_shows_its_steps_and_ends_with_the_three_doors() {
    let fleet = Fleet::start().await;
    let line = "launch --name web --vcpu 2 --memory 512M --volume data:1G --volume old:/srv --env A=b --wait";
    let (code, out, err) = fleet.terminal(line).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "web is started on a\n  \
           name  web.mashine.test\n  \
           IPv6  2001:db8::13e\n  \
           IPv4  entry1.mashine.test (192.0.2.1) port 2201\n  \
           mesh  fd00::13e\n\n  \
           ssh root@web.mashine.test              by IPv6, straight to the machine\n  \
           ssh -p 2201 root@entry1.mashine.test   by IPv4, through its shared port\n  \
           ssh web@mashine.test                   through the gateway\n"
    );
    let steps = ["created web", "scheduled on a", "booting", "ready"];
    let mut from = 0;
    for step in steps {
        from += err[from..].find(step).unwrap_or_else(|| panic!("{step:?} is not in order in {err:?}"));
    }
    let (_, asked) = fleet.fake.lock().asked[0].clone();
    assert_eq!(asked["volumes"], json!([{"name": "data", "size_mib": 1024, "path": "/data"}]));
    assert_eq!(asked["config"]["mounts"], json!([{"volume": "old", "path": "/srv"}]));
    assert_eq!(asked["config"]["guest"], json!({"cpus": 2, "memory_mb": 512}));
    assert_eq!(asked["config"]["env"], json!({"A": "b"}));
}

#[tokio::test]
async fn without_a_terminal_no_progress_is_written() {
    let fleet = Fleet::start().await;
    let (code, out, err) = fleet.lobby("launch --name web --json").await;
    assert_eq!((code, err.as_str()), (0, ""));
    let launched = document(&out);
    assert_eq!(launched["state"], "started");
    assert_eq!(launched["doors"]["gateway"], "ssh web@mashine.test");
    assert_eq!(launched["doors"]["port"], "ssh -p 2201 root@entry1.mashine.test");
}

#[tokio::test]
async fn a_boot_that_fails_says_why_and_where_to_look() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().boot_ends = Some((MachineState::Failed, "no kernel in the image".to_owned()));
    let (code, out, err) = fleet.lobby("launch --name web").await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "error: `web` is failed: no kernel in the image\n  next: mashines logs web\n");
}

#[tokio::test]
async fn a_wait_that_is_too_short_ends_with_its_own_code() {
    let fleet = Fleet::start().await;
    let (code, out, err) = fleet.lobby("launch --name web --timeout 0s --json").await;
    assert_eq!(code, 5, "{err}");
    assert_eq!(document(&out)["code"], "timed-out");
    assert!(err.contains("next: mashines show web"), "{err}");
    let (code, out, _) = fleet.lobby("launch --name db --no-wait --json").await;
    assert_eq!((code, document(&out)["state"].as_str()), (0, Some("created")));
}

#[tokio::test]
async fn the_apis_refusal_is_passed_on_in_its_own_words() {
    let fleet = Fleet::start().await;
    let (code, out, err) = fleet.lobby("launch --name web --image nothing --json").await;
    assert_eq!(code, 2);
    let error = document(&out);
    assert_eq!(error["error"], "cannot launch `web`: no image `nothing`; the fleet has: container-os");
    assert!(err.starts_with("error: cannot launch `web`: no image"), "{err}");
}

#[tokio::test]
async fn ls_is_a_table_or_an_array() {
    let fleet = Fleet::start().await;
    assert!(fleet.lobby("ls").await.1.starts_with("no machines; make one with"));
    assert_eq!(document(&fleet.lobby("ls --json").await.1), json!([]));
    let machines = vec![machine("web", MachineState::Started), machine("database", MachineState::Created)];
    fleet.fake.lock().machines = machines;
    let (code, out, _) = fleet.lobby("ls").await;
    assert_eq!(code, 0);
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "IMAGE", "CPU", "MEMORY", "HOST", "IPV6", "AGE"]);
    assert_eq!(lines[1][..8], ["web", "started", "container-os", "2", "512", "MiB", "a", "2001:db8::13e"]);
    assert_eq!(lines[2][..7], ["database", "created", "container-os", "2", "512", "MiB", "-"]);
    let listed = document(&fleet.lobby("--json ls --host a").await.1);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["name"], "web");
}

#[tokio::test]
async fn an_unknown_machine_gets_a_suggestion_in_every_command() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    for (line, code) in
        [("show wbe", 3), ("stop wbe", 3), ("migrate wbe", 3), ("logs wbe", 3), ("exec wbe true", 255)]
    {
        let (ended, out, err) = fleet.lobby(line).await;
        assert_eq!((ended, out.as_str()), (code, ""), "{line}: {err}");
        assert_eq!(err, "error: no machine `wbe`; did you mean `web`?\n  next: mashines ls\n", "{line}");
    }
    let (code, _, err) = fleet.lobby("show ../hosts").await;
    assert_eq!(code, 2, "{err}");
}

#[tokio::test]
async fn show_tells_state_ways_in_and_events() {
    let fleet = Fleet::start().await;
    let mut web = machine("web", MachineState::Stopped);
    web.reason = Some("the host lost power\x1b[2J".to_owned());
    fleet.fake.lock().machines = vec![web];
    let (code, out, _) = fleet.lobby("show web").await;
    assert_eq!(code, 0);
    for line in ["state    stopped", "reason   the host lost power [2J", "host     a, epoch 1"] {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
    assert!(out.contains("ssh root@web.mashine.test"));
}

#[tokio::test]
async fn stop_start_and_restart_wait_for_the_state() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.lobby("stop web --grace 5s").await;
    assert_eq!((code, out.as_str()), (0, "web is stopped; its disks, address and name stay\n"), "{err}");
    assert_eq!(fleet.fake.lock().asked[0].1, json!({"timeout": 5}));
    let (code, out, err) = fleet.lobby("start web").await;
    assert_eq!((code, out.as_str()), (0, "web is started\n"), "{err}");
    assert_eq!(fleet.lobby("start web").await.1, "web was already started\n");
    let (code, out, err) = fleet.lobby("restart web --json").await;
    assert_eq!(code, 0, "{err}");
    let restarted = document(&out);
    assert_eq!((&restarted["state"], &restarted["epoch"]), (&json!("started"), &json!(Epoch(3))));
}

#[tokio::test]
async fn rm_asks_or_is_told_and_looks_every_name_up_first() {
    let fleet = Fleet::start().await;
    let machines = vec![machine("web", MachineState::Started), machine("db", MachineState::Stopped)];
    fleet.fake.lock().machines = machines;
    let (code, _, err) = fleet.lobby("rm web").await;
    assert_eq!(code, 2);
    assert!(err.contains("next: mashines rm web --yes"), "{err}");
    assert_eq!(fleet.lobby("rm web dbb --yes").await.0, 3);
    assert_eq!(fleet.fake.lock().machines.len(), 2);
    let (code, out, err) = fleet.lobby("rm web db web --yes --json").await;
    assert_eq!(code, 0, "{err}");
    let names: Vec<Value> = document(&out).as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["web", "db"]);
    assert!(fleet.fake.lock().machines.is_empty());
}

#[tokio::test]
async fn exec_ends_with_the_remote_code_and_255_for_the_way_there() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.lobby("exec web --timeout 5s -- echo 'a  b' --json").await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "a  b --json\n", "to err\n"));
    let asked = fleet.fake.lock().asked[0].1.clone();
    assert_eq!(asked, json!({"command": ["echo", "a  b", "--json"], "timeout": 5}));
    assert_eq!(fleet.lobby("exec web false").await.0, 7);
    let (code, out, _) = fleet.lobby("exec --json web false").await;
    assert_eq!((code, &document(&out)["exit_code"]), (7, &json!(7)));
    let (code, _, err) = fleet.lobby("exec web -- refused -x").await;
    assert_eq!(code, 255);
    assert!(err.contains("cannot run `refused -x` in `web`: machine `web` is stopped"), "{err}");
}

#[tokio::test]
async fn releases_are_a_table_or_a_document() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.lobby("releases web").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("RELEASE  STATE  COMMIT ") && out.contains("v2       live   0123456"), "{out}");
    let (_, out, _) = fleet.lobby("releases web --json").await;
    assert_eq!(document(&out)["releases"][0]["state"], "live");
}

#[tokio::test]
async fn an_operation_streams_what_it_says_and_ends_with_what_serves() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.lobby("redeploy web").await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "web serves v2: say hello\n", "-----> Building\n       made\n")
    );
    assert_eq!(fleet.fake.lock().ordered["ask"], "redeploy");
    let (code, out, _) = fleet.lobby("rollback web v1 --json").await;
    assert_eq!((code, &document(&out)["version"]), (0, &json!(2)));
    assert_eq!(fleet.fake.lock().ordered["to"], 1);
    fleet.fake.lock().operation_fails = Some("Build: `make` ended with exit code 2".to_owned());
    let (code, out, err) = fleet.lobby("redeploy web --json").await;
    assert_eq!((code, &document(&out)["code"]), (1, &json!("failed")));
    assert!(
        err.contains("cannot redeploy `web`: Build: `make`") && err.contains("next: mashines releases web"),
        "{err}"
    );
}

#[tokio::test]
async fn config_lists_sets_and_unsets() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    assert_eq!(fleet.lobby("config web").await.1, "GREETING='hello you'\n");
    assert_eq!(document(&fleet.lobby("config web ls --json").await.1)["env"]["GREETING"], "hello you");
    let (code, out, err) = fleet.lobby("config web set A=b 'C=d e'").await;
    assert_eq!((code, out.as_str()), (0, "web serves v2: say hello\n"), "{err}");
    assert_eq!(fleet.fake.lock().ordered["set"], json!({"A": "b", "C": "d e"}));
    fleet.lobby("config web unset A").await;
    assert_eq!(fleet.fake.lock().ordered["unset"], json!(["A"]));
    for (line, word) in [
        ("config web set PORT=1", "app_port"),
        ("config web set A", "KEY=VALUE"),
        ("config web unset 2A", "2A"),
    ] {
        let (code, _, err) = fleet.lobby(line).await;
        assert!(code == 2 && err.contains(word), "{line}: {code} {err}");
    }
}

#[tokio::test]
async fn migrate_follows_the_move_and_reports_what_it_cost() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.terminal("migrate web --to b").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "web moved from a to b\n\n  \
           total     2.50 s\n  \
           blackout  31.4 ms\n  \
           sent      5 MiB of RAM and 3 KiB of disk in 3 rounds; 9 zero pages went as flags\n  \
           last      12 pages within the blackout\n  \
           frames    4 waited in the old host's queue and were delivered\n\n  \
           WITHIN THE BLACKOUT  TIME\n  \
           pause                400 µs\n  \
           last pages           12.0 ms\n"
    );
    assert!(err.contains("pre-copy, 1 MiB sent, round 1"), "{err:?}");
    let (_, out, _) = fleet.lobby("migrate web --json").await;
    assert_eq!(document(&out)["figures"]["blackout_us"], 31_400);
    let (_, out, _) = fleet.lobby("migrations --machine web").await;
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("31.4 ms"), "{out}");
}

#[tokio::test]
async fn a_move_that_failed_says_that_the_machine_runs_on() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    fleet.fake.lock().migration_ends = Some((MigrationStep::Failed, "did not converge".to_owned()));
    let (code, out, err) = fleet.lobby("migrate web").await;
    assert_eq!((code, out.as_str()), (1, ""));
    let expected = "error: `web` was not moved from a to b; it runs on where it was: did not converge\n";
    assert!(err.starts_with(expected), "{err}");
    let (code, out, _) = fleet.lobby("migrate web --json").await;
    assert_eq!(code, 1);
    assert_eq!(document(&out)["step"], "failed");
    assert_eq!(document(&out)["error"], "did not converge");
    let (code, _, err) = fleet.lobby("migrate web --to bb").await;
    assert_eq!((code, err.as_str()), (3, "error: no host `bb`; did you mean `b`?\n  next: mashines hosts\n"));
}

#[tokio::test]
async fn a_drain_ends_with_one_when_a_machine_stays() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (code, out, err) = fleet.terminal("drain a").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "MACHINE  OUTCOME  MESSAGE\nweb      moved    to b\n");
    fleet.fake.lock().machines.push(machine("db", MachineState::Started));
    let (code, out, _) = fleet.lobby("drain a --json").await;
    assert_eq!((code, &document(&out)["machines"][1]["outcome"]), (1, &json!("failed")));
    assert_eq!(fleet.lobby("drain nowhere").await.0, 3);
}

#[tokio::test]
async fn hosts_and_cordon() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.lobby("cordon b").await.1, "b takes no new machines\n");
    let (code, out, _) = fleet.lobby("hosts").await;
    assert_eq!(code, 0);
    assert!(out.contains("b     host   lab     up, cordoned  0         2 of 8  512 MiB of 4 GiB"), "{out}");
    assert_eq!(document(&fleet.lobby("hosts --json").await.1)[0]["id"], "a");
}

#[tokio::test]
async fn volumes_are_made_listed_and_removed() {
    let fleet = Fleet::start().await;
    let (code, out, err) = fleet.lobby("volumes create data 1.5G").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.ends_with("of 1.5 GiB is made; attach it with: --volume data:/PATH\n"), "{out}");
    let web = machine("web", MachineState::Started);
    fleet.fake.lock().volumes.push(volume("held", 1024, "default", Some(web.id.clone())));
    fleet.fake.lock().machines.push(web);
    let (_, out, _) = fleet.lobby("volumes ls").await;
    assert!(out.contains("held  default  1 GiB    attached  web"), "{out}");
    assert_eq!(fleet.lobby("volumes rm data").await.0, 2);
    assert_eq!(fleet.lobby("volumes rm dataa --yes").await.0, 3);
    let (code, _, err) = fleet.lobby("volumes rm held --yes").await;
    assert_eq!(code, 1);
    assert!(err.contains("is attached to `web`"), "{err}");
    assert_eq!(fleet.lobby("volumes rm data --yes").await.1, "volume data is removed\n");
    fleet.fake.lock().volumes.push(volume("held", 1024, "other", None));
    assert!(fleet.lobby("volumes rm held --yes").await.2.contains("give its id"));
}

#[tokio::test]
async fn logs_print_the_console_or_its_end() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    fleet.fake.lock().console = "one\ntwo\nthree\n".to_owned();
    assert_eq!(fleet.lobby("logs web").await.1, "one\ntwo\nthree\n");
    assert_eq!(fleet.lobby("logs web -n 1").await.1, "three\n");
    assert_eq!(document(&fleet.lobby("logs web -n 1 --json").await.1), json!({"text": "three\n"}));
}

#[tokio::test]
async fn ssh_config_names_every_machine_and_trusts_the_ca() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines = vec![machine("web", MachineState::Started)];
    let (_, out, _) = fleet.lobby("ssh-config").await;
    for line in ["Host web web.mashine.test", "  HostName 2001:db8::13e", "Host web-ipv4", "  Port 2201"] {
        assert!(out.lines().any(|l| l == line), "{line:?} is not in {out}");
    }
    let (_, out, _) = fleet.lobby("known-hosts").await;
    assert_eq!(
        out,
        "@cert-authority *.mashine.test,mashine.test,[*.mashine.test]:* ssh-ed25519 AAAAC3Nza test\n"
    );
}

#[tokio::test]
async fn the_lobby_says_what_to_run_at_home_instead() {
    let fleet = Fleet::start().await;
    for (line, instead) in [
        ("enter web", "ssh web@mashine.test"),
        ("cp a web:b", "scp FILE root@MACHINE.mashine.test:PATH"),
        ("login --api https://x --ca y", "SSH key"),
        ("completions bash", "mashines completions SHELL"),
        ("exec web --stdin -- cat", "on your own machine"),
        ("doctor", "mashines doctor"),
    ] {
        let (code, out, err) = fleet.lobby(line).await;
        assert!(code == 2 || code == 255, "{line}: {code}");
        assert_eq!(out, "", "{line}");
        assert!(err.contains("lobby") && err.contains(instead), "{line}: {err}");
    }
}

#[tokio::test]
async fn a_wrong_line_is_still_one_json_document() {
    let fleet = Fleet::start().await;
    let (code, out, err) = fleet.lobby("launch --memory 512 --json").await;
    assert_eq!(code, 2);
    assert_eq!(document(&out)["code"], "usage");
    assert!(err.contains("512M or 1.5G"), "{err}");
    let (code, out, err) = fleet.lobby("migrate --help").await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("Examples:"), "{out}");
}

#[test]
fn a_prompt_completes_commands_and_options() {
    assert_eq!(mashines_cli::complete("mig"), ["migrate", "migrations"]);
    assert_eq!(mashines_cli::complete("volumes "), ["ls", "create", "rm", "help"]);
    assert_eq!(mashines_cli::complete("launch --v"), ["--vcpu", "--volume"]);
    assert!(mashines_cli::command_names().contains(&"migrate".to_owned()));
}
