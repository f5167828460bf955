//! `mashines top`: the machines as they are now, what they use, and their moves as they happen.
//!
//! On a terminal one block is drawn over the last each second, without the alternative screen, so that the last one stays to be read.
//! Elsewhere block follows block (`--json`: line follows line), or there is one (`--once`).
//!
//! It ends with `q` or Ctrl-C. On the person's own terminal keys come one by one while it runs ([`Keys`]). In the lobby the gateway ends a
//! command at Ctrl-C; a `q` comes as a line of the session's standard input.

use std::collections::HashMap;
use std::time::Duration;

use mashines_fleet::api::{Machine, Migration, Usage};
use mashines_fleet::id::{MachineId, MigrationId};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Context;
use crate::client::Client;
use crate::error::{CliError, Exit};
use crate::figures;
use crate::session::{Place, Session};
use crate::text::{self, Table};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// How often.
#[derive(clap::Args)]
#[command(
    after_help = "CPU is in percent of one CPU, MEMORY what the machine's monitor holds; hosts report both every few seconds.
q or Ctrl-C ends it (in the lobby: q and Enter, or Ctrl-C).

Examples:
  mashines top
  mashines top --once
  mashines top --json | jq -c '.machines[] | [.name, .cpu_percent]'"
)]
pub(super) struct Args {
    /// Show it once
    #[arg(long)]
    once: bool,
}

/// One look, as `--json` prints it: a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Look {
    /// Unix milliseconds.
    at: u64,
    machines: Vec<Row>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    cpus: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_bytes: Option<u64>,
    memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<Move>,
}

/// A move under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Move {
    id: MigrationId,
    from: String,
    to: String,
    /// `pre-copy, 212 MiB sent, round 2`.
    progress: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    if args.once {
        let look = look(&client).await?;
        let text = block(&look, usize::MAX, usize::MAX);
        return context.answer(&look, &text).await;
    }
    let in_place = !context.json && draws_in_place(context.session);
    let mut keys = Keys::listen(context.session, in_place);
    let mut drawn = 0;
    loop {
        let look = match look(&client).await {
            Ok(look) => Some(look),
            // Control restarting is no reason to stop watching.
            Err(error) if error.exit == Exit::Unreachable && drawn > 0 => None,
            Err(error) => return Err(error),
        };
        if let Some(look) = look {
            drawn = show(context, &look, in_place, drawn).await?;
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = keys.end(context.session) => return Ok(Exit::Ok),
        }
    }
}

/// Draws a look; the lines that are on the screen then.
async fn show(
    context: &mut Context<'_>,
    look: &Look,
    in_place: bool,
    drawn: usize,
) -> Result<usize, CliError> {
    if context.json {
        let line = serde_json::to_string(look)
            .map_err(|e| CliError::failed(format!("cannot encode the answer: {e}")))?;
        context.session.out(&format!("{line}\n")).await?;
        return Ok(1);
    }
    if !in_place {
        context.session.out(&format!("{}\n", block(look, usize::MAX, usize::MAX))).await?;
        return Ok(1);
    }
    let text = block(look, context.session.width, rows(context.session));
    // Up to the block's first line, and what is below goes: a shorter block leaves nothing of a longer one.
    let back = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
    context.session.out(&format!("{back}\r\x1b[J{text}")).await?;
    Ok(text.lines().count())
}

/// A person sees what is written to standard output, on a terminal.
fn draws_in_place(session: &Session) -> bool {
    use std::io::IsTerminal as _;
    match session.place {
        Place::Local => session.terminal && std::io::stdout().is_terminal(),
        Place::Lobby { .. } => session.terminal,
    }
}

fn rows(session: &Session) -> usize {
    match session.place {
        Place::Local => {
            let size = termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0);
            size.map_or(session.height, |size| usize::from(size.ws_row))
        }
        Place::Lobby { .. } => session.height,
    }
}

/// The machines, what they use, and the moves of those that are being moved.
async fn look(client: &Client) -> Result<Look, CliError> {
    let machines = client.machines().await?;
    let usage: Vec<Usage> = client.get("ask what the machines use", "/v1/usage").await?;
    let mut moves = HashMap::new();
    for id in machines.iter().filter_map(|machine| machine.migration.as_ref()) {
        match client
            .get::<Migration>(&format!("look at migration {id}"), &format!("/v1/migrations/{id}"))
            .await
        {
            Ok(migration) => drop(moves.insert(migration.machine.clone(), migration)),
            // It was over before it could be looked at.
            Err(error) if error.exit == Exit::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(together(text::now_ms(), &machines, &usage, &moves))
}

fn together(at: u64, machines: &[Machine], usage: &[Usage], moves: &HashMap<MachineId, Migration>) -> Look {
    let rows = machines.iter().map(|machine| {
        let used = usage.iter().find(|usage| usage.machine == machine.id);
        let migration = moves.get(&machine.id).filter(|migration| !migration.done).map(|migration| Move {
            id: migration.id.clone(),
            from: migration.source.to_string(),
            to: migration.destination.to_string(),
            progress: figures::underway(migration),
        });
        Row {
            name: machine.slug.to_string(),
            state: machine.state.word().to_owned(),
            host: machine.host.as_ref().map(ToString::to_string),
            cpu_percent: used.and_then(|used| used.cpu_percent),
            cpus: machine.config.guest.cpus,
            resident_bytes: used.map(|used| used.resident_bytes).filter(|bytes| *bytes > 0),
            memory_bytes: machine.config.guest.memory_mb.saturating_mul(1 << 20),
            migration,
        }
    });
    Look { at, machines: rows.collect() }
}

/// A look as text of at most so many columns and lines.
fn block(look: &Look, columns: usize, lines: usize) -> String {
    if look.machines.is_empty() {
        return "no machines; make one with: mashines launch --name NAME\n".to_owned();
    }
    let mut table = Table::new(["NAME", "STATE", "HOST", "CPU %", "OF", "MEMORY", "OF", "MOVE"]);
    for row in &look.machines {
        let moving = row.migration.as_ref().map(|m| format!("{} to {}: {}", m.from, m.to, m.progress));
        table.row([
            row.name.clone(),
            row.state.clone(),
            row.host.clone().unwrap_or_else(|| "-".to_owned()),
            row.cpu_percent.map_or("-".to_owned(), |percent| format!("{percent:.1}")),
            row.cpus.to_string(),
            row.resident_bytes.map_or("-".to_owned(), text::bytes),
            text::bytes(row.memory_bytes),
            moving.unwrap_or_default(),
        ]);
    }
    let all = table.render();
    // A line that wraps, or a block that scrolls, could not be drawn over. One line stays free for the cursor.
    let room = lines.saturating_sub(1);
    let total = all.lines().count();
    let shown = if total > room { room.saturating_sub(1).max(1) } else { total };
    let mut text = String::new();
    for line in all.lines().take(shown) {
        text.extend(line.chars().take(columns.saturating_sub(1)));
        text.push('\n');
    }
    if shown < total {
        text.push_str(&format!("and {} more\n", total - shown));
    }
    text
}

/// The keyboard while a block is drawn again and again.
enum Keys {
    /// The person's own terminal, a byte a key; its settings come back when this goes. One reader for all the time: a read that is given
    /// up would take the next key with it.
    Own { stdin: tokio::io::Stdin, interrupts: Signal, _terminal: Restore },
    /// Lines of the lobby.
    Lines,
    /// Nobody types; Ctrl-C of a process ends it anyhow.
    Nobody,
}

/// Terminal settings to be put back.
struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that went away needs nothing back.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

impl Keys {
    fn listen(session: &Session, in_place: bool) -> Self {
        match (&session.place, in_place) {
            (_, false) => Self::Nobody,
            (Place::Lobby { .. }, true) => Self::Lines,
            (Place::Local, true) => Self::own().unwrap_or(Self::Nobody),
        }
    }

    /// Ctrl-C is listened for before anything is changed: it must not end the process in between.
    fn own() -> Option<Self> {
        let interrupts = signal(SignalKind::interrupt()).ok()?;
        let _terminal = unbuffered()?;
        Some(Self::Own { stdin: tokio::io::stdin(), interrupts, _terminal })
    }

    /// Returns when the person wants it to end.
    async fn end(&mut self, session: &mut Session) {
        match self {
            Self::Own { stdin, interrupts, .. } => {
                loop {
                    tokio::select! {
                        _ = interrupts.recv() => return,
                        key = stdin.read_u8() => match key {
                            Ok(b'q' | b'Q') => return,
                            Ok(_) => {}
                            // Nobody types any more.
                            Err(_) => {
                                interrupts.recv().await;
                                return;
                            }
                        }
                    }
                }
            }
            Self::Lines => {
                let Some(stdin) = &mut session.stdin else { return std::future::pending().await };
                loop {
                    let mut line = String::new();
                    match stdin.read_line(&mut line).await {
                        Ok(0) | Err(_) => break,
                        Ok(_) if line.trim().eq_ignore_ascii_case("q") => return,
                        Ok(_) => {}
                    }
                }
                std::future::pending().await
            }
            Self::Nobody => std::future::pending().await,
        }
    }
}

/// Keys come at once and are not shown; Ctrl-C still interrupts. None where standard input is no terminal.
fn unbuffered() -> Option<Restore> {
    let before = termios::tcgetattr(std::io::stdin()).ok()?;
    let mut now = before.clone();
    now.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
    now.special_codes[SpecialCodeIndex::VMIN] = 1;
    now.special_codes[SpecialCodeIndex::VTIME] = 0;
    termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &now).ok()?;
    Some(Restore(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        Row {
            name: name.to_owned(),
            state: "started".to_owned(),
            host: Some("a".to_owned()),
            cpu_percent: Some(150.04),
            cpus: 2,
            resident_bytes: Some(300 << 20),
            memory_bytes: 512 << 20,
            migration: None,
        }
    }

    #[test]
    fn a_block_tells_use_and_move_and_fits_the_screen() {
        let migration = Move {
            id: MigrationId::generate(),
            from: "a".into(),
            to: "b".into(),
            progress: "pre-copy, 212 MiB sent, round 2".into(),
        };
        let idle = Row { cpu_percent: None, resident_bytes: None, host: None, ..row("idle") };
        let look = Look { at: 0, machines: vec![Row { migration: Some(migration), ..row("web") }, idle] };
        assert_eq!(
            block(&look, usize::MAX, usize::MAX),
            "NAME  STATE    HOST  CPU %  OF  MEMORY   OF       MOVE\n\
             web   started  a     150.0  2   300 MiB  512 MiB  a to b: pre-copy, 212 MiB sent, round 2\n\
             idle  started  -     -      2   -        512 MiB\n"
        );
        assert!(block(&look, 30, 24).lines().all(|line| line.chars().count() < 30));
        let many = Look { at: 0, machines: (0..50).map(|n| row(&format!("m{n}"))).collect() };
        let text = block(&many, 80, 24);
        assert_eq!(text.lines().count(), 23);
        assert!(text.ends_with("and 29 more\n"), "{text}");
    }
}
