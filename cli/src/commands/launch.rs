//! `mashines launch`: makes a machine and waits until it is ready.

use std::time::Duration;

use mashines_fleet::api::{
    ConfigRequest, CreateMachine, DEFAULT_APP, GuestRequest, Machine, MountRequest, NewVolume,
};
use mashines_fleet::id::Epoch;
use mashines_fleet::record::services::Service;

use super::wait::{self, Goal, Waiting};
use super::{Context, app};
use crate::doors::{self, Shown};
use crate::error::{CliError, Exit};
use crate::parse::{self, Mebibytes, VolumeArg};
use crate::progress::Progress;

/// How long a machine may take when nobody says.
const PATIENCE: Duration = Duration::from_secs(180);

/// What to launch.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines launch --name web
  mashines launch --name db --vcpu 2 --memory 2G --volume data:20G:/var/lib/postgresql
  mashines launch --name api --service 443:8080     # https://api.DOMAIN leads to the machine's port 8080
  mashines launch --name web --env LOG=debug --timeout 5m --json | jq -r .doors.ipv6")]
pub(super) struct Args {
    /// Its name, unique in the fleet: web is at web.DOMAIN; made up when absent
    #[arg(long)]
    name: Option<String>,
    /// What it boots
    #[arg(long, default_value = "container-os")]
    image: String,
    /// Virtual CPUs, 1 to 8
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpu: u32,
    /// Memory, at least 128M
    #[arg(long, default_value = "512M", value_parser = parse::size)]
    memory: Mebibytes,
    /// A volume: NAME:SIZE[:PATH] makes one, NAME[:PATH] takes one that exists; mounted at /NAME; repeatable
    #[arg(long = "volume", value_name = "VOLUME", value_parser = parse::volume)]
    volumes: Vec<VolumeArg>,
    /// An environment variable of the workload, KEY=VALUE; repeatable
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE", value_parser = parse::environment)]
    env: Vec<(String, String)>,
    /// A public port and the machine's port that it leads to, PUBLIC:INTERNAL[/http|h2|tls|tcp]; repeatable. `http`, the default, and
    /// `h2` (HTTP/2 to the machine, for gRPC) speak HTTPS to the world; `tls` ends TLS; `tcp` passes it through. Without any, 443 leads to 80
    #[arg(long = "service", value_name = "SERVICE", value_parser = parse::service)]
    services: Vec<Service>,
    /// Whoever comes to it while it is stopped starts it
    #[arg(long)]
    autostart: bool,
    /// What is shown at terminals is recorded by the gateway
    #[arg(long)]
    record_sessions: bool,
    /// The region; any when absent
    #[arg(long)]
    region: Option<String>,
    /// The host; administrators only
    #[arg(long)]
    host: Option<String>,
    /// The app it belongs to
    #[arg(long, default_value = DEFAULT_APP)]
    app: String,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let limit = args.waiting.limit(PATIENCE);
    let path = format!("/v1/apps/{}/machines", app(&args.app)?);
    let what = match &args.name {
        Some(name) => format!("launch `{name}`"),
        None => "launch a machine".to_owned(),
    };
    let mut machine: Machine = client.post(&what, &path, &request(args)).await?;
    progress.done(context.session, &format!("created {}", machine.slug)).await?;
    if let Some(limit) = limit {
        machine = wait::settle(context, machine, Goal::StartedAfter(Epoch(0)), limit, &progress).await?;
    }
    let shown = Shown::from(machine);
    let text = told(&shown);
    context.answer(&shown, &text).await
}

fn request(args: Args) -> CreateMachine {
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    for VolumeArg { name, size, path } in args.volumes {
        match size {
            Some(Mebibytes(size_mib)) => volumes.push(NewVolume { name, size_mib, path: Some(path) }),
            None => mounts.push(MountRequest { volume: name, path }),
        }
    }
    let guest = GuestRequest { cpu_kind: None, cpus: Some(args.vcpu), memory_mb: Some(args.memory.0) };
    CreateMachine {
        name: args.name,
        region: args.region,
        host: args.host,
        config: ConfigRequest {
            image: args.image,
            guest: Some(guest),
            env: args.env.into_iter().collect(),
            mounts,
            services: args.services,
            autostart: args.autostart,
            record_sessions: args.record_sessions,
            ..ConfigRequest::default()
        },
        volumes,
        skip_launch: false,
    }
}

fn told(shown: &Shown) -> String {
    let machine = &shown.machine;
    let at = machine.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
    let state = machine.state.word();
    format!("{} is {state}{at}\n{}\n{}", machine.slug, doors::addresses(machine), shown.doors.render())
}
