//! Commands, one line each, answered by one line of JSON:
//!
//! ```text
//! write MIB MIB_PER_S   starts the memory writer, in place of one that runs
//! stop                  ends it
//! status                nothing but the answer
//! ```
//!
//! The answer to each: `{"boot_id", "hostname", "uptime_ms", "wall_clock_ns", "writer": {"mib", "mib_per_s", "pages",
//! "mismatches"}}`, or `{"error"}`. After `stop` the writer's counters are its last.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::writer::{Progress, Writer};
use crate::agent;

const MAX_LINE: u64 = 256;

/// Serves one connection.
pub fn serve(connection: TcpStream, writer: &Writer) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut line = String::new();
        if (&mut reader).take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = carry_out(&line, writer).and_then(|progress| state(&progress));
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        (&connection).write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn carry_out(line: &str, writer: &Writer) -> Result<Progress> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["write", mib, rate] => {
            let (Ok(mib), Ok(rate)) = (mib.parse(), rate.parse()) else {
                bail!("write takes two whole numbers: MIB MIB_PER_S")
            };
            writer.start(mib, rate)?;
            Ok(writer.progress())
        }
        ["stop"] => Ok(writer.stop()),
        ["status"] => Ok(writer.progress()),
        _ => bail!("the commands are: write MIB MIB_PER_S, stop, status"),
    }
}

fn state(writer: &Progress) -> Result<Value> {
    let mut state = serde_json::to_value(agent::status()?)?;
    state["writer"] = serde_json::to_value(writer)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_who_and_how_old_the_machine_is() {
        let state = state(&carry_out("status\n", &Writer::default()).unwrap()).unwrap();
        assert_eq!(state["boot_id"].as_str().unwrap().len(), 36);
        assert_eq!(state["writer"]["mib"], 0);
        assert!(state["uptime_ms"].as_u64().unwrap() > 0);
    }

    #[test]
    fn a_command_that_is_not_understood_says_which_there_are() {
        for line in ["", "write 1", "write x y", "dance"] {
            assert!(carry_out(line, &Writer::default()).is_err(), "{line}");
        }
    }
}
