//! The platform's accounts at issuers: made by whichever entry comes first, shared through the records, their keys sealed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use mashines_fleet::entry_api::{PutAccount, Roll, RollStep};
use mashines_fleet::id::IssuerName;
use mashines_fleet::key::Key;
use mashines_fleet::record::AcmeAccount;
use mashines_fleet::sealed::{EntrySecret, Sealed};
use mashines_fleet::view::View;
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::config::Issuer;
use crate::control::Control;
use crate::fault::{Fault, is_unknown_account};
use crate::http::Http;
use crate::past_nonces;
use crate::rollover::{self, Credentials};

/// One issuer, and our account there once it is known.
pub struct Door {
    /// The configuration.
    pub issuer: Issuer,
    /// The way there.
    pub http: Http,
    eab: Option<Eab>,
    known: Mutex<Option<(Sealed, Account)>>,
}

/// The key of an external account; it belongs in no log.
struct Eab {
    kid: String,
    key: Vec<u8>,
}

/// All issuers, in the order of the configuration.
pub struct Doors {
    /// Their names.
    pub names: Vec<IssuerName>,
    doors: BTreeMap<IssuerName, Arc<Door>>,
}

impl Doors {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// A file cannot be used; the error names it.
    pub fn open(issuers: &[Issuer], timeout: Duration) -> anyhow::Result<Self> {
        let door = |issuer: &Issuer| {
            let http = Http::new(issuer.ca_file.as_deref(), timeout)
                .with_context(|| format!("[acme] issuer {}", issuer.name))?;
            let eab = issuer.eab.as_ref().map(|eab| {
                let read = || format!("[acme] issuer {}: the key {}", issuer.name, eab.key_file.display());
                let text = std::fs::read_to_string(&eab.key_file).with_context(read)?;
                let key = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('=')).with_context(read)?;
                Ok::<_, anyhow::Error>(Eab { kid: eab.kid.clone(), key })
            });
            let door = Door { issuer: issuer.clone(), http, eab: eab.transpose()?, known: Mutex::default() };
            Ok((issuer.name.clone(), Arc::new(door)))
        };
        let doors = issuers.iter().map(door).collect::<anyhow::Result<_>>()?;
        Ok(Self { names: issuers.iter().map(|issuer| issuer.name.clone()).collect(), doors })
    }

    /// The issuer of that name.
    pub fn get(&self, name: &IssuerName) -> Option<&Arc<Door>> {
        self.doors.get(name)
    }

    /// The issuer at that place of the list.
    pub fn at(&self, n: usize) -> Option<&Arc<Door>> {
        self.names.get(n).and_then(|name| self.get(name))
    }
}

impl Door {
    /// What an error of this issuer means.
    pub fn fault(&self, error: &instant_acme::Error, clock: &Clock) -> Fault {
        Fault::of(error, clock.now(), self.http.pause().take())
    }

    /// Our account, with its credentials as they are on record: the one there, else a new one.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn account(
        &self,
        view: &View,
        control: &Control,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<(Sealed, Account), Fault> {
        let mut known = self.known.lock().await;
        if let (Some(record), Some(known)) = (view.acme_accounts.get(&self.issuer.name), &*known)
            && record.directory == self.issuer.directory
            && record.credentials == known.0
            && next_key(record).is_none()
        {
            return Ok(known.clone());
        }
        let found = match self.on_record(control).await? {
            Some(record) if record.directory == self.issuer.directory => {
                match self.rolled(&record, control, secret, clock).await {
                    Ok(rolled) => self.opened(&rolled, secret, clock).await?,
                    // With the present key, then: while the issuer has not changed it, that is good.
                    Err(_told_by_the_task_for_it) => self.opened(&record, secret, clock).await?,
                }
            }
            other => self.make(other.map(|record| record.credentials), control, secret, clock).await?,
        };
        Ok(known.insert(found).clone())
    }

    /// Makes another account, when the issuer does not know the one with the credentials `tried`, unless that was done already.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn renew_account(
        &self,
        tried: &Sealed,
        control: &Control,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<Account, Fault> {
        let mut known = self.known.lock().await;
        let found = match self.on_record(control).await? {
            Some(record) if record.credentials != *tried && record.directory == self.issuer.directory => {
                self.opened(&record, secret, clock).await?
            }
            other => {
                tracing::warn!(issuer = %self.issuer.name, "the issuer does not know our account: another one is made");
                self.make(other.map(|record| record.credentials), control, secret, clock).await?
            }
        };
        Ok(known.insert(found).1.clone())
    }

    /// The record as control has it. The replica may lag behind what was put there a moment ago, and an account that is
    /// made twice counts against what the issuer allows.
    async fn on_record(&self, control: &Control) -> Result<Option<AcmeAccount>, Fault> {
        control.account(&self.issuer.name).await.map_err(|error| self.ours(&error))
    }

    /// Goes on with the change of the account's key, as far as it can now; the account as it is then.
    ///
    /// # Errors
    /// [`Fault`]: it is tried again, but for what the issuer refused.
    pub async fn roll(
        &self,
        view: &View,
        control: &Control,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<(), Fault> {
        let mut known = self.known.lock().await;
        let record = view.acme_accounts.get(&self.issuer.name);
        let Some(record) = record.filter(|record| record.directory == self.issuer.directory) else {
            return Ok(());
        };
        let Some(rollover) = record.rolling() else { return Ok(()) };
        let mut record = AcmeAccount::clone(record);
        if rollover.next.is_none() {
            let next = self.credentials(&record.credentials, secret)?.with_new_key();
            let next = next.map_err(|error| self.fault(&error, clock))?;
            let json = serde_json::to_vec(&next).map_err(|error| self.ours(&error))?;
            let sealed = secret.seal(&self.key(), &json).map_err(|error| self.ours(&error))?;
            record = self.step(&record, RollStep::Next(sealed), control).await?;
        }
        let rolled = self.rolled(&record, control, secret, clock).await;
        // Whoever comes next asks control, and not a replica that may still have the old key.
        *known = None;
        drop(known);
        let fault = match rolled {
            Ok(_) => return Ok(()),
            Err(fault) => fault,
        };
        if matches!(fault, Fault::Refused { .. }) {
            let step = RollStep::Refused { what: fault.to_string(), hint: fault.hint() };
            self.step(&record, step, control).await?;
        }
        Err(fault)
    }

    /// The account with the key that the issuer knows by now: the next one where there is one, which it is told of.
    async fn rolled(
        &self,
        record: &AcmeAccount,
        control: &Control,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<AcmeAccount, Fault> {
        let Some(next) = next_key(record) else { return Ok(record.clone()) };
        let (http, directory) = (&self.http, self.issuer.directory.as_str());
        let (old, new) = (self.credentials(&record.credentials, secret)?, self.credentials(next, secret)?);
        let fault = |error: instant_acme::Error| self.fault(&error, clock);
        // Whoever was here before may have died with the answer.
        if !rollover::is_known(http, directory, &new).await.map_err(fault)? {
            let changed = rollover::change(http, directory, &old, &new).await;
            if let Err(error) = changed
                && !rollover::is_known(http, directory, &new).await.map_err(fault)?
            {
                return Err(match error {
                    instant_acme::Error::Unsupported(what) => Fault::Refused {
                        what: format!("it has no such thing as {what}"),
                        kind: String::new(),
                    },
                    error => fault(error),
                });
            }
        }
        self.step(record, RollStep::Done, control).await
    }

    async fn step(
        &self,
        record: &AcmeAccount,
        step: RollStep,
        control: &Control,
    ) -> Result<AcmeAccount, Fault> {
        let roll = Roll { credentials: record.credentials.clone(), step };
        control.roll(&self.issuer.name, &roll).await.map_err(|error| self.ours(&error))
    }

    fn credentials(&self, sealed: &Sealed, secret: &EntrySecret) -> Result<Credentials, Fault> {
        let json = secret.open(&self.key(), sealed).map_err(|error| self.ours(&error))?;
        serde_json::from_slice(&json).map_err(|error| self.ours(&error))
    }

    fn ours(&self, error: &dyn std::fmt::Display) -> Fault {
        Fault::Ours(format!("our account at {}: {error}", self.issuer.name))
    }

    fn key(&self) -> Key {
        Key::AcmeAccount(self.issuer.name.clone())
    }

    async fn opened(
        &self,
        record: &AcmeAccount,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<(Sealed, Account), Fault> {
        let json = secret.open(&self.key(), &record.credentials).map_err(|error| self.ours(&error))?;
        let credentials: AccountCredentials =
            serde_json::from_slice(&json).map_err(|error| self.ours(&error))?;
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let account = builder.from_credentials(credentials).await;
        let account = account.map_err(|error| self.fault(&error, clock))?;
        Ok((record.credentials.clone(), account))
    }

    async fn make(
        &self,
        replaces: Option<Sealed>,
        control: &Control,
        secret: &EntrySecret,
        clock: &Clock,
    ) -> Result<(Sealed, Account), Fault> {
        let contact: Vec<&str> = self.issuer.contact.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let eab = self.eab.as_ref().map(|eab| ExternalAccountKey::new(eab.kid.clone(), &eab.key));
        let made = past_nonces!(Account::builder_with_http(Box::new(self.http.clone())).create(
            &new,
            self.issuer.directory.clone(),
            eab.as_ref(),
        ));
        let (account, credentials) = made.map_err(|error| self.fault(&error, clock))?;
        let json = serde_json::to_vec(&credentials).map_err(|error| self.ours(&error))?;
        let sealed = secret.seal(&self.key(), &json).map_err(|error| self.ours(&error))?;
        let body =
            PutAccount { directory: self.issuer.directory.clone(), credentials: sealed.clone(), replaces };
        let kept = control.keep_account(&self.issuer.name, &body).await.map_err(|error| self.ours(&error))?;
        if kept.credentials == sealed {
            return Ok((sealed, account));
        }
        // Another entry was faster: its account is everybody's, and ours is never used.
        self.opened(&kept, secret, clock).await
    }
}

/// The key that the issuer may know already.
fn next_key(record: &AcmeAccount) -> Option<&Sealed> {
    record.rolling()?.next.as_ref()
}

/// Runs a call with our account, and once more with a new account when the issuer does not know the first.
///
/// # Errors
/// [`Fault`].
pub async fn with_account<T, F>(
    door: &Door,
    (view, control, secret, clock): (&View, &Control, &EntrySecret, &Clock),
    call: impl Fn(Account) -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, instant_acme::Error>>,
{
    let (credentials, account) = door.account(view, control, secret, clock).await?;
    match call(account).await {
        Err(error) if is_unknown_account(&error) => {
            let account = door.renew_account(&credentials, control, secret, clock).await?;
            call(account).await.map_err(|error| door.fault(&error, clock))
        }
        outcome => outcome.map_err(|error| door.fault(&error, clock)),
    }
}
