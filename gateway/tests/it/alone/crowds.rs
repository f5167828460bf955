//! Crowds of strangers from many addresses: others log in about as fast as without them, memory is bounded, all of it comes back.
//!
//! One test in a program of its own, since it measures the program. Sources are addresses of 127.0.0.0/8.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::common::{Stage, finish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The `number`th address of the crowd.
fn source(number: usize) -> Ipv4Addr {
    let [_, a, b, c] = u32::try_from(number + 1).unwrap().to_be_bytes();
    Ipv4Addr::new(127, a + 1, b, c)
}

async fn connect(to: SocketAddr, from: Ipv4Addr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.ok()
}

/// What the program holds: kilobytes of memory, and descriptors.
fn held() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (memory, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

/// The median of the time that a login takes.
async fn login(stage: &Stage) -> Duration {
    let mut times = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        let output = finish(stage.ssh("ann", "lobby", "help"), b"").await;
        assert_eq!(output.code, Some(0), "{output:?}");
        times.push(begun.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// Twice as long at most; on a machine that does other things too, a quarter of a second is noise.
fn assert_served(name: &str, usual: Duration, now: Duration) {
    println!("{name}: a login takes {now:?}, usually {usual:?}");
    assert!(now < usual * 2 + Duration::from_millis(250), "{name}: {now:?} instead of {usual:?}");
}

async fn until_released(name: &str, before: usize) {
    for _ in 0..200 {
        if held().1 <= before + 8 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name}: {} descriptors are held, {before} before", held().1);
}

/// As many descriptors as may be.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= 14_000, "10,000 connections need descriptors, and there are {hard}: ulimit -Hn 20000");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn crowds_of_strangers_delay_nobody_and_leave_nothing_behind() {
    raise_descriptors();
    let stage = Stage::with(|config| config.login_grace_s = 20).await;
    let usual = login(&stage).await;
    let (memory, descriptors) = held();

    // Ten thousand that say nothing, from as many addresses; as many as do not fit go when others come.
    let mut silent = Vec::new();
    for number in 0..10_000 {
        silent.extend(connect(stage.gateway, source(number)).await);
    }
    assert!(silent.len() > 9_900, "{}", silent.len());
    assert_served("10,000 silent connections", usual, login(&stage).await);
    let (grown, _) = held();
    let kilobytes = grown.saturating_sub(memory);
    println!("10,000 silent connections: {kilobytes} KB of memory");
    assert!(kilobytes < 150_000, "{kilobytes} KB");
    drop(silent);
    until_released("silent connections", descriptors).await;

    // A thousand that stop after the banner.
    let mut halfway = Vec::new();
    for number in 20_000..21_000 {
        let mut stream = connect(stage.gateway, source(number)).await.unwrap();
        stream.write_all(b"SSH-2.0-halfway\r\n").await.unwrap();
        halfway.push(stream);
    }
    for stream in &mut halfway[990..] {
        let mut version = [0; 16];
        stream.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"SSH-2.0-mashines");
    }
    assert_served("1,000 that stop after the banner", usual, login(&stage).await);
    // Those go by themselves, when their time is over.
    let mut rest = Vec::new();
    let ended = async {
        for stream in &mut halfway {
            let _reset = stream.read_to_end(&mut rest).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), ended).await.expect("the grace ends nobody");
    drop(halfway);
    until_released("halfway connections", descriptors).await;

    // One address that opens connections as fast as it can: it is told, and others do not notice.
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let gateway = stage.gateway;
    let flood = tokio::spawn(async move {
        let mut told = 0;
        while !*stopped.borrow_and_update() {
            if let Some(mut stream) = connect(gateway, source(50_000)).await {
                let mut line = [0; 9];
                let reading = tokio::time::timeout(Duration::from_millis(3), stream.read_exact(&mut line));
                told += usize::from(matches!(reading.await, Ok(Ok(_))) && &line == b"mashines:");
            }
        }
        told
    });
    assert_served("a flood from one address", usual, login(&stage).await);
    stop.send_replace(true);
    assert!(flood.await.unwrap() > 0, "who comes too fast is told so");
    until_released("the flood", descriptors).await;
    let (after, _) = held();
    println!("memory: {memory} KB before, {after} KB after");
    assert!(after < memory + 150_000, "{after} KB, {memory} KB before");
}
