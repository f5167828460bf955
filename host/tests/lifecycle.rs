//! A machine's life on one host, with a monitor that has no machine.

// Helpers of tests: a failed unwrap is a failed test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use mashines_fleet::host_api::{ErrorCode, LocalState, RunMachine};
use mashines_fleet::id::Epoch;
use support::{Box, daemon, id, kill, pid, run, spec, state, stop, until, until_state};

#[test]
fn a_machine_boots_gets_its_route_becomes_ready_and_stops() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        assert_eq!(run(&host, 1).await.unwrap().state, LocalState::Starting);
        until_state(&host, LocalState::Ready).await;
        assert_eq!(home.asked(), ["prepare", "activate", "announce"]);
        assert_eq!(host.machine(&id()).unwrap().console().await.unwrap(), "console of 0123456789abcd");
        assert_eq!(stop(&host, 1, 5000).await.unwrap().state, LocalState::Stopping);
        until_state(&host, LocalState::Stopped).await;
        until("netd is told", || home.asked() == ["remove"]).await;
        // The console outlives its monitor.
        assert_eq!(host.machine(&id()).unwrap().console().await.unwrap(), "console of 0123456789abcd");
        host.remove(&id(), Epoch(1)).await.unwrap();
        let volume = home.state().join("volumes/vol_0123456789abcd.img");
        assert_eq!(home.leftovers(), [volume]);
    });
}

#[test]
fn a_start_is_repeated_without_harm_and_an_old_one_is_refused() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        run(&host, 2).await.unwrap();
        let first = pid(&host);
        run(&host, 2).await.unwrap();
        assert_eq!(pid(&host), first);
        assert_eq!(run(&host, 1).await.unwrap_err().code, ErrorCode::Conflict);
        assert_eq!(run(&host, 3).await.unwrap_err().code, ErrorCode::Conflict);
        assert_eq!(stop(&host, 1, 0).await.unwrap_err().code, ErrorCode::Conflict);
        host.remove(&id(), Epoch(2)).await.unwrap();
        assert_eq!(run(&host, 2).await.unwrap_err().code, ErrorCode::Conflict, "its epoch is fenced");
        run(&host, 3).await.unwrap();
        host.remove(&id(), Epoch(3)).await.unwrap();
    });
}

#[test]
fn what_cannot_start_leaves_nothing_behind() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        let mut requests = Vec::new();
        for change in ["image", "digest", "room", "broken"] {
            let mut machine = spec();
            match change {
                "image" => machine.image = "other".parse().unwrap(),
                "digest" => machine.image_digest = "sha256:11".to_owned(),
                "room" => machine.config.guest.memory_mb = 4096,
                _ => machine.image = "broken".parse().unwrap(),
            }
            requests.push((change, RunMachine { machine, epoch: Epoch(1) }));
        }
        let expected = [
            (ErrorCode::NotFound, "no image other"),
            (ErrorCode::NotFound, "sha256:11"),
            (ErrorCode::NoRoom, "4096 MiB of memory"),
            (ErrorCode::Internal, "no such kernel"),
        ];
        for ((change, request), (code, words)) in requests.into_iter().zip(expected) {
            let error = host.run(request).await.unwrap_err();
            assert_eq!(error.code, code, "{change}: {error}");
            assert!(error.message.contains(words), "{change}: {error}");
            assert!(home.leftovers().is_empty(), "{change}: {:?}", home.leftovers());
            assert_eq!(state(&host), None, "{change}");
        }
        // Only the last came as far as the network.
        assert_eq!(home.asked(), ["prepare", "remove"]);
    });
}

#[test]
fn a_restart_that_fails_leaves_the_disks_of_the_machine_that_ran_before() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        run(&host, 1).await.unwrap();
        stop(&host, 1, 0).await.unwrap();
        until_state(&host, LocalState::Stopped).await;
        let mut machine = spec();
        machine.image = "broken".parse().unwrap();
        host.run(RunMachine { machine, epoch: Epoch(2) }).await.unwrap_err();
        assert_eq!(state(&host), Some(LocalState::Stopped));
        assert!(home.machine_dir().join("root.overlay").exists());
        assert!(home.state().join("volumes/vol_0123456789abcd.img").exists());
        run(&host, 3).await.unwrap();
        host.remove(&id(), Epoch(3)).await.unwrap();
    });
}

#[test]
fn a_crash_is_noticed_with_its_reason_and_a_reset_is_honoured() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        run(&host, 1).await.unwrap();
        until_state(&host, LocalState::Ready).await;
        let first = pid(&host);
        std::fs::write(home.machine_dir().join("die"), "3").unwrap();
        until("another monitor is ready", || state(&host) == Some(LocalState::Ready) && pid(&host) != first)
            .await;
        kill(pid(&host));
        until_state(&host, LocalState::Crashed).await;
        let reason = host.machine(&id()).unwrap().local().unwrap().reason.unwrap();
        assert!(reason.contains("SIGKILL"), "{reason}");
        run(&host, 2).await.unwrap();
        until_state(&host, LocalState::Ready).await;
        std::fs::write(home.machine_dir().join("die"), "4").unwrap();
        until_state(&host, LocalState::Crashed).await;
        let reason = host.machine(&id()).unwrap().local().unwrap().reason.unwrap();
        assert!(reason.contains("triple fault") && reason.contains("told to die"), "{reason}");
        host.remove(&id(), Epoch(2)).await.unwrap();
    });
}

#[test]
fn a_guest_that_does_not_listen_is_ended_when_its_time_is_over() {
    let home = Box::new("a");
    daemon(async {
        let host = home.host().await;
        run(&host, 1).await.unwrap();
        until_state(&host, LocalState::Ready).await;
        std::fs::write(home.machine_dir().join("deaf"), "").unwrap();
        stop(&host, 1, 300).await.unwrap();
        until_state(&host, LocalState::Stopped).await;
        host.remove(&id(), Epoch(1)).await.unwrap();
    });
}

#[test]
fn monitors_outlive_the_daemon_and_a_death_meanwhile_is_noticed() {
    let home = Box::new("a");
    let first = daemon(async {
        let host = home.host().await;
        run(&host, 1).await.unwrap();
        until_state(&host, LocalState::Ready).await;
        pid(&host)
    });
    daemon(async {
        let host = home.host().await;
        assert_eq!((state(&host), pid(&host)), (Some(LocalState::Ready), first));
        // It is watched again, though it is no child of this daemon.
        kill(first);
        until_state(&host, LocalState::Crashed).await;
        run(&host, 2).await.unwrap();
        until_state(&host, LocalState::Ready).await;
    });
    std::fs::write(home.machine_dir().join("die"), "0").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    daemon(async {
        let host = home.host().await;
        assert_eq!(state(&host), Some(LocalState::Crashed));
        // Nothing starts because the daemon came back.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(state(&host), Some(LocalState::Crashed));
        host.remove(&id(), Epoch(2)).await.unwrap();
    });
}

#[test]
fn a_monitor_whose_start_was_not_recorded_is_found_all_the_same() {
    let home = Box::new("a");
    let first = daemon(async {
        let host = home.host().await;
        run(&host, 1).await.unwrap();
        pid(&host)
    });
    // As a daemon leaves it that was killed between the start and its record.
    let path = home.machine_dir().join("instance.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["process"] = serde_json::Value::Null;
    std::fs::write(&path, record.to_string()).unwrap();
    daemon(async {
        let host = home.host().await;
        assert_eq!(pid(&host), first);
        until_state(&host, LocalState::Ready).await;
        host.remove(&id(), Epoch(1)).await.unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{first}/exe")).exists());
    });
}
