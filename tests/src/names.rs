//! Names as machines find them: from inside, by the resolver of whatever host they are on.

use std::time::Duration;

use anyhow::{Result, ensure};
use mashines_fleet::api::DEFAULT_APP;
use mashines_fleet::resolver::RESOLVER;

use crate::daemons::{DOMAIN, Fleet};
use crate::person::Door;
use crate::run::wait_for;

/// From inside one machine another of its account has its private name, and its public one by way of the fleet's name server; and what nobody has is
/// found nowhere.
pub fn one_finds_the_other(fleet: &Fleet, one: &str, other: &str) -> Result<()> {
    let configured = fleet.person.sh(one, Door::Ipv6, "cat /etc/resolv.conf")?;
    let first = configured.lines().find_map(|line| line.strip_prefix("nameserver "));
    ensure!(first == Some(&RESOLVER.to_string()), "{one} asks: {configured}");
    let machine = fleet.machine(other)?;
    let answers = [
        (format!("{other}.vm.{DEFAULT_APP}.internal"), Some(machine.private_ip)),
        (format!("{other}.{DOMAIN}"), Some(machine.ipv6)),
        (format!("nobody.vm.{DEFAULT_APP}.internal"), None),
    ];
    for (name, address) in answers {
        // The other machine's record may be a moment on its way to this one's host.
        wait_for(&name, Duration::from_secs(10), Duration::from_millis(300), || {
            let found = addresses(fleet, one, &name)?;
            let expected: Vec<String> = address.iter().map(ToString::to_string).collect();
            ensure!(found == expected, "{one} finds {name} at {found:?}, not {expected:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What a machine's C library says, with that resolver alone: nobody stands in for it.
fn addresses(fleet: &Fleet, slug: &str, name: &str) -> Result<Vec<String>> {
    let script = format!(
        "unshare --mount sh -c 'echo nameserver {RESOLVER} >/run/only && mount --bind /run/only /etc/resolv.conf && getent ahostsv6 {name}' || [ $? = 2 ]"
    );
    let said = fleet.person.sh(slug, Door::Ipv6, &script)?;
    let mut found: Vec<String> =
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    found.dedup();
    Ok(found)
}
