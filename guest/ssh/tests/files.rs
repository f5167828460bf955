//! Files, by OpenSSH's sftp and scp, and rsync.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use common::{Stage, finish, noise};

#[test]
fn sftp_does_what_a_person_does_with_files() {
    let stage = Stage::new();
    let data = noise(3_000_000);
    let local = stage.write("local", &data);
    fs::set_permissions(&local, fs::Permissions::from_mode(0o640)).unwrap();
    let there = stage.path("there");
    let batch = format!(
        "mkdir {there}\ncd {there}\npwd\nput -p {local} one\nget one {back}\nrename one two\nsymlink two link\nls -l\n\
         chmod 600 two\nln two hard\ndf\nmkdir sub\nrmdir sub\nrm hard\nls -la\n",
        local = local.display(),
        back = stage.path("back"),
    );
    let text = stage.sftp(&batch).good();
    assert!(text.contains(&format!("Remote working directory: {there}")), "{text}");
    assert!(text.contains("-rw-r-----") && text.contains("lrwxrwxrwx"), "{text}");
    assert!(fs::read(stage.path("back")).unwrap() == data);
    let two = fs::metadata(format!("{there}/two")).unwrap();
    assert_eq!((two.mode() & 0o777, two.nlink(), two.len()), (0o600, 1, 3_000_000));
    assert_eq!(two.mtime(), fs::metadata(&local).unwrap().mtime());
    assert_eq!(fs::read_link(format!("{there}/link")).unwrap().to_str(), Some("two"));
    assert!(!fs::exists(format!("{there}/sub")).unwrap());
}

#[test]
fn a_rename_replaces_as_posix_wants_it_and_errors_have_words() {
    let stage = Stage::new();
    let (one, two) = (stage.write("one", b"1"), stage.write("two", b"2"));
    stage.sftp(&format!("rename {} {}\n", one.display(), two.display())).good();
    assert_eq!(fs::read(&two).unwrap(), b"1");
    let output = stage.sftp(&format!("get {}/no-such-file /dev/null\n", stage.path("")));
    assert_eq!(output.code, Some(1));
    assert!(output.err.contains("not found") || output.err.contains("No such file"), "{}", output.err);
}

#[test]
fn interrupted_transfers_go_on_where_they_stopped() {
    let stage = Stage::new();
    let data = noise(500_000);
    let whole = stage.write("whole", &data);
    let part = stage.write("part", &data[..200_000]);
    stage.sftp(&format!("reput {} {}\n", whole.display(), part.display())).good();
    assert!(fs::read(&part).unwrap() == data);
}

#[test]
fn scp_copies_trees_both_ways() {
    let stage = Stage::new();
    fs::create_dir_all(stage.path("tree/deep/er")).unwrap();
    let data = noise(1_000_000);
    stage.write("tree/deep/er/file", &data);
    stage.write("tree/empty", b"");
    fs::write(stage.dir.path().join("tree").join(std::ffi::OsStr::from_bytes(b"caf\xe9 \xff")), "bytes")
        .unwrap();
    for (from, to) in [
        (stage.path("tree"), format!("root@127.0.0.1:{}", stage.path("up"))),
        (format!("root@127.0.0.1:{}", stage.path("up")), stage.path("down")),
    ] {
        let mut command = stage.client("scp", "ann");
        command.args(["-rpq", &from, &to]);
        finish(command, b"").good();
    }
    let same =
        std::process::Command::new("diff").args(["-r", &stage.path("tree"), &stage.path("down")]).status();
    assert!(same.unwrap().success());
}

#[test]
fn a_directory_of_thousands_is_listed_whole() {
    let stage = Stage::new();
    fs::create_dir(stage.path("many")).unwrap();
    for n in 0..2500 {
        stage.write(&format!("many/{n}"), b"");
    }
    let text = stage.sftp(&format!("ls -1 {}\n", stage.path("many"))).good();
    assert_eq!(text.lines().filter(|line| line.contains("/many/")).count(), 2500);
}

#[test]
fn rsync_finds_its_own_program() {
    let stage = Stage::new();
    let data = noise(1_000_000);
    let local = stage.write("local", &data);
    let mut command = std::process::Command::new("timeout");
    command.args(["60", "rsync", "-a", "-e", &stage.line()]).arg(&local);
    command.arg(format!("root@127.0.0.1:{}", stage.path("synced")));
    finish(command, b"").good();
    assert!(fs::read(stage.path("synced")).unwrap() == data);
}

#[test]
fn the_old_scp_works_where_the_image_has_it() {
    let stage = Stage::new();
    let data = noise(200_000);
    let local = stage.write("local", &data);
    let mut command = stage.client("scp", "ann");
    command.arg("-Oq").arg(&local).arg(format!("root@127.0.0.1:{}", stage.path("copied")));
    finish(command, b"").good();
    assert!(fs::read(stage.path("copied")).unwrap() == data);
}
