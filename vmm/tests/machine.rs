//! Machines boot, run, stop and come back. Runs in the lab: needs `/dev/kvm` with hardware behind it, root, and the guest
//! images (see `common`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Plan, wait_for};
use mashines_vmm::api::{Reply, Request, State};

#[test]
fn a_bzimage_and_an_elf_kernel_boot_with_1_2_and_8_cpus_and_the_power_button_ends_them() {
    for (vcpus, kernel) in [(1, "kernel"), (2, "kernel.elf"), (8, "kernel")] {
        let plan = Plan::bench(vcpus, kernel);
        let mut monitor = plan.start(&[]);
        let guest = monitor.wait_for_guest();
        assert_eq!(guest.hostname, "vmm-test");
        assert_eq!(monitor.status().state, State::Running);
        monitor.must(&Request::PowerButton);
        assert_eq!(monitor.exit_code(), Some(0), "{vcpus} vCPUs, {kernel}");
    }
}

#[test]
fn a_disk_keeps_what_was_written_across_a_reset() {
    let plan = Plan::debian(2);
    let mut monitor = plan.start(&[]);
    monitor.wait_for_guest();
    let sum = monitor.run(
        "head -c 20000000 /dev/urandom > /var/tmp/blob && sync && echo 3 > /proc/sys/vm/drop_caches && \
         sha256sum /var/tmp/blob",
    );
    assert_eq!(monitor.run("cat /sys/block/vda/queue/logical_block_size").trim(), "4096");
    assert_eq!(monitor.run("cat /sys/block/vda/serial").trim(), "root");
    monitor.run("fstrim -v / || true");
    monitor.run_last("sync; reboot -f");
    assert_eq!(monitor.exit_code(), Some(3), "a reset has its own exit status");
    let mut again = plan.start(&[]);
    again.wait_for_guest();
    assert_eq!(again.run("sha256sum /var/tmp/blob"), sum);
    again.must(&Request::PowerButton);
    assert_eq!(again.exit_code(), Some(0));
}

#[test]
fn datagrams_and_streams_pass_the_tap_unchanged() {
    let plan = Plan::bench(2, "kernel").with_net("vmmtest0");
    let monitor = plan.start(&[]);
    monitor.wait_for_guest();
    echo(100);
    // Larger than any segment: offloads and merged buffers, both ways.
    let bytes: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let mut stream = TcpStream::connect("10.77.0.2:7").unwrap();
    let (mut reader, sent) = (BufReader::new(stream.try_clone().unwrap()), bytes.clone());
    let writer = std::thread::spawn(move || stream.write_all(&sent));
    let mut back = vec![0; bytes.len()];
    std::io::Read::read_exact(&mut reader, &mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == bytes, "the echo differs");
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    let plan = Plan::bench(2, "kernel").with_net("vmmtest1");
    let monitor = plan.start(&[]);
    monitor.wait_for_guest();
    echo(3);
    monitor.must(&Request::Pause);
    monitor.must(&Request::Pause);
    assert_eq!(monitor.status().state, State::Paused);
    let before = monitor.status().cpu_time_us;
    std::thread::sleep(Duration::from_millis(300));
    assert!(monitor.status().cpu_time_us - before < 20_000, "a paused vCPU burns time");
    monitor.must(&Request::Resume);
    echo(3);
}

#[test]
fn a_snapshot_taken_up_by_another_process_is_the_same_machine() {
    let plan = Plan::bench(2, "kernel").with_net("vmmtest2");
    let monitor = plan.start(&[]);
    monitor.wait_for_guest();
    let before = command("write 32 20");
    let lag_before = lag_ms(&before);
    monitor.must(&Request::Pause);
    let directory = plan.path("snapshot");
    monitor.must(&Request::Snapshot { directory: directory.clone() });
    monitor.kill();

    let restored = plan.start(&["--restore", directory.to_str().unwrap()]);
    assert_eq!(restored.status().state, State::Running);
    let after = command("status");
    assert_eq!(after["boot_id"], before["boot_id"]);
    assert!(after["uptime_ms"].as_u64() > before["uptime_ms"].as_u64());
    // The guest's clock may have been off before (ticks are lost while an emulated kernel boots); it must not be more so.
    let lag_after = lag_ms(&command("status"));
    let gained = (lag_after.abs() - lag_before.abs()).max(0);
    assert!(
        gained < 250,
        "the guest's wall clock is {lag_after} ms behind, {lag_before} ms before the snapshot"
    );
    std::thread::sleep(Duration::from_secs(1));
    let written = command("stop");
    assert!(written["writer"]["pages"].as_u64() > before["writer"]["pages"].as_u64());
    assert_eq!(written["writer"]["mismatches"], 0);
    echo(20);
    // Streams of before are gone, new ones work: the guest heard of the reset.
    assert_eq!(restored.wait_for_guest().boot_id, before["boot_id"].as_str().unwrap());
}

#[test]
fn two_monitors_never_run_on_one_disk() {
    let plan = Plan::debian(1);
    let first = plan.start(&[]);
    let mut second = std::process::Command::new(
        std::env::var("MASHINES_BIN")
            .map_or_else(|_| env!("CARGO_BIN_EXE_mashines-vmm").into(), |bin| format!("{bin}/mashines-vmm")),
    )
    .args(["--spec", plan.path("spec.json").to_str().unwrap(), "--socket", "/tmp/never.sock"])
    .stderr(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    let mut error = String::new();
    std::io::Read::read_to_string(&mut second.stderr.take().unwrap(), &mut error).unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(error.contains("another monitor"), "{error}");
    first.kill();
}

#[test]
fn nonsense_on_the_control_socket_is_answered_with_an_error() {
    let plan = Plan::bench(1, "kernel");
    let monitor = plan.start(&["--incoming"]);
    assert_eq!(monitor.status().state, State::Incoming);
    assert!(matches!(monitor.ask(&Request::Resume), Reply::Error { .. }));
    assert!(matches!(monitor.ask(&Request::Resolve { run: true }), Reply::Error { .. }));
    assert!(matches!(monitor.ask(&Request::MigrateCancel), Reply::Error { .. }));
    let stream = std::os::unix::net::UnixStream::connect(plan.path("vmm.sock")).unwrap();
    (&stream).write_all(b"{\"op\":\"dance\"}\n\xff\xfe\n").unwrap();
    let mut lines = BufReader::new(&stream).lines();
    for _ in 0..2 {
        assert!(lines.next().unwrap().unwrap().contains("not a request"));
    }
}

/// How far the guest's wall clock is behind the host's, in milliseconds, given an answer that came just now.
fn lag_ms(answer: &serde_json::Value) -> i128 {
    let now = i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    (now - i128::from(answer["wall_clock_ns"].as_u64().unwrap())) / 1_000_000
}

/// UDP echoes, each answered within a second.
fn echo(count: u32) {
    let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
    socket.connect("10.77.0.2:7").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    for number in 0..count {
        let mut back = [0; 4];
        socket.send(&number.to_le_bytes()).unwrap();
        assert_eq!(socket.recv(&mut back).unwrap(), 4, "echo {number}");
        assert_eq!(u32::from_le_bytes(back), number);
    }
}

/// One command to the guest's bench.
fn command(line: &str) -> serde_json::Value {
    let mut answer = String::new();
    wait_for("the bench's command port", || {
        let Ok(mut stream) = TcpStream::connect("10.77.0.2:10") else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        answer.clear();
        writeln!(stream, "{line}").is_ok() && BufReader::new(stream).read_line(&mut answer).is_ok()
    });
    serde_json::from_str(&answer).unwrap()
}
