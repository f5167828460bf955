//! `mashines volumes`: disks that outlive machines.

use mashines_fleet::api::{CreateVolume, DEFAULT_APP, Machine, Volume};

use super::{Context, app};
use crate::error::{CliError, Exit};
use crate::parse::{self, Mebibytes};
use crate::text::{self, Table};

/// What to do.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the account's volumes
    #[command(after_help = "Example:\n  mashines volumes ls --json")]
    Ls,
    /// Make a volume; its bytes are placed with the first machine that mounts it
    #[command(
        after_help = "Example:\n  mashines volumes create data 10G\n  mashines launch --name db --volume data:/srv"
    )]
    Create {
        /// Its name, unique in the app
        name: String,
        /// Its size, such as 10G
        #[arg(value_parser = parse::size)]
        size: Mebibytes,
        /// The app
        #[arg(long, default_value = DEFAULT_APP)]
        app: String,
        /// The region; any when absent
        #[arg(long)]
        region: Option<String>,
    },
    /// Remove a volume and what is on it. One that is attached is refused
    #[command(after_help = "Example:\n  mashines volumes rm data --yes")]
    Rm {
        /// The volume: name or id
        volume: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match args.action {
        Action::Ls => list(context).await,
        Action::Create { name, size, app, region } => create(name, size, &app, region, context).await,
        Action::Rm { volume, yes } => remove(&volume, yes, context).await,
    }
}

async fn list(context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let volumes: Vec<Volume> = client.get("list the volumes", "/v1/volumes").await?;
    let machines = if context.json { Vec::new() } else { client.machines().await? };
    context.answer(&volumes, &table(&volumes, &machines, text::now_ms())).await
}

async fn create(
    name: String,
    Mebibytes(size_mib): Mebibytes,
    in_app: &str,
    region: Option<String>,
    context: &mut Context<'_>,
) -> Result<Exit, CliError> {
    let path = format!("/v1/apps/{}/volumes", app(in_app)?);
    let what = format!("make volume `{name}`");
    let request = CreateVolume { name, size_gb: None, size_mib: Some(size_mib), region };
    let volume: Volume = context.client()?.post(&what, &path, &request).await?;
    let size = text::mebibytes(volume.size_mib);
    let text =
        format!("volume {} of {size} is made; attach it with: --volume {}:/PATH\n", volume.id, volume.name);
    context.answer(&volume, &text).await
}

async fn remove(name: &str, yes: bool, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let volume = client.volume(name).await?;
    if !yes {
        let size = text::mebibytes(volume.size_mib);
        let ask = format!("Remove volume {} ({size}) with everything on it?", volume.name);
        context.sure(&ask, &format!("mashines volumes rm {} --yes", volume.name)).await?;
    }
    let path = format!("/v1/apps/{}/volumes/{}", volume.app, volume.id);
    client.delete(&format!("remove volume `{}`", volume.name), &path).await?;
    let text = format!("volume {} is removed\n", volume.name);
    context.answer(&serde_json::json!({"id": volume.id, "name": volume.name}), &text).await
}

fn table(volumes: &[Volume], machines: &[Machine], now_ms: u64) -> String {
    if volumes.is_empty() {
        return "no volumes; make one with: mashines volumes create NAME SIZE\n".to_owned();
    }
    let mut table = Table::new(["ID", "NAME", "APP", "SIZE", "STATE", "MACHINE", "HOST", "AGE"]);
    for v in volumes {
        let machine = v.attached_machine_id.as_ref().map(|id| {
            machines.iter().find(|m| &m.id == id).map_or_else(|| id.to_string(), |m| m.slug.to_string())
        });
        table.row([
            v.id.to_string(),
            v.name.clone(),
            v.app.to_string(),
            text::mebibytes(v.size_mib),
            v.state.clone(),
            machine.unwrap_or_else(|| "-".to_owned()),
            v.host.as_ref().map_or("-".to_owned(), ToString::to_string),
            text::age_of(now_ms, &v.created_at),
        ]);
    }
    table.render()
}
