//! What each request does to the machine's files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, ReadDir};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, RenameFlags, StatVfs, StatVfsMountFlags, Timespec, Timestamps, fstatvfs, futimens,
    renameat_with, statvfs, utimensat,
};

use super::attributes::{self, Wanted};
use super::wire::{self, Fields, Packet, Refusal};
use super::{MAX_DATA, MAX_HANDLES, MAX_PACKET};

/// Names in one answer: OpenSSH's own sends as many.
const NAMES: usize = 100;

type Result<T> = std::result::Result<T, Refusal>;

/// What is open.
#[derive(Debug)]
pub struct Files {
    open: BTreeMap<u32, Open>,
    next: u32,
    most: usize,
}

#[derive(Debug)]
enum Open {
    File { file: File, appends: bool },
    Directory(PathBuf, Listing),
}

/// `.` and `..`, which the kernel's listing has and Rust's leaves out, then the rest.
#[derive(Debug)]
struct Listing {
    dots: std::array::IntoIter<&'static str, 2>,
    rest: ReadDir,
}

impl Iterator for Listing {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(dots) = self.dots.next() {
            return Some(Ok(dots.as_bytes().to_vec()));
        }
        Some(self.rest.next()?.map(|entry| entry.file_name().into_vec()))
    }
}

impl Files {
    /// None open, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { open: BTreeMap::new(), next: 0, most }
    }

    /// Carries a request out; its answer.
    pub fn carry_out(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        match kind {
            wire::OPEN => self.open(id, fields),
            wire::CLOSE => {
                let handle = number(fields)?;
                self.open.remove(&handle).ok_or(NO_HANDLE)?;
                Ok(Packet::done(id))
            }
            wire::READ => self.read(id, fields),
            wire::WRITE => self.write(id, fields),
            wire::LSTAT => Ok(attributed(id, &fs::symlink_metadata(fields.path()?)?)),
            wire::STAT => Ok(attributed(id, &fs::metadata(fields.path()?)?)),
            wire::FSTAT => Ok(attributed(id, &self.metadata(fields)?)),
            wire::SETSTAT => {
                let path = fields.path()?;
                change(path, Wanted::read(fields)?)?;
                Ok(Packet::done(id))
            }
            wire::FSETSTAT => self.set_attributes(id, fields),
            wire::OPENDIR => self.open_directory(id, fields),
            wire::READDIR => self.read_directory(id, fields),
            wire::REMOVE => done(id, fs::remove_file(fields.path()?)),
            wire::MKDIR => {
                use std::os::unix::fs::DirBuilderExt as _;
                let path = fields.path()?;
                let mode = Wanted::read(fields)?.mode.unwrap_or(0o777);
                done(id, fs::DirBuilder::new().mode(mode).create(path))
            }
            wire::RMDIR => done(id, fs::remove_dir(fields.path()?)),
            wire::REALPATH => Ok(one_name(id, real(fields.path()?)?.as_os_str())),
            wire::RENAME => {
                let (from, to) = (fields.path()?, fields.path()?);
                // Version 3 must not replace what is there; the extension does.
                renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
                Ok(Packet::done(id))
            }
            wire::READLINK => Ok(one_name(id, fs::read_link(fields.path()?)?.as_os_str())),
            wire::SYMLINK => {
                // OpenSSH has these two the other way round than the draft, and so has everybody else (PROTOCOL, section 4.1).
                let (target, link) = (fields.path()?, fields.path()?);
                done(id, std::os::unix::fs::symlink(target, link))
            }
            wire::EXTENDED => self.extended(id, fields),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn extended(&self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        match fields.string()? {
            b"posix-rename@openssh.com" => done(id, fs::rename(fields.path()?, fields.path()?)),
            b"hardlink@openssh.com" => done(id, fs::hard_link(fields.path()?, fields.path()?)),
            b"fsync@openssh.com" => {
                let (file, _) = self.file(number(fields)?)?;
                done(id, file.sync_all())
            }
            b"lsetstat@openssh.com" => {
                let path = fields.path()?;
                change_link(path, Wanted::read(fields)?)?;
                Ok(Packet::done(id))
            }
            b"statvfs@openssh.com" => Ok(room(id, &statvfs(fields.path()?)?)),
            b"fstatvfs@openssh.com" => {
                let (file, _) = self.file(number(fields)?)?;
                Ok(room(id, &fstatvfs(file)?))
            }
            b"limits@openssh.com" => Ok(Packet::new(wire::EXTENDED_REPLY, id)
                .u64(MAX_PACKET.into())
                .u64(MAX_DATA.into())
                .u64(MAX_DATA.into())
                .u64(MAX_HANDLES.into())),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn open(&mut self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        const READ: u32 = 1;
        const WRITE: u32 = 2;
        const APPEND: u32 = 4;
        const CREATE: u32 = 8;
        const TRUNCATE: u32 = 0x10;
        const EXCLUSIVE: u32 = 0x20;
        let path = fields.path()?;
        let flags = fields.u32()?;
        let mode = Wanted::read(fields)?.mode.unwrap_or(0o666);
        let has = |flag: u32| flags & flag != 0;
        let writes = has(WRITE) || has(APPEND);
        let mut options = OpenOptions::new();
        options.read(has(READ) || !writes).write(writes).append(has(APPEND)).mode(mode);
        options.truncate(has(TRUNCATE) && !has(APPEND)).create(has(CREATE) && writes);
        options.create_new(has(CREATE) && has(EXCLUSIVE) && writes);
        let file = options.open(path)?;
        self.hold(id, Open::File { file, appends: has(APPEND) })
    }

    fn open_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        let path = fields.path()?;
        let listing = Listing { dots: [".", ".."].into_iter(), rest: fs::read_dir(path)? };
        self.hold(id, Open::Directory(path.to_path_buf(), listing))
    }

    fn hold(&mut self, id: u32, open: Open) -> Result<Packet> {
        if self.open.len() >= self.most {
            return Err(io::Error::from(rustix::io::Errno::MFILE).into());
        }
        let handle = self.next;
        // After four thousand million files the numbers of closed ones come again.
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, open);
        Ok(Packet::new(wire::HANDLE, id).string(handle.to_be_bytes()))
    }

    fn file(&self, handle: u32) -> Result<(&File, bool)> {
        match self.open.get(&handle) {
            Some(Open::File { file, appends }) => Ok((file, *appends)),
            Some(Open::Directory(..)) | None => Err(NO_HANDLE),
        }
    }

    fn read(&self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        let (file, _) = self.file(number(fields)?)?;
        let (offset, length) = (fields.u64()?, fields.u32()?.min(MAX_DATA));
        let mut data = vec![0; usize::try_from(length).map_err(|_| Refusal::Bad("a length"))?];
        let read = loop {
            match file.read_at(&mut data, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if read == 0 && length > 0 {
            return Err(Refusal::End);
        }
        data.truncate(read);
        Ok(Packet::new(wire::DATA, id).string(data))
    }

    fn write(&self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        let (mut file, appends) = self.file(number(fields)?)?;
        let (offset, data) = (fields.u64()?, fields.string()?);
        done(id, if appends { file.write_all(data) } else { file.write_all_at(data, offset) })
    }

    fn metadata(&self, fields: &mut Fields<'_>) -> Result<Metadata> {
        match self.open.get(&number(fields)?) {
            Some(Open::File { file, .. }) => Ok(file.metadata()?),
            Some(Open::Directory(path, _)) => Ok(fs::metadata(path)?),
            None => Err(NO_HANDLE),
        }
    }

    fn set_attributes(&self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        let handle = number(fields)?;
        let wanted = Wanted::read(fields)?;
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => change_file(file, wanted)?,
            Some(Open::Directory(path, _)) => change(path, wanted)?,
            None => return Err(NO_HANDLE),
        }
        Ok(Packet::done(id))
    }

    fn read_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Result<Packet> {
        let Some(Open::Directory(path, listing)) = self.open.get_mut(&number(fields)?) else {
            return Err(NO_HANDLE);
        };
        let (mut names, mut count) = (Packet::new(wire::NAME, id), 0);
        for name in listing.take(NAMES) {
            let name = name?;
            // Removed between the listing and the look at it.
            let Ok(found) = fs::symlink_metadata(path.join(OsStr::from_bytes(&name))) else { continue };
            names = attributes::add(names.string(&name).string(attributes::line(&found, &name)), &found);
            count += 1;
        }
        if count == 0 {
            return Err(Refusal::End);
        }
        Ok(Packet::new(wire::NAME, id).u32(count).append(names.fields()))
    }
}

const NO_HANDLE: Refusal = Refusal::Bad("no such handle");

fn number(fields: &mut Fields<'_>) -> Result<u32> {
    Ok(u32::from_be_bytes(fields.string()?.try_into().map_err(|_| NO_HANDLE)?))
}

fn done(id: u32, outcome: io::Result<()>) -> Result<Packet> {
    outcome?;
    Ok(Packet::done(id))
}

fn attributed(id: u32, found: &Metadata) -> Packet {
    attributes::add(Packet::new(wire::ATTRS, id), found)
}

/// One name without attributes.
fn one_name(id: u32, name: &OsStr) -> Packet {
    Packet::new(wire::NAME, id).u32(1).string(name.as_bytes()).string(name.as_bytes()).u32(0)
}

/// The absolute path, whose last part need not exist.
fn real(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(fs::canonicalize(parent)?.join(name))
        }
        (found, _, _) => found,
    }
}

fn times((accessed, changed): (u32, u32)) -> Timestamps {
    let at = |second: u32| Timespec { tv_sec: second.into(), tv_nsec: 0 };
    Timestamps { last_access: at(accessed), last_modification: at(changed) }
}

// In this order: a new owner takes the set-id bits away, a new size the times.
fn change(path: &Path, wanted: Wanted) -> Result<()> {
    if let Some(size) = wanted.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::chown(path, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    if let Some(both) = wanted.times {
        utimensat(CWD, path, &times(both), AtFlags::empty())?;
    }
    Ok(())
}

fn change_file(file: &File, wanted: Wanted) -> Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    if let Some(both) = wanted.times {
        futimens(file, &times(both))?;
    }
    Ok(())
}

/// A link itself: it has neither size nor permissions of its own.
fn change_link(path: &Path, wanted: Wanted) -> Result<()> {
    if wanted.size.is_some() {
        return Err(Refusal::Unsupported);
    }
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode.filter(|_| !path.is_symlink()) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    if let Some(both) = wanted.times {
        utimensat(CWD, path, &times(both), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn room(id: u32, found: &StatVfs) -> Packet {
    // Of the flags the protocol knows two.
    let flags = u64::from(found.f_flag.contains(StatVfsMountFlags::RDONLY))
        | u64::from(found.f_flag.contains(StatVfsMountFlags::NOSUID)) << 1;
    [
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        flags,
        found.f_namemax,
    ]
    .into_iter()
    .fold(Packet::new(wire::EXTENDED_REPLY, id), Packet::u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_whose_last_part_is_missing_is_real_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(real(&root.join("./new")).unwrap(), root.join("new"));
        assert!(real(&root.join("no/new")).is_err());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        let packet = Packet::new(wire::RENAME, 1)
            .string(one.as_os_str().as_bytes())
            .string(two.as_os_str().as_bytes());
        let refused = Files::new(1).carry_out(wire::RENAME, 1, &mut Fields::new(packet.fields()));
        assert!(refused.is_err());
        assert_eq!(fs::read(&two).unwrap(), b"2");
    }

    #[test]
    fn handles_run_out_and_come_back() {
        let mut files = Files::new(1);
        let root = Packet::new(wire::OPENDIR, 1).string("/");
        let open = |files: &mut Files| files.carry_out(wire::OPENDIR, 1, &mut Fields::new(root.fields()));
        let handle = open(&mut files).unwrap();
        assert!(open(&mut files).is_err());
        files.carry_out(wire::CLOSE, 2, &mut Fields::new(handle.fields())).unwrap();
        assert!(open(&mut files).is_ok());
    }
}
