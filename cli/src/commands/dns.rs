//! `mashines dns`: what owners put into DNS below a machine's name, keys for updates by programs, and the keys of the fleet's zones.

use mashines_fleet::api::{
    AddRecord, Delegation, DnsRecords, Done, DsSeen, Machine, RemoveRecords, UpdateKeyMade, Zone,
};
use mashines_fleet::own_record;
use mashines_fleet::record::{OwnRecord, ZoneKeyState};

use super::Context;
use crate::client::{Client, machine_path, unknown};
use crate::error::{CliError, Exit};
use crate::text::{self, Table};

const ZONES: &str = "/v1/fleet/zones";

/// What to do.
#[derive(clap::Args)]
#[command(
    after_help = "NAME is below the machine's: `www` is www.web.mashine.dev; `@` is the machine's own name. DATA is as in a zone
file, and names in it end with a dot. Types: A, AAAA, CAA, CNAME, MX, SRV, SSHFP, TLSA, TXT.

Examples:
  mashines dns ls web
  mashines dns add web www CNAME www.example.org.
  mashines dns add web --ttl 3600 @ MX 10 mail.example.org.
  mashines dns add web _dmarc TXT 'v=DMARC1; p=reject'
  mashines dns rm web www
  mashines dns rm web @ TXT 'v=spf1 -all'
  mashines dns update-key web                # for certbot, lego, nsupdate: _acme-challenge below the name
Administrators:
  mashines dns keys                          # of the fleet's zones, and what to do next
  mashines dns ds mashine.dev                # for the registrar
  mashines dns rollover mashine.dev"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the records that owners put at a machine's name
    Ls {
        /// The machine: name or id
        machine: String,
    },
    /// Add a record, or change its TTL
    Add {
        /// The machine: name or id
        machine: String,
        /// Below the machine's name; @ for its own
        name: String,
        /// A, AAAA, CAA, CNAME, MX, SRV, SSHFP, TLSA or TXT
        #[arg(value_name = "TYPE")]
        kind: String,
        /// As in a zone file; a TXT's text needs no quotes of its own. Options come before it
        #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
        data: Vec<String>,
        /// How long resolvers may keep it, seconds, 30 to 86400
        #[arg(long, default_value_t = own_record::DEFAULT_TTL)]
        ttl: u32,
    },
    /// Remove the records of a name, of one type, or one record
    Rm {
        /// The machine: name or id
        machine: String,
        /// Below the machine's name; @ for its own
        name: String,
        /// Of this type only
        #[arg(value_name = "TYPE")]
        kind: Option<String>,
        /// With this data only
        #[arg(num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
        data: Vec<String>,
    },
    /// Make a key with which programs change _acme-challenge below the machine's name (RFC 2136). It is shown once
    UpdateKey {
        /// The machine: name or id
        machine: String,
        /// End the key's use instead
        #[arg(long)]
        revoke: bool,
    },
    /// Show the keys of the fleet's zones, and what to do next; administrators
    Keys,
    /// Print what the parent of a zone is to have: DS, CDS and CDNSKEY; administrators
    Ds {
        /// The zone; all when absent
        zone: Option<String>,
    },
    /// Begin a rollover of a zone's key, or go on with one; administrators
    Rollover {
        /// The zone
        zone: String,
        /// The parent has the new DS: go on at once. Control goes on by itself too, when it has seen it
        #[arg(long)]
        ds_seen: bool,
        /// With --ds-seen: though control does not see it there. Wrongly said, the zone is bogus once the old key is gone
        #[arg(long, requires = "ds_seen")]
        anyway: bool,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    match args.action {
        Action::Ls { machine } => {
            let machine = client.machine(&machine).await?;
            let what = format!("list the DNS records of `{}`", machine.slug);
            let records: DnsRecords = client.get(&what, &records_path(&machine)).await?;
            let text = table(&machine, &records);
            context.answer(&records, &text).await
        }
        Action::Add { machine, name, kind, data, ttl } => {
            let machine = client.machine(&machine).await?;
            let data = data_of(&kind, &data)?;
            let record = AddRecord { name, kind, ttl: Some(ttl), data };
            let what = format!("add the record to `{}`", machine.slug);
            let records: DnsRecords = client.post(&what, &records_path(&machine), &record).await?;
            let text = format!("{}: {}\n", records.name, count(records.records.len()));
            context.answer(&records, &text).await
        }
        Action::Rm { machine, name, kind, data } => {
            let machine = client.machine(&machine).await?;
            let words = Some(&data).filter(|data| !data.is_empty());
            let data = kind.as_deref().zip(words).map(|(kind, words)| data_of(kind, words)).transpose()?;
            let query = encoded(&RemoveRecords { name, kind, data });
            let what = format!("remove the record of `{}`", machine.slug);
            let path = format!("{}?{query}", records_path(&machine));
            let records: DnsRecords = client.delete_for(&what, &path).await?;
            let text = format!("{}: {} left\n", records.name, count(records.records.len()));
            context.answer(&records, &text).await
        }
        Action::UpdateKey { machine, revoke } => update_key(&machine, revoke, &client, context).await,
        Action::Keys => {
            let zones = zones(&client).await?;
            let text = keys_table(&zones) + &parents(&zones);
            context.answer(&zones, &text).await
        }
        Action::Ds { zone } => {
            let mut zones = zones(&client).await?;
            if let Some(name) = zone {
                let wanted = name.trim_end_matches('.').to_ascii_lowercase();
                if !zones.iter().any(|zone| zone.zone.as_str() == wanted) {
                    let known = zones.iter().map(|zone| zone.zone.as_str());
                    return Err(unknown("zone", &name, known, "mashines dns keys"));
                }
                zones.retain(|zone| zone.zone.as_str() == wanted);
            }
            let text: String = zones.iter().map(for_the_parent).collect();
            context.answer(&zones, &text).await
        }
        Action::Rollover { zone, ds_seen, anyway } => {
            let zone = zone_segment(&zone)?;
            let step = if ds_seen { "ds-seen" } else { "rollover" };
            let what = format!("roll the key of {zone} over");
            let path = format!("{ZONES}/{zone}/{step}");
            let body = if ds_seen { serde_json::json!(DsSeen { anyway }) } else { serde_json::json!({}) };
            let zone: Zone = client.post(&what, &path, &body).await?;
            let text = format!(
                "{}{}next: {}\n",
                keys_table(std::slice::from_ref(&zone)),
                parents(std::slice::from_ref(&zone)),
                zone.next
            );
            context.answer(&zone, &text).await
        }
    }
}

fn records_path(machine: &Machine) -> String {
    machine_path(machine, "/dns/records")
}

async fn zones(client: &Client) -> Result<Vec<Zone>, CliError> {
    client.get("list the zones", ZONES).await
}

/// The data as a zone file has it. The words of a TXT that were typed without quotes of their own are one text: the shell has taken the
/// quotes that were meant. Since it may hold a hyphen (`v=spf1 -all`), an option behind it would become a part of it.
fn data_of(kind: &str, words: &[String]) -> Result<String, CliError> {
    if let Some(option) = words.iter().find(|word| matches!(word.as_str(), "--ttl" | "--json" | "--account"))
    {
        return Err(CliError::usage(format!(
            "{option} stands behind the data, which it would become a part of"
        ))
        .next(format!("mashines dns add {option} … MACHINE NAME TYPE DATA")));
    }
    let text = words.join(" ");
    if kind.eq_ignore_ascii_case("TXT") && !text.contains('"') {
        let strings: Vec<String> = text.as_bytes().chunks(255).map(mashines_fleet::rdata::quoted).collect();
        return Ok(strings.join(" "));
    }
    Ok(text)
}

/// A query string: everything that could mean something there is escaped.
fn encoded(query: &RemoveRecords) -> String {
    let escape = |text: &str| {
        let byte = |b: u8| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        };
        text.bytes().map(byte).collect::<String>()
    };
    let mut parts = vec![format!("name={}", escape(&query.name))];
    parts.extend(query.kind.iter().map(|kind| format!("type={}", escape(kind))));
    parts.extend(query.data.iter().map(|data| format!("data={}", escape(data))));
    parts.join("&")
}

/// A zone's name as one path segment.
fn zone_segment(name: &str) -> Result<&str, CliError> {
    let name = name.trim_end_matches('.');
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 253 && name.chars().all(usable) {
        return Ok(name);
    }
    Err(CliError::usage(format!("{name:?} cannot be a zone's name")).next("mashines dns keys"))
}

async fn update_key(
    name: &str,
    revoke: bool,
    client: &Client,
    context: &mut Context<'_>,
) -> Result<Exit, CliError> {
    let machine = client.machine(name).await?;
    let path = machine_path(&machine, "/dns/update-key");
    if revoke {
        let done: Done =
            client.delete_for(&format!("revoke the update key of `{}`", machine.slug), &path).await?;
        return context.answer(&done, &format!("{}: the update key is good no more\n", machine.slug)).await;
    }
    let what = format!("make an update key for `{}`", machine.slug);
    let key: UpdateKeyMade = client.post(&what, &path, &serde_json::json!({})).await?;
    let mut text = text::fields([
        ("zone", key.zone.clone()),
        ("key", key.name.clone()),
        ("algorithm", key.algorithm.clone()),
        ("secret", key.secret.clone()),
    ]);
    text.push_str(&format!(
        "\nThe secret is not shown again. It changes TXT records at _acme-challenge.{0} and below, nothing else:\n  nsupdate -y {1}:{0}:{2}\n",
        key.name, key.algorithm, key.secret
    ));
    context.answer(&key, &text).await
}

fn count(records: usize) -> String {
    match records {
        1 => "1 record".to_owned(),
        many => format!("{many} records"),
    }
}

fn table(machine: &Machine, records: &DnsRecords) -> String {
    if records.records.is_empty() {
        return format!(
            "{} has no records of its owner's; add one with: mashines dns add {} NAME TYPE DATA\n",
            records.name, machine.slug
        );
    }
    let mut table = Table::new(["NAME", "TTL", "TYPE", "DATA"]);
    for OwnRecord { name, kind, ttl, data } in &records.records {
        let name = if name.is_empty() { "@" } else { name };
        table.row([name.to_owned(), ttl.to_string(), kind.clone(), data.clone()]);
    }
    table.render()
}

fn state(state: ZoneKeyState) -> &'static str {
    match state {
        ZoneKeyState::Published => "published",
        ZoneKeyState::Announced => "announced",
        ZoneKeyState::Active => "active",
        ZoneKeyState::Retired => "retired",
    }
}

fn keys_table(zones: &[Zone]) -> String {
    let mut table = Table::new(["ZONE", "KEY", "STATE", "SINCE", "AT THE PARENT", "NEXT"]);
    for zone in zones {
        for (at, key) in zone.keys.iter().enumerate() {
            let next = if at == 0 { zone.next.clone() } else { String::new() };
            let parent = if key.for_parent { "should be" } else { "-" };
            table.row([
                zone.zone.to_string(),
                key.tag.to_string(),
                state(key.state).to_owned(),
                key.since.clone(),
                parent.to_owned(),
                next,
            ]);
        }
    }
    table.render()
}

/// Whether anybody checks the signatures: a line a zone.
fn parents(zones: &[Zone]) -> String {
    let word = |state: Delegation| match state {
        Delegation::Unknown => "unknown",
        Delegation::Secure => "secure",
        Delegation::Insecure => "insecure",
        Delegation::Broken => "broken",
    };
    // A control of before this question has nothing to say.
    let told = zones.iter().filter(|zone| !zone.parent.says.is_empty());
    told.map(|zone| format!("{}: {}: {}\n", zone.zone, word(zone.parent.state), zone.parent.says)).collect()
}

/// Lines of a zone file, as registrars take them.
fn for_the_parent(zone: &Zone) -> String {
    let lines = zone.keys.iter().filter(|key| key.for_parent).map(|key| {
        let name = &zone.zone;
        format!("{name}. IN DS {0}\n{name}. IN CDS {0}\n{name}. IN CDNSKEY {1}\n", key.ds, key.dnskey)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_txt_are_one_text_and_a_long_one_is_split() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(data_of("TXT", &words("v=spf1 -all")).unwrap(), "\"v=spf1 -all\"");
        assert_eq!(data_of("TXT", &words("\"one\" \"two\"")).unwrap(), "\"one\" \"two\"");
        assert_eq!(data_of("MX", &words("10 mail.example.org.")).unwrap(), "10 mail.example.org.");
        let long = data_of("txt", &["x".repeat(300)]).unwrap();
        assert_eq!(long, format!("\"{}\" \"{}\"", "x".repeat(255), "x".repeat(45)));
    }

    #[test]
    fn nothing_of_a_query_is_taken_for_something_else() {
        let query =
            RemoveRecords { name: "_a.*".into(), kind: Some("TXT".into()), data: Some("\"a&b=c %\"".into()) };
        assert_eq!(encoded(&query), "name=_a.%2A&type=TXT&data=%22a%26b%3Dc%20%25%22");
    }
}
