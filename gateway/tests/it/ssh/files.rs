//! Files through the gateway: sftp, scp with both protocols, rsync, sshfs.

use std::path::Path;
use std::time::Duration;

use crate::common::clients::{hurried, noise, stay, succeed, tool};
use crate::common::{Stage, finish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

fn remote(path: &Path) -> String {
    format!("web@127.0.0.1:{}", path.display())
}

fn scp(stage: &Stage, options: &[&str]) -> Command {
    let mut scp = tool("scp", "openssh-client");
    scp.args(stage.options("ann")).args(["-q", "-P", &stage.port()]).args(options);
    scp
}

fn sftp(stage: &Stage, options: &[&str]) -> Command {
    let mut sftp = tool("sftp", "openssh-client");
    sftp.args(stage.options("ann")).args(["-q", "-P", &stage.port()]).args(options).arg("web@127.0.0.1");
    sftp
}

fn rsync(stage: &Stage, options: &[&str]) -> Command {
    let mut rsync = tool("rsync", "rsync");
    rsync.arg("-e").arg(stage.ssh_line("ann")).args(options);
    rsync
}

/// A tree of small files and one large one, with modes, a link and a name with a space.
fn tree(root: &Path) {
    for folder in 0..10 {
        let folder = root.join(format!("folder {folder}"));
        std::fs::create_dir_all(&folder).unwrap();
        for file in 0..40 {
            std::fs::write(folder.join(format!("file{file}")), noise(file * 997)).unwrap();
        }
    }
    std::fs::write(root.join("large"), noise(20_000_000)).unwrap();
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

async fn same(one: &Path, two: &Path) {
    let mut diff = tool("diff", "diffutils");
    diff.arg("-r").arg(one).arg(two);
    succeed(diff, b"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_copies_trees_with_both_protocols_both_ways_and_between_machines() {
    let stage = Stage::with(hurried).await;
    tree(&stage.path("tree"));
    for protocol in ["-s", "-O"] {
        let (there, back) = (stage.path(&format!("there{protocol}")), stage.path(&format!("back{protocol}")));
        let mut up = scp(&stage, &[protocol, "-r", "-p"]);
        up.arg(stage.path("tree")).arg(remote(&there));
        succeed(up, b"").await;
        let mut down = scp(&stage, &[protocol, "-r", "-p"]);
        down.arg(remote(&there)).arg(&back);
        succeed(down, b"").await;
        same(&stage.path("tree"), &back).await;
        let mut through = scp(&stage, &[protocol, "-3"]);
        through.arg(remote(&there.join("large"))).arg(remote(&stage.path("third")));
        succeed(through, b"").await;
        assert!(std::fs::read(stage.path("third")).unwrap() == noise(20_000_000));
        let mut missing = scp(&stage, &[protocol]);
        missing.arg(remote(&stage.path("nothing"))).arg(&back);
        let missing = finish(missing, b"").await;
        assert_eq!(missing.code, Some(1), "{missing:?}");
        assert!(missing.err.contains("No such file"), "{missing:?}");
    }
}

/// warpgate #2158: what stands between the client and `scp -f` adds nothing and takes nothing away.
#[tokio::test(flavor = "multi_thread")]
async fn the_old_scp_protocol_is_passed_byte_for_byte() {
    let stage = Stage::with(hurried).await;
    std::fs::write(stage.path("file"), b"twelve bytes").unwrap();
    let command = format!("scp -f {}", stage.path("file").display());
    let output = succeed(stage.ssh("ann", "web", &command), b"\0\0\0").await;
    let told = output.text();
    assert!(told.ends_with(" 12 file\ntwelve bytes\0") && told.starts_with('C'), "{output:?}");
    assert_eq!(output.err, "");
    let command = format!("scp -t {}", stage.path("copy").display());
    let output = succeed(stage.ssh("ann", "web", &command), b"C0600 5 any\nhello\0").await;
    assert_eq!((output.out.as_slice(), output.err.as_str()), (&b"\0\0\0"[..], ""));
    assert_eq!(std::fs::read(stage.path("copy")).unwrap(), b"hello");
}

/// warpgate #246: clients that ask for sftp and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_only_know_sftp_get_it() {
    let stage = Stage::with(hurried).await;
    std::fs::write(stage.path("source"), noise(20_000_000)).unwrap();
    let at = |name: &str| stage.path(name).display().to_string();
    let script = format!(
        "put {source} {there}\nget {there} {back}\nmkdir {folder}\nchmod 700 {folder}\nrename {there} {folder}/moved\n\
         ln -s {source} {link}\nls -l {folder}\ndf {folder}\n",
        source = at("source"),
        there = at("there"),
        back = at("back"),
        folder = at("folder"),
        link = at("link"),
    );
    let listed = succeed(sftp(&stage, &["-b", "-", "-R", "128"]), script.as_bytes()).await;
    assert!(listed.text().contains("moved"), "{listed:?}");
    assert!(std::fs::read(stage.path("back")).unwrap() == noise(20_000_000));
    assert!(std::fs::read(stage.path("folder/moved")).unwrap() == noise(20_000_000));
    // Half a file is gone on with.
    std::fs::write(stage.path("half"), &noise(20_000_000)[..7_000_000]).unwrap();
    let script = format!("reget {} {}\n", at("source"), at("half"));
    succeed(sftp(&stage, &["-b", "-"]), script.as_bytes()).await;
    assert!(std::fs::read(stage.path("half")).unwrap() == noise(20_000_000));
    // The subsystem itself, as libraries ask for it: version 3 answers version 3.
    let mut raw = tool("ssh", "openssh-client");
    raw.args(stage.options("ann")).args(["-p", &stage.port(), "-s", "web@127.0.0.1", "sftp"]);
    let mut raw = stay(raw);
    raw.stdin.as_mut().unwrap().write_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3]).await.unwrap();
    let mut answer = [0u8; 9];
    raw.stdout.as_mut().unwrap().read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[4..], [2, 0, 0, 0, 3]);
    let missing = finish(stage.ssh_with("ann", "web", &["-s"], &["no-such-subsystem"]), b"").await;
    assert_ne!(missing.code, Some(0), "{missing:?}");
    assert!(missing.err.contains("refuses this command or subsystem"), "{missing:?}");
}

/// warpgate #2065: rsync speaks both ways at once, much and long.
#[tokio::test(flavor = "multi_thread")]
async fn rsync_never_hangs() {
    let stage = Stage::with(hurried).await;
    let (tree_here, there, back) = (stage.path("tree"), stage.path("there"), stage.path("back"));
    tree(&tree_here);
    let from = |path: &Path| format!("{}/", path.display());
    let up = |options: &[&str]| {
        let mut up = rsync(&stage, &["-a"]);
        up.args(options).arg(from(&tree_here)).arg(remote(&there));
        up
    };
    succeed(up(&["-vv", "--stats"]), b"").await;
    let mut down = rsync(&stage, &["-az", "--progress"]);
    down.arg(format!("{}/", remote(&there))).arg(&back);
    succeed(down, b"").await;
    same(&tree_here, &back).await;
    // Again, changed: checksums of everything travel one way while differences travel the other.
    let mut large = noise(20_000_000);
    large[10_000_000] ^= 1;
    std::fs::write(tree_here.join("large"), &large).unwrap();
    std::fs::remove_file(tree_here.join("folder 3/file7")).unwrap();
    let output =
        succeed(up(&["--checksum", "--delete", "--no-whole-file", "--block-size=700", "--stats"]), b"");
    let output = output.await;
    assert!(output.text().contains("Number of deleted files: 1"), "{output:?}");
    same(&tree_here, &there).await;
    // Four at once.
    let all = (0..4).map(|n| {
        let mut down = rsync(&stage, &["-a"]);
        down.arg(format!("{}/", remote(&there))).arg(stage.path(&format!("back{n}")));
        succeed(down, b"")
    });
    futures_util::future::join_all(all).await;
    same(&there, &stage.path("back3")).await;
}

/// warpgate #1612: scp takes what is before the first colon for the host. No door's name has one, and a name that has one is answered.
#[tokio::test(flavor = "multi_thread")]
async fn no_user_name_needs_a_colon_and_one_with_a_colon_is_answered() {
    let stage = Stage::with(hurried).await;
    std::fs::write(stage.path("a:b"), b"colons").unwrap();
    let mut up = scp(&stage, &[]);
    up.arg(stage.path("a:b")).arg(format!("{}:c", remote(&stage.path("copy"))));
    succeed(up, b"").await;
    assert_eq!(std::fs::read(stage.path("copy:c")).unwrap(), b"colons");
    let output = finish(stage.ssh("ann", "ann:web", "help"), b"").await;
    assert_eq!(output.code, Some(0), "the lobby, as for every name that is no machine's: {output:?}");
    let mut up = scp(&stage, &["-o", "User=ann:web"]);
    up.arg(stage.path("a:b")).arg(format!("127.0.0.1:{}", stage.path("d").display()));
    let refused = finish(up, b"").await;
    assert!(refused.err.contains("log in as one of your machines"), "{refused:?}");
}

/// A file system in user space needs the device, which containers lack until it is made.
fn need_fuse() {
    if !Path::new("/dev/fuse").exists() {
        let made = std::process::Command::new("mknod").args(["/dev/fuse", "c", "10", "229"]).status();
        assert!(
            made.unwrap().success(),
            "there is no /dev/fuse, and mknod cannot make it: load the module fuse, be root"
        );
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    assert!(
        opened.is_ok(),
        "/dev/fuse cannot be opened ({opened:?}): this test mounts, so it wants root and the module fuse"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sshfs_mounts_a_machines_folder() {
    need_fuse();
    let stage = Stage::with(hurried).await;
    let (there, mounted) = (stage.path("there"), stage.path("mounted"));
    std::fs::create_dir(&there).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    let mut sshfs = tool("sshfs", "sshfs fuse3");
    sshfs.arg("-f").arg(remote(&there)).arg(&mounted).args(["-p", &stage.port()]);
    let options = stage.options("ann");
    for option in options.chunks(2).filter(|pair| pair[0] == "-o") {
        sshfs.args(option);
    }
    let mut sshfs = stay(sshfs);
    let is_mounted =
        || std::fs::read_to_string("/proc/self/mounts").unwrap().contains(mounted.to_str().unwrap());
    for _ in 0..200 {
        if is_mounted() {
            break;
        }
        if let Some(status) = sshfs.try_wait().unwrap() {
            let output = sshfs.wait_with_output().await.unwrap();
            panic!("sshfs: {status}: {}", String::from_utf8_lossy(&output.stderr));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_mounted(), "sshfs mounts nothing");
    let used = tokio::task::spawn_blocking({
        let (there, mounted) = (there.clone(), mounted.clone());
        move || {
            std::fs::write(mounted.join("file"), noise(10_000_000)).unwrap();
            assert!(std::fs::read(there.join("file")).unwrap() == noise(10_000_000));
            std::fs::write(there.join("other"), b"from there").unwrap();
            assert_eq!(std::fs::read(mounted.join("other")).unwrap(), b"from there");
            std::fs::rename(mounted.join("file"), mounted.join("renamed")).unwrap();
            assert!(std::fs::read(mounted.join("renamed")).unwrap() == noise(10_000_000));
            assert_eq!(std::fs::read_dir(&mounted).unwrap().count(), 2);
        }
    });
    let used = tokio::time::timeout(Duration::from_secs(30), used).await;
    let mut unmount = tool("fusermount3", "fuse3");
    unmount.arg("-u").arg("-z").arg(&mounted);
    succeed(unmount, b"").await;
    used.expect("the mounted folder hangs").unwrap();
}
