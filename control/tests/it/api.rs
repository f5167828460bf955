//! The API on a real listener: what it does with good requests and what it says to bad ones.

use crate::support::{Fleet, MACHINES, eventually};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use mashines_fleet::api;
use mashines_fleet::host_api::LocalState;
use mashines_fleet::id::Epoch;
use mashines_fleet::pki::PeerName;
use mashines_fleet::record::{HostRole, MachineState};
use mashines_fleet::replica::{ReplicaConfig, follow};
use mashines_fleet::rpc::Client;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_from_launch_to_destruction() {
    let mut fleet = Fleet::up(&["hosta"]).await;
    fleet.join("entry160", vec![HostRole::Entry]).await;
    let body = json!({
        "name": "web", "region": "here",
        "config": {"image": "container-os", "size": "shared-cpu-2x", "env": {"A": "1"}, "dns": {"skip": true}},
        "volumes": [{"name": "data", "size_mib": 1024, "path": "/data"}],
    });
    let launched: api::Machine = fleet.post(MACHINES, body).await.unwrap();
    assert_eq!((launched.config.guest.cpus, launched.config.guest.memory_mb), (2, 512));
    assert_eq!(launched.fqdn, "web.mashine.test");
    assert!(launched.config.other.contains_key("dns"), "unknown keys are kept");
    let door = launched.ssh.unwrap();
    assert_eq!((door.ipv4_host.as_str(), door.port), ("entry160.mashine.test", 2200));

    let up = fleet.wait("web", "started").await;
    assert_eq!((up.host.unwrap().as_str(), up.epoch), ("hosta", Epoch(1)));
    let volumes: Vec<api::Volume> = fleet.client.get("/v1/volumes").await.unwrap();
    assert_eq!(
        (volumes[0].state.as_str(), volumes[0].attached_machine_id.as_ref()),
        ("attached", Some(&up.id))
    );
    let logs: api::Logs = fleet.client.get(&format!("{MACHINES}/web/logs")).await.unwrap();
    assert_eq!(logs.text, "login:");

    fleet.post::<api::Done>(&format!("{MACHINES}/web/stop"), json!({"timeout": "5s"})).await.unwrap();
    fleet.wait("web", "stopped").await;
    let refused = fleet.migrate("web", None).await.unwrap_err();
    assert!(refused.message().contains("does not run"), "{refused}");
    fleet.post::<api::Done>(&format!("{MACHINES}/web/start"), json!({})).await.unwrap();
    assert_eq!(fleet.wait("web", "started").await.epoch, Epoch(2), "each start has its epoch");
    fleet.post::<api::Done>(&format!("{MACHINES}/web/restart"), json!({})).await.unwrap();
    eventually("the next instance is up", || async {
        let machine = fleet.machine("web").await;
        (machine.epoch == Epoch(3) && machine.state == MachineState::Started).then_some(())
    })
    .await;

    let refused = fleet.client.delete::<api::Done>(&format!("{MACHINES}/web")).await.unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::CONFLICT));
    fleet.client.delete::<api::Done>(&format!("{MACHINES}/web?force=true")).await.unwrap();
    eventually("it is gone", || async { fleet.host("hosta").inside().machines.is_empty().then_some(()) })
        .await;
    eventually("its name is free", || async {
        fleet.client.get::<api::Machine>("/v1/machines/web").await.err()
    })
    .await;
    let volumes: Vec<api::Volume> = fleet.client.get("/v1/volumes").await.unwrap();
    assert_eq!(volumes[0].state, "detached", "the volume outlives it");
    fleet.client.delete::<api::Volume>("/v1/apps/default/volumes/data").await.unwrap();
    assert_eq!(fleet.started("web").await.ssh.unwrap().port, 2200, "name and port are given anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_what_is_wrong_and_leaves_nothing() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    fleet.started("taken").await;
    let big = format!("{{\"config\": {{\"image\": \"{}\"}}}}", "x".repeat(2 << 20));
    let launch = |rest: &str| format!("{{\"config\": {{\"image\": \"container-os\"{rest}}}}}");
    let cases: Vec<(Method, &str, String, u16, &str)> = vec![
        (Method::POST, MACHINES, "{\"config\": {,}}".into(), 400, "line 1 column 13"),
        (Method::POST, MACHINES, String::new(), 400, "body is empty"),
        (Method::POST, MACHINES, "[]".into(), 400, "does not fit"),
        (Method::POST, MACHINES, big, 413, "longer than 1048576 bytes"),
        (Method::POST, MACHINES, "{\"config\": {\"image\": \"containr-os\"}}".into(), 400, "did you mean container-os?"),
        (Method::POST, MACHINES, "{\"config\": {}}".into(), 400, "image is missing"),
        (Method::POST, MACHINES, launch(",\"guest\":{\"cpus\":64}"), 400, "1 to 8"),
        (Method::POST, MACHINES, launch(",\"guest\":{\"memory_mb\":64000}"), 412, "hosta: needs 64000 MiB memory"),
        (Method::POST, MACHINES, launch(",\"size\":\"huge\""), 400, "shared-cpu-1x"),
        (Method::POST, MACHINES, launch(",\"mounts\":[{\"volume\":\"nope\",\"path\":\"/x\"}]"), 404, "no volume \"nope\""),
        (Method::POST, MACHINES, "{\"name\":\"taken\",\"config\":{\"image\":\"container-os\"}}".into(), 409, "is taken"),
        (Method::POST, MACHINES, "{\"name\":\"UP_per\",\"config\":{\"image\":\"container-os\"}}".into(), 400, "machine name"),
        (Method::POST, MACHINES, "{\"name\":\"hosta\",\"config\":{\"image\":\"container-os\"}}".into(), 409, "platform's own"),
        (Method::POST, MACHINES, "{\"region\":\"hare\",\"config\":{\"image\":\"container-os\"}}".into(), 400, "did you mean here?"),
        (Method::POST, MACHINES, "{\"host\":\"hostz\",\"config\":{\"image\":\"container-os\"}}".into(), 404, "hosts: hosta, hostb"),
        (Method::POST, MACHINES, "{\"config\":{\"image\":\"container-os\"},\"volumes\":[{\"name\":\"v\",\"size_mib\":1}]}".into(), 400, "size 1 MiB"),
        (Method::POST, MACHINES, "{\"config\":{\"image\":\"container-os\"},\"volumes\":[{\"name\":\"a\",\"size_mib\":64,\"path\":\"/x\"},{\"name\":\"b\",\"size_mib\":64,\"path\":\"/x/\"}]}".into(), 400, "two volumes"),
        (Method::POST, "/v1/apps/nope/machines", launch(""), 404, "has no app nope"),
        (Method::GET, "/v1/machines/takne", String::new(), 404, "did you mean taken?"),
        (Method::GET, "/v1/apps/default/machines/taken/wait?timeout=90", String::new(), 400, "1 to 60"),
        (Method::GET, "/v1/apps/default/machines/taken/wait?state=stopped&timeout=1", String::new(), 408, "taken is started, not stopped"),
        (Method::POST, "/v1/apps/default/machines/taken/migrate", "{\"host\":\"hostbb\"}".into(), 404, "did you mean hostb?"),
        (Method::POST, "/v1/apps/default/machines/taken/stop", "{\"signal\":\"SIGUSR1\"}".into(), 400, "SIGUSR1"),
        (Method::POST, "/v1/apps/default/machines/taken/exec", "{}".into(), 400, "`cmd`"),
        (Method::GET, "/v1/migrations/01", String::new(), 404, "no migration"),
        (Method::POST, "/v1/account/keys", "{\"public_key\":\"rsa\"}".into(), 400, "no public key"),
        (Method::GET, "/v2/machines", String::new(), 404, "no such path"),
        (Method::PATCH, "/v1/machines", String::new(), 405, "does not take PATCH"),
        (Method::POST, "/internal/v1/join", "{\"token\":\"x\",\"host_id\":\"h\",\"csr\":\"\"}".into(), 400, "certificate request"),
        (Method::GET, "/internal/v1/changes?from=0", String::new(), 401, "members of the fleet"),
    ];
    for (method, path, body, status, says) in cases {
        let (got, text) = fleet.raw(method.clone(), path, &body).await;
        let head: String = body.chars().take(120).collect();
        let here = format!("{method} {path} {head}: {got} {text}");
        if path.ends_with("/join") {
            assert_eq!(got.as_u16(), status, "{here}");
            continue;
        }
        assert_eq!(got.as_u16(), status, "{here}");
        assert!(text.contains(says), "{here}");
    }
    let machines: Vec<api::Machine> = fleet.client.get("/v1/machines").await.unwrap();
    assert_eq!(machines.len(), 1);
    let volumes: Vec<api::Volume> = fleet.client.get("/v1/volumes").await.unwrap();
    assert!(volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_launches_of_one_name_one_wins_and_a_key_means_one_machine() {
    let fleet = Fleet::up(&["hosta"]).await;
    let body = json!({"name": "web", "config": {"image": "container-os", "guest": {"memory_mb": 128}}});
    let all = (0..8).map(|_| fleet.post::<api::Machine>(MACHINES, body.clone()));
    let outcomes = futures_util::future::join_all(all).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let key = (HeaderName::from_static("idempotency-key"), HeaderValue::from_static("k1"));
    let ask = |body: &'static str| {
        fleet.client.request(
            Method::POST,
            MACHINES,
            std::slice::from_ref(&key),
            bytes::Bytes::from_static(body.as_bytes()),
        )
    };
    let first = ask(r#"{"config": {"image": "container-os"}}"#).await.unwrap();
    let again = ask(r#"{"config": {"image": "container-os"}}"#).await.unwrap();
    let id = |answer: &http::Response<bytes::Bytes>| {
        serde_json::from_slice::<api::Machine>(answer.body()).unwrap().id
    };
    assert_eq!(id(&first), id(&again));
    assert!(first.headers().contains_key("fly-request-id"));
    let other = ask(r#"{"config": {"image": "container-os", "env": {"A": "2"}}}"#).await.unwrap_err();
    assert_eq!(other.status(), Some(StatusCode::CONFLICT), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_start_a_machine_keeps_nothing_and_the_reason_is_told() {
    let fleet = Fleet::up(&["hosta"]).await;
    fleet.host("hosta").inside().boots_badly = true;
    fleet.launch("web").await;
    let failed = fleet.wait("web", "failed").await;
    assert!(failed.reason.unwrap().contains("the kernel is no kernel"));
    assert!(fleet.host("hosta").inside().machines.is_empty());
    fleet.host("hosta").inside().boots_badly = false;
    fleet.post::<api::Done>(&format!("{MACHINES}/web/start"), json!({})).await.unwrap();
    fleet.wait("web", "started").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_answered_in_the_next_epoch_and_older_ones_never_run_again() {
    let fleet = Fleet::up(&["hosta"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").crash(&machine.id);
    eventually("it runs again", || async {
        let now = fleet.machine("web").await;
        (now.epoch == Epoch(2) && now.state == MachineState::Started).then_some(())
    })
    .await;
    assert_eq!(fleet.host("hosta").state(&machine.id), Some((Epoch(2), LocalState::Ready)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_told_apart_from_people_and_from_each_other() {
    let mut fleet = Fleet::up(&["hosta"]).await;
    let entry = fleet.join("entry160", vec![HostRole::Entry]).await;
    let token = fleet.join_token(Some("hostb")).await;
    let wrong = mashines_fleet::join::join(&fleet.url, &token, &"hostc".parse().unwrap()).await.unwrap_err();
    assert!(wrong.to_string().contains("is for hostb"), "{wrong}");
    let host = mashines_fleet::join::join(&fleet.url, &token, &"hostb".parse().unwrap()).await.unwrap();
    let again = mashines_fleet::join::join(&fleet.url, &token, &"hostb".parse().unwrap()).await.unwrap_err();
    assert!(again.to_string().contains("was used already"), "{again}");

    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUxHqHGOGxFHNjmnN1bKrKqYpGvBaWTmfLbkgBwAXtW";
    let certify = |identity| {
        let client = Client::to_control(identity, &fleet.url).unwrap();
        async move {
            client
                .post::<_, serde_json::Value>("/internal/v1/ssh/certificates", &json!({"public_key": key}))
                .await
        }
    };
    let certificate = certify(&entry).await.unwrap()["certificate"].as_str().unwrap().to_owned();
    assert!(certificate.starts_with("ssh-ed25519-cert-v01@openssh.com "), "{certificate}");
    assert_eq!(certify(&host).await.unwrap_err().status(), Some(StatusCode::FORBIDDEN));

    let lobby = |identity| {
        let account = (HeaderName::from_static(api::ACCOUNT_HEADER), HeaderValue::from_static("ann"));
        Client::to_control(identity, &fleet.url).unwrap().with_header(account.0, account.1)
    };
    let ann: api::Account = lobby(&entry).get("/v1/account").await.unwrap();
    assert_eq!(ann.id.as_str(), "ann");
    assert_eq!(
        lobby(&host).get::<api::Account>("/v1/account").await.unwrap_err().status(),
        Some(StatusCode::FORBIDDEN)
    );
    let tls = mashines_fleet::pki::anonymous_client_config(fleet.identity.ca_pem()).unwrap();
    let nobody = Client::new(tls, &fleet.url, PeerName::control().server_name().unwrap());
    assert_eq!(
        nobody.get::<api::Account>("/v1/account").await.unwrap_err().status(),
        Some(StatusCode::UNAUTHORIZED)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_follows_survives_control_and_shows_no_secret() {
    let mut fleet = Fleet::up(&["hosta"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("replica.json");
    let config = |tls| ReplicaConfig { control: vec![fleet.url.clone()], tls, file: file.clone() };
    let identity = fleet.identity.clone();
    let (mut view, _task) = follow(config(identity.clone()));
    fleet.started("web").await;
    let up = |view: &std::sync::Arc<mashines_fleet::view::View>| {
        view.machine_by_slug("web").is_some_and(|m| m.state == MachineState::Started)
    };
    view.wait_for(up).await.unwrap();
    let port_token = fleet.token.clone();
    fleet.restart_control().await;
    eventually("the file holds it", || async {
        let text = std::fs::read_to_string(&file).ok()?;
        assert!(!text.contains(&port_token) && !text.contains("PRIVATE KEY"), "a secret is in the stream");
        text.contains("\"web\"").then_some(())
    })
    .await;
    eventually("control is back", || async {
        fleet.client.get::<api::Machine>("/v1/machines/web").await.ok()
    })
    .await;
    fleet.started("two").await;
    tokio::time::timeout(
        std::time::Duration::from_secs(20),
        view.wait_for(|view| view.machine_by_slug("two").is_some()),
    )
    .await
    .expect("the replica comes back")
    .unwrap();
    let (offline, _task) = follow(ReplicaConfig {
        control: vec!["https://127.0.0.1:1".to_owned()],
        tls: identity,
        file: file.clone(),
    });
    assert!(offline.borrow().machine_by_slug("web").is_some(), "served from the disk at once");
}
