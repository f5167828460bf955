//! Certificates whose key is in the machine: its agent makes the key and the request, and puts the chain beside the key.

use std::time::Duration;

use mashines_fleet::record::{Certificate, Machine, MachineState};
use mashines_guest::protocol::{self, ExecResult};

use crate::api::host_of;
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};

/// The agent, where every machine has it.
const AGENT: &str = "/run/mashines/agent";

/// How long the machine may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer that is looked at, bytes.
const MAX_REQUEST: usize = 16 << 10;

/// A certificate request of the machine's own key (PEM); the key is made when there is none.
///
/// # Errors
/// The machine is not up, or its agent cannot do it.
pub async fn request(control: &Control, certificate: &Certificate) -> Result<String> {
    let names = certificate.names.iter().map(ToString::to_string);
    let command = ["request".to_owned()].into_iter().chain(names).collect();
    let answer = run(control, certificate, command, Vec::new()).await?;
    match String::from_utf8(answer) {
        Ok(pem) if pem.len() <= MAX_REQUEST => Ok(pem),
        Ok(_) | Err(_) => {
            Err(Failure::internal(format!("the machine's request for {} is no PEM", certificate.id)))
        }
    }
}

/// Puts the chain into the machine.
///
/// # Errors
/// As [`request`]. The record has the chain already: the next renewal, or `certs check`, brings it again.
pub async fn deliver(control: &Control, certificate: &Certificate) -> Result<()> {
    let chain = certificate.chain_pem.clone().unwrap_or_default();
    let command = vec!["install".to_owned(), certificate.id.to_string()];
    run(control, certificate, command, chain.into_bytes()).await.map(drop)
}

async fn run(
    control: &Control,
    certificate: &Certificate,
    words: Vec<String>,
    stdin: Vec<u8>,
) -> Result<Vec<u8>> {
    let gone = || Failure::not_found(format!("certificate {} has no machine", certificate.id));
    let machine: std::sync::Arc<Machine> = control.machine(certificate.machine.as_ref().ok_or_else(gone)?)?;
    let what = format!("machine {}, which holds the key of {},", machine.slug, certificate.id);
    if machine.state != MachineState::Started {
        return Err(Failure::conflict(format!("{what} is not started: mashines start {}", machine.slug)));
    }
    let command = [AGENT, "certificate"].map(str::to_owned).into_iter().chain(words).collect();
    let request = protocol::Exec {
        command: Some(command),
        stdin: protocol::Bytes(stdin),
        timeout_ms: Some(crate::time::ms(PATIENCE)),
        ..protocol::Exec::default()
    };
    let client = host_of(control, &machine)?.with_timeout(PATIENCE + Duration::from_secs(5));
    let result: ExecResult = client.post(&format!("/v1/machines/{}/exec", machine.id), &request).await?;
    if result.timed_out {
        return Err(Failure::new(Kind::Timeout, format!("{what} did not answer within {PATIENCE:?}")));
    }
    if result.exit_code != 0 {
        let said = String::from_utf8_lossy(&result.stderr.0);
        let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        return Err(Failure::conflict(format!("{what} cannot: {}", said.trim())));
    }
    Ok(result.stdout.0)
}
