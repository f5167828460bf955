//! The daemons' configuration in each place of the lab.

use std::path::Path;

use crate::daemons::DOMAIN;
use crate::lab;
use crate::netns::{ENTRY_IPV4, ENTRY_IPV6, Place, REGION, SHARED_IPV4};

/// Where control's API listens.
pub const API_PORT: u16 = 8443;
const HOST_PORT: u16 = 8444;

/// The configuration file of a place.
pub fn toml(place: Place, state: &Path, bin: &Path) -> String {
    let roles = match place {
        Place::Control => r#"["control"]"#,
        Place::Entry => r#"["netd", "entry"]"#,
        Place::A | Place::B => r#"["netd", "host"]"#,
        Place::Switch | Place::Client => "[]",
    };
    let common = format!(
        "id = \"{}\"\nregion = \"lab\"\nroles = {roles}\nstate_dir = \"{}\"\nunderlay = \"{}\"\n",
        place.name(),
        state.display(),
        place.underlay()
    );
    let netd = "[netd]\nunderlay = \"plain\"\n";
    let own = match place {
        Place::Control => control(place),
        Place::Entry => entry() + netd,
        Place::A | Place::B => host(bin) + netd,
        Place::Switch | Place::Client => String::new(),
    };
    common + &own
}

fn control(place: Place) -> String {
    format!(
        "[fleet]\ndomain = \"{DOMAIN}\"\nprefix = \"{REGION}\"\nssh_ports = [2201, 2299]\nsign_up = \"open\"\n\
         name_servers = [{{ name = \"ns1.{DOMAIN}\", addresses = [\"{ENTRY_IPV4}\", \"{ENTRY_IPV6}\"] }}]\n\
         [control]\nlisten = \"[::]:{API_PORT}\"\nnames = [\"{}\"]\n",
        place.underlay()
    )
}

fn entry() -> String {
    let [one, two] = SHARED_IPV4;
    format!(
        "[entry]\npublic_ipv4 = [\"{ENTRY_IPV4}\", \"{one}\", \"{two}\"]\npublic_ipv6 = [\"{ENTRY_IPV6}\"]\n\
         [gateway]\nssh_listen = [\"0.0.0.0:22\", \"[{ENTRY_IPV6}]:22\"]\ntls_listen = [\"0.0.0.0:443\", \"[::]:443\"]\n\
         http_listen = [\"0.0.0.0:80\", \"[::]:80\"]\nports_bind = [\"{ENTRY_IPV4}\", \"{one}\", \"{two}\"]\n\
         [dns]\nlisten = [\"{ENTRY_IPV4}:53\", \"[{ENTRY_IPV6}]:53\"]\n"
    )
}

/// Both hosts stand in one VM: what they promise is what each may use of it. All the names of this world are those of the fleet's own zone.
fn host(bin: &Path) -> String {
    format!(
        "[host]\nlisten = \"[::]:{HOST_PORT}\"\nimages_dir = \"/var/lib/mashines-images\"\nvmm_binary = \"{}\"\nguest_dns = [\"{ENTRY_IPV6}\"]\n\
         kernel_arguments = \"{}\"\n\
         [host.capacity]\nvcpus = 8\nmemory_mib = 2048\ndisk_mib = 16384\ndisk_reserve_mib = 512\n",
        bin.join("mashines-vmm").display(),
        lab::kernel_arguments()
    )
}
