//! What a monitor and a guest are told, derived from what control asks for. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mashines_fleet::host_api::{MachineSpec, SshHostKey};
use mashines_fleet::id::{Epoch, VolumeId};
use mashines_fleet::resolver::RESOLVER;
use mashines_guest::config::{
    BUILTIN_BENCH, Config, File, HostKey, Interface, NO_ROOT, Prefix, Ready, Root, Volume, ssh_is_off,
};
use mashines_vmm::api::{DiskSpec, Hooks, NetSpec, VsockSpec};
use netd::api::{GATEWAY_V6, GUEST_MTU, tap_name};

use crate::decide::Room;
use crate::error::{HostError, Result};
use crate::image::LocalImage;
use crate::layout::Layout;

/// The context id of every guest: each has a monitor and a socket of its own, so it need not tell them apart.
const GUEST_CID: u32 = 3;

/// The most CPUs that a monitor gives a guest.
const MAX_VCPUS: u8 = 8;

/// The least memory that the kernels boot in, MiB.
const MIN_MEMORY_MIB: u64 = 128;

/// The most disks: `/dev/vda` to `/dev/vdz`.
const MAX_DISKS: usize = 26;

const MIB: u64 = 1 << 20;

/// Refuses what no monitor could run. Control checks the same for the person who asks; this is the last line.
pub fn check(spec: &MachineSpec) -> Result<()> {
    let bad = |what: String| Err(HostError::invalid(format!("machine {}: {what}", spec.id)));
    let guest = &spec.config.guest;
    if !(1..=MAX_VCPUS).contains(&guest.cpus) {
        return bad(format!("{} CPUs: 1 to {MAX_VCPUS} are possible", guest.cpus));
    }
    if guest.memory_mb < MIN_MEMORY_MIB {
        return bad(format!("{} MiB of memory: {MIN_MEMORY_MIB} is the least", guest.memory_mb));
    }
    if spec.volumes.len() != spec.config.mounts.len() {
        return bad(format!("{} mounts but {} volumes", spec.config.mounts.len(), spec.volumes.len()));
    }
    if spec.volumes.len() >= MAX_DISKS {
        return bad(format!("{} volumes: {} are possible", spec.volumes.len(), MAX_DISKS - 1));
    }
    for (volume, mount) in spec.volumes.iter().zip(&spec.config.mounts) {
        if volume.id != mount.volume {
            return bad(format!("volume {} stands where the mounts name {}", volume.id, mount.volume));
        }
        if volume.size_mib == 0 {
            return bad(format!("volume {} has no size", volume.id));
        }
        if !mount.path.starts_with('/') {
            return bad(format!(
                "volume {} is mounted at {:?}: an absolute path is needed",
                volume.id, mount.path
            ));
        }
    }
    Ok(())
}

/// What a machine takes of its host.
pub fn room(spec: &MachineSpec, image_bytes: u64) -> Room {
    Room {
        vcpus: u32::from(spec.config.guest.cpus),
        memory_mib: spec.config.guest.memory_mb,
        disk_mib: image_bytes.div_ceil(MIB).saturating_add(spec.volumes.iter().map(|v| v.size_mib).sum()),
    }
}

/// The monitor's spec.
pub fn monitor(
    spec: &MachineSpec,
    epoch: Epoch,
    image: &LocalImage,
    kernel_arguments: &str,
    layout: &Layout,
    hooks: Hooks,
) -> mashines_vmm::api::MachineSpec {
    let dir = layout.machine(&spec.id);
    mashines_vmm::api::MachineSpec {
        machine_id: spec.id.to_string(),
        epoch: epoch.0,
        vcpus: spec.config.guest.cpus,
        memory_mib: spec.config.guest.memory_mb,
        kernel: image.kernel.clone(),
        initrd: initrd(spec, image, dir.config()),
        cmdline: format!("{} {kernel_arguments}", image.cmdline).trim_end().to_owned(),
        disks: disks(spec, image, layout),
        nets: vec![NetSpec { tap: tap_name(spec.id.as_str()), mac: spec.net.mac.clone(), mtu: GUEST_MTU }],
        vsock: Some(VsockSpec { cid: GUEST_CID, socket: dir.vsock() }),
        state_dir: dir.run(epoch),
        hooks,
    }
}

/// The archives that the kernel unpacks one over the other. The SSH server is in the way of a machine that has an init and an sshd.
fn initrd(spec: &MachineSpec, image: &LocalImage, config: PathBuf) -> Vec<PathBuf> {
    let is_single_process = image.rootfs.is_some() && init_exec(spec, image).is_some();
    let ssh = image.ssh.iter().filter(|_| is_single_process).cloned();
    std::iter::once(image.initrd.clone()).chain(ssh).chain([config]).collect()
}

/// What runs in place of the image's init.
fn init_exec(spec: &MachineSpec, image: &LocalImage) -> Option<String> {
    if image.rootfs.is_none() {
        return Some(BUILTIN_BENCH.to_owned());
    }
    let words = spec.config.init.exec.as_deref().map(shell_line);
    words.or_else(|| image.init_exec.clone())
}

fn disks(spec: &MachineSpec, image: &LocalImage, layout: &Layout) -> Vec<DiskSpec> {
    let root = image.rootfs.as_ref().map(|base| DiskSpec {
        id: "root".to_owned(),
        path: layout.machine(&spec.id).overlay(),
        base: Some(base.clone()),
        size_bytes: image.image.rootfs_bytes,
        read_only: false,
    });
    let volumes = spec.volumes.iter().map(|volume| DiskSpec {
        id: volume.id.to_string(),
        path: layout.volume(&volume.id),
        base: None,
        size_bytes: volume.size_mib.saturating_mul(MIB),
        read_only: false,
    });
    root.into_iter().chain(volumes).collect()
}

/// The files that the disks need, with their sizes in bytes.
pub fn disk_files(disks: &[DiskSpec]) -> impl Iterator<Item = (&Path, u64)> {
    disks.iter().map(|disk| (disk.path.as_path(), disk.size_bytes))
}

/// The guest's configuration.
pub fn guest(spec: &MachineSpec, image: &LocalImage, dns: &[IpAddr]) -> Config {
    let mut config = Config::new(spec.id.as_str(), &spec.slug);
    config.interfaces = vec![Interface {
        mac: spec.net.mac.clone(),
        ipv6: Some(Prefix::host(spec.net.ipv6)),
        gateway6: Some(GATEWAY_V6),
        ipv4: None,
        gateway4: None,
        more_addresses: vec![Prefix::host(spec.net.private6)],
        mtu: Some(GUEST_MTU),
    }];
    config.ssh_authorized_keys = spec.ssh_keys.clone();
    config.ssh_user_ca = spec.ssh_user_ca.clone();
    config.ssh_host_keys = spec.ssh_host_key.iter().map(host_key).collect();
    config.dns = resolvers(dns);
    config.env = environment(spec);
    config.volumes = volumes(spec, image.rootfs.is_some());
    config.files = files(spec);
    config.init_exec = init_exec(spec, image);
    // A single process that was told to have no SSH server beside it has no port that is known.
    let alone = config.is_single_process() && ssh_is_off(&config.env);
    config.ready = Ready { tcp_port: image.ready_port.filter(|_| !alone) };
    if image.rootfs.is_none() {
        config.root = Root { device: NO_ROOT.to_owned(), ..Root::default() };
    }
    config
}

/// The resolver of whatever host the machine is on, which knows `.internal` names, and behind it those that it forwards to: while a host's daemon
/// starts again, the world's names are found nevertheless. A C library looks at three lines of resolv.conf (`MAXNS`).
fn resolvers(world: &[IpAddr]) -> Vec<IpAddr> {
    const MOST: usize = 3;
    std::iter::once(IpAddr::V6(RESOLVER)).chain(world.iter().copied()).take(MOST).collect()
}

fn host_key(key: &SshHostKey) -> HostKey {
    HostKey {
        kind: "ed25519".to_owned(),
        private_pem: key.private_pem.clone(),
        public: key.public.clone(),
        certificate: Some(key.certificate.clone()),
    }
}

/// The names of the Fly Machines platform, so that what runs there runs here.
fn environment(spec: &MachineSpec) -> BTreeMap<String, String> {
    let own = [
        ("FLY_APP_NAME", spec.app.clone()),
        ("FLY_MACHINE_ID", spec.id.to_string()),
        ("FLY_REGION", spec.region.clone()),
        ("FLY_PRIVATE_IP", spec.net.private6.to_string()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    own.chain(spec.config.env.clone()).collect()
}

fn volumes(spec: &MachineSpec, has_root: bool) -> Vec<Volume> {
    let letters = ('a'..='z').skip(usize::from(has_root));
    let mounts = spec.volumes.iter().zip(&spec.config.mounts);
    mounts
        .zip(letters)
        .map(|((volume, mount), letter)| Volume {
            device: format!("/dev/vd{letter}"),
            name: volume.name.clone(),
            mountpoint: mount.path.clone(),
            fs_uuid: Some(fs_uuid(&volume.id)),
        })
        .collect()
}

/// The UUID of a volume's file system (RFC 9562 version 8): made of its id, so that a host need not remember it.
fn fs_uuid(volume: &VolumeId) -> String {
    let digits = volume.as_str().trim_start_matches("vol_");
    let (head, tail) = digits.split_at_checked(2).unwrap_or((digits, ""));
    format!("6d617368-696e-80{head}-8000-{tail}")
}

fn files(spec: &MachineSpec) -> Vec<File> {
    let file = |file: &mashines_fleet::record::ConfigFile| File {
        path: file.guest_path.clone(),
        mode: 0o644,
        content_base64: file.raw_value.clone(),
    };
    spec.config.files.iter().map(file).collect()
}

/// Words as one line that a shell splits into the same words.
fn shell_line(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Images, tests::write};
    use crate::instance::tests::instance;

    fn image(dir: &Path) -> LocalImage {
        write(dir, "container-os", "sha256:00");
        Images::new(dir).find(&"container-os".parse().unwrap(), "sha256:00").unwrap()
    }

    #[test]
    fn disks_and_the_guests_volumes_stand_in_the_same_order() {
        let dir = tempfile::tempdir().unwrap();
        let (image, spec) = (image(dir.path()), instance().spec);
        let told = monitor(&spec, Epoch(1), &image, "", &Layout::new("/s"), Hooks::default());
        assert_eq!(told.disks[1].path, Path::new("/s/volumes/vol_0123456789abcd.img"));
        assert_eq!(told.disks[1].size_bytes, 64 << 20);
        let guest = guest(&spec, &image, &[]);
        assert_eq!(guest.volumes[0].device, "/dev/vdb");
        assert_eq!(guest.volumes[0].fs_uuid.as_deref(), Some("6d617368-696e-8001-8000-23456789abcd"));
        assert_eq!(guest.ready.tcp_port, Some(22));
    }

    #[test]
    fn a_kernel_is_told_what_its_image_says_and_then_what_the_host_says() {
        let dir = tempfile::tempdir().unwrap();
        let (image, spec) = (image(dir.path()), instance().spec);
        let told = |arguments| {
            monitor(&spec, Epoch(1), &image, arguments, &Layout::new("/s"), Hooks::default()).cmdline
        };
        assert_eq!(told(""), image.cmdline);
        assert_eq!(told("mitigations=off"), format!("{} mitigations=off", image.cmdline));
    }

    #[test]
    fn a_guest_asks_the_resolver_of_its_host_first_and_can_fall_back_on_the_worlds() {
        let dir = tempfile::tempdir().unwrap();
        let (image, spec) = (image(dir.path()), instance().spec);
        let ips = |text: &[&str]| text.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let world = ips(&["2001:db8::7", "2001:db8::8", "2001:db8::9"]);
        assert_eq!(guest(&spec, &image, &world).dns, ips(&["fdaa::3", "2001:db8::7", "2001:db8::8"]));
        assert_eq!(guest(&spec, &image, &[]).dns, ips(&["fdaa::3"]));
    }

    #[test]
    fn the_same_spec_on_two_hosts_differs_only_in_paths() {
        let dir = tempfile::tempdir().unwrap();
        let (image, spec) = (image(dir.path()), instance().spec);
        let a = monitor(&spec, Epoch(1), &image, "", &Layout::new("/a"), Hooks::default());
        let b = monitor(&spec, Epoch(2), &image, "", &Layout::new("/b"), Hooks::default());
        assert_eq!(a.nets, b.nets);
        let ids = |m: &mashines_vmm::api::MachineSpec| {
            m.disks.iter().map(|d| (d.id.clone(), d.size_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(ids(&a), ids(&b));
    }

    #[test]
    fn what_no_monitor_runs_is_refused_by_name() {
        let mut spec = instance().spec;
        assert!(check(&spec).is_ok());
        spec.config.guest.cpus = 9;
        assert!(check(&spec).unwrap_err().message.contains("9 CPUs"));
        let mut spec = instance().spec;
        spec.volumes.clear();
        assert!(check(&spec).is_err());
    }

    #[test]
    fn the_ssh_server_is_appended_exactly_for_a_machine_of_a_single_process() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, mut spec) = (image(dir.path()), instance().spec);
        let archives = |spec: &MachineSpec, image: &LocalImage| {
            let told = monitor(spec, Epoch(1), image, "", &Layout::new("/s"), Hooks::default());
            let has_init = !guest(spec, image, &[]).is_single_process();
            let names = told.initrd.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
            (names.collect::<Vec<_>>(), has_init)
        };
        let with_ssh = LocalImage { ssh: Some("/i/ssh.cpio".into()), ..plain.clone() };
        assert_eq!(archives(&spec, &with_ssh), (vec!["initrd".into(), "config.cpio".into()], true));
        let single = LocalImage { init_exec: Some("/app".into()), ..with_ssh.clone() };
        let appended = vec!["initrd".to_owned(), "ssh.cpio".into(), "config.cpio".into()];
        assert_eq!(archives(&spec, &single), (appended.clone(), false));
        let bench = LocalImage { rootfs: None, ..with_ssh.clone() };
        assert_eq!(archives(&spec, &bench), (vec!["initrd".into(), "config.cpio".into()], true));
        spec.config.init.exec = Some(vec!["/app".into()]);
        assert_eq!(archives(&spec, &with_ssh), (appended, false));
        // An image from before there was an SSH server boots as it did.
        assert_eq!(archives(&spec, &plain), (vec!["initrd".into(), "config.cpio".into()], false));
    }

    #[test]
    fn a_single_process_without_an_ssh_server_is_not_waited_for_at_port_22() {
        let dir = tempfile::tempdir().unwrap();
        let (image, mut spec) = (image(dir.path()), instance().spec);
        let waits = |spec: &MachineSpec| guest(spec, &image, &[]).ready.tcp_port.is_some();
        spec.config.init.exec = Some(vec!["/app".into()]);
        assert!(waits(&spec));
        spec.config.env.insert("MASHINES_SSH".into(), "off".into());
        assert!(!waits(&spec));
        spec.config.init.exec = None;
        assert!(waits(&spec), "an image with an init has its own sshd");
    }

    #[test]
    fn a_shell_gets_the_words_back() {
        assert_eq!(shell_line(&["a b".to_owned(), "it's".to_owned()]), r"'a b' 'it'\''s'");
    }
}
