//! `mashines cp`: copies files to and from a machine, by scp.

use super::Context;
use crate::error::{CliError, Exit};
use crate::parse::{self, CopyPath};
use crate::ssh::{self, Via};

/// What to copy, and where to.
#[derive(clap::Args)]
#[command(after_help = "A path in a machine is MACHINE:PATH; one without a slash in front is in root's home.

Examples:
  mashines cp notes.txt web:
  mashines cp -r site/ web:/srv/
  mashines cp web:/var/log/syslog .")]
pub(super) struct Args {
    /// Sources, then the destination
    #[arg(required = true, num_args = 2.., value_parser = parse::copy_path)]
    paths: Vec<CopyPath>,
    /// Whole directories
    #[arg(long, short)]
    recursive: bool,
    /// This door, without trying
    #[arg(long)]
    via: Option<Via>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    context.only_locally("cp", "on your own machine: scp FILE root@MACHINE.{gateway}:PATH")?;
    let outside = |error: CliError| CliError { exit: Exit::Transport, ..error };
    let name = the_machine(&args.paths)?;
    let machine = context.client()?.machine(name).await.map_err(outside)?;
    let known_hosts = context.known_hosts().await.map_err(outside)?;
    let target = ssh::target(&machine, args.via.or(context.door(&machine)), known_hosts.as_deref()).await?;
    let mut arguments: Vec<String> = target.option_arguments().collect();
    arguments.extend(["-P".to_owned(), target.port.to_string()]);
    if args.recursive {
        arguments.push("-r".to_owned());
    }
    arguments.push("--".to_owned());
    arguments.extend(args.paths.iter().map(|path| match path.machine {
        Some(_) => target.scp_path(&path.path),
        None => local(&path.path),
    }));
    ssh::run("scp", arguments).await
}

/// The one machine among the paths: either the destination is in it, or all sources are.
fn the_machine(paths: &[CopyPath]) -> Result<&str, CliError> {
    let wrong = |why: &str| CliError::usage(format!("cannot copy: {why}")).next("mashines cp --help");
    let Some((destination, sources)) = paths.split_last() else {
        return Err(wrong("nothing to copy was named"));
    };
    let first = sources.first().and_then(|s| s.machine.as_deref());
    if sources.iter().any(|s| s.machine.as_deref() != first) {
        return Err(wrong("all sources are local or all are in one machine"));
    }
    match (first, destination.machine.as_deref()) {
        (Some(machine), None) | (None, Some(machine)) => Ok(machine),
        (None, None) => Err(wrong("no path names a machine, as in web:/srv")),
        (Some(_), Some(_)) => {
            Err(wrong("source and destination are both in machines; copy through a local file"))
        }
    }
}

/// A local path that scp cannot take for `host:path`.
fn local(path: &str) -> String {
    match path.split_once(':') {
        Some((before, _)) if !before.contains('/') => format!("./{path}"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine_of(paths: &[&str]) -> Result<String, CliError> {
        let paths: Vec<CopyPath> = paths.iter().map(|p| parse::copy_path(p).unwrap()).collect();
        the_machine(&paths).map(str::to_owned)
    }

    #[test]
    fn exactly_one_side_is_a_machine() {
        assert_eq!(machine_of(&["a", "b", "web:"]).unwrap(), "web");
        assert_eq!(machine_of(&["web:a", "web:b", "."]).unwrap(), "web");
        assert!(machine_of(&["a", "b"]).is_err());
        assert!(machine_of(&["web:a", "db:"]).is_err());
        assert!(machine_of(&["web:a", "b", "."]).is_err());
        assert!(machine_of(&["web:a", "db:b", "."]).is_err());
    }
}
