//! Control as one value: what every request and every executor is given. And how it starts and stops.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::host_api::{MachineSpec, PutVolume, SshHostKey};
use mashines_fleet::id::{HostId, MachineId, MigrationId};
use mashines_fleet::pki::{Ca, ClientCertificates, Identity};
use mashines_fleet::record::{Host, Machine};
use mashines_fleet::rpc::Limits;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::store::{SqliteStore, Store};
use mashines_fleet::view::View;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::certificates::keeper::Keeper;
use crate::checks::Checks;
use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::found::Secret;
use crate::hosts::Hosts;
use crate::lifecycle::Driver;
use crate::newcomers::Lately;
use crate::records::{Private, Records, volumes_of};
use crate::scheduler::{self, Candidate, Wanted};
use crate::ssh_ca::SshCa;
use crate::zone_keys;

/// What every request and executor is given. Cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

/// The parts.
pub struct Inner {
    /// Settings.
    pub config: Config,
    /// The store and its view.
    pub records: Records,
    /// Reports and clients.
    pub hosts: Hosts,
    /// What entries' health checks find.
    pub checks: Checks,
    /// The fleet's CA.
    pub ca: Ca,
    /// The platform's SSH CA.
    pub ssh_ca: SshCa,
    /// What seals secrets among the facts.
    pub secret: EntrySecret,
    /// Looks at domains.
    pub keeper: Keeper,
    /// What zones' parents have.
    pub parents: zone_keys::Parents,
    /// Held from choosing a host to the commit that takes the room: of two launches one must see the other's.
    pub placing: tokio::sync::Mutex<()>,
    /// Accounts that were made lately; held while one is made.
    pub newcomers: tokio::sync::Mutex<Lately>,
    /// Sagas that run in this process.
    sagas: Mutex<HashSet<MigrationId>>,
    /// Drains that run in this process.
    drains: Mutex<HashSet<HostId>>,
    /// Something was written that a saga or the driver should look at.
    pub nudge: Notify,
}

impl std::ops::Deref for Control {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Control {
    /// From a store that holds a fleet.
    ///
    /// # Errors
    /// The store holds none, or is damaged.
    pub async fn open(
        config: Config,
        store: Arc<dyn Store>,
        identity: Identity,
        secret: EntrySecret,
    ) -> Result<Self> {
        let records = Records::open(store).await?;
        let missing = || Failure::not_found("the store holds no fleet: `mashinesd init` makes one");
        let ca: Secret = records.private(Private::Ca).await?.ok_or_else(missing)?;
        let ssh: Secret = records.private(Private::SshCa).await?.ok_or_else(missing)?;
        Ok(Self(Arc::new(Inner {
            hosts: Hosts::new(identity),
            checks: Checks::default(),
            ca: Ca::from_pem(ca.public, ca.secret),
            ssh_ca: SshCa::from_secret(&ssh.secret)?,
            secret,
            keeper: Keeper::default(),
            parents: zone_keys::Parents::default(),
            placing: tokio::sync::Mutex::default(),
            newcomers: tokio::sync::Mutex::default(),
            sagas: Mutex::default(),
            drains: Mutex::default(),
            nudge: Notify::new(),
            config,
            records,
        })))
    }

    /// The fleet, now.
    pub fn view(&self) -> Arc<View> {
        self.records.view()
    }

    /// A host's record.
    ///
    /// # Errors
    /// It is not in the fleet.
    pub fn host(&self, id: &HostId) -> Result<Arc<Host>> {
        let host = self.view().hosts.get(id).cloned();
        host.ok_or_else(|| Failure::not_found(format!("host {id} is not in the fleet (any more)")))
    }

    /// Chooses a host. The caller holds `placing`.
    ///
    /// # Errors
    /// [`Kind::NoRoom`](crate::Kind::NoRoom) with a reason for each host.
    pub fn choose(&self, wanted: &Wanted) -> Result<HostId> {
        let view = self.view();
        let candidates: Vec<Candidate<'_>> = view
            .hosts
            .values()
            .map(|host| Candidate {
                host,
                alive: self.hosts.alive(host),
                used: scheduler::used(&view, &host.id),
            })
            .collect();
        scheduler::choose(wanted, &candidates)
            .map_err(|none| Failure::new(crate::failure::Kind::NoRoom, none.to_string()))
    }

    /// Takes the saga of a migration for this process; none when it runs already.
    pub fn take_saga(&self, id: &MigrationId) -> Option<Running> {
        let new = self.sagas.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        new.then(|| Running { control: self.clone(), what: What::Saga(id.clone()) })
    }

    /// Takes the drain of a host for this process; none when it runs already.
    pub fn take_drain(&self, id: &HostId) -> Option<Running> {
        let new = self.drains.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        new.then(|| Running { control: self.clone(), what: What::Drain(id.clone()) })
    }

    /// A machine as hosts want it.
    ///
    /// # Errors
    /// Its account is gone.
    pub async fn spec(&self, machine: &Machine) -> Result<MachineSpec> {
        let view = self.view();
        let account = view.accounts.get(&machine.account).ok_or_else(|| {
            Failure::internal(format!("account {} of machine {} is gone", machine.account, machine.id))
        })?;
        let host = machine.place.as_ref().and_then(|place| view.hosts.get(&place.host));
        let volumes = volumes_of(&view, machine);
        let ssh_host_key = self.host_key(machine).await?;
        Ok(MachineSpec {
            id: machine.id.clone(),
            slug: machine.slug.to_string(),
            account: machine.account.clone(),
            app: machine.app.to_string(),
            region: host.map(|host| host.region.clone()).unwrap_or_default(),
            config: machine.config.clone(),
            image: machine.config.image.clone(),
            image_digest: machine.image_digest.clone(),
            net: machine.net.clone(),
            private_prefix: account.private_prefix,
            ssh_keys: account.ssh_keys.clone(),
            ssh_user_ca: view.config.as_ref().and_then(|config| config.ssh_ca.clone()),
            ssh_host_key,
            volumes: volumes
                .iter()
                .map(|v| PutVolume { id: v.id.clone(), name: v.name.clone(), size_mib: v.size_mib })
                .collect(),
        })
    }

    /// What the machine's sshd proves its name with.
    async fn host_key(&self, machine: &Machine) -> Result<Option<SshHostKey>> {
        let kept: Option<Secret> = self.records.private(Private::HostKey(&machine.id)).await?;
        let Some(Secret { public, secret }) = kept else { return Ok(None) };
        let view = self.view();
        let domain = view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default();
        let mut names = vec![
            format!("{}.{domain}", machine.slug),
            machine.slug.to_string(),
            machine.net.ipv6.to_string(),
            machine.net.private6.to_string(),
        ];
        // Whoever comes by the shared port knows the entry's name only.
        names.extend(machine.net.ssh_port.iter().map(|port| format!("{}.{domain}", port.entry)));
        let certificate = self.ssh_ca.certify_host(&public, machine.slug.as_str(), &names)?;
        Ok(Some(SshHostKey { private_pem: secret, public, certificate }))
    }

    /// The machine's record, by its id.
    ///
    /// # Errors
    /// There is none.
    pub fn machine(&self, id: &MachineId) -> Result<Arc<Machine>> {
        let machine = self.view().machines.get(id).cloned();
        machine.ok_or_else(|| Failure::not_found(format!("machine {id} is not there (any more)")))
    }
}

/// Something that runs once in this process, for as long as this lives.
pub struct Running {
    control: Control,
    what: What,
}

enum What {
    Saga(MigrationId),
    Drain(HostId),
}

impl Drop for Running {
    fn drop(&mut self) {
        match &self.what {
            What::Saga(id) => {
                self.control.sagas.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            }
            What::Drain(id) => {
                self.control.drains.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            }
        }
    }
}

/// Runs control until the daemon is told to end.
///
/// # Errors
/// The store cannot be opened or holds no fleet; the address is taken.
pub fn run(config: Config, common: Common) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        use anyhow::Context;
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("control cannot listen on {}", config.listen))?;
        run_with(config, common, listener).await
    })
}

/// The secret that entries share, made when there is none: beside the store and not in it, so that who has a copy of the store only
/// has no private key of anybody.
fn entry_secret(path: &Path) -> anyhow::Result<EntrySecret> {
    use anyhow::Context;
    let kept = EntrySecret::load(path).with_context(|| format!("the entries' secret {}", path.display()))?;
    if let Some(secret) = kept {
        return Ok(secret);
    }
    let secret = EntrySecret::random();
    secret.save(path).with_context(|| format!("write the entries' secret {}", path.display()))?;
    Ok(secret)
}

/// The same on a listener that is open already.
///
/// # Errors
/// As [`run`].
pub fn run_with(config: Config, common: Common, listener: TcpListener) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        let path = config.store_path(&common.state_dir);
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path)?);
        let secret = entry_secret(&common.state_dir.join("entries.key"))?;
        let control = Control::open(config, store, common.identity.clone(), secret).await?;
        let tls = common.identity.server_config(ClientCertificates::Optional)?;
        let app = crate::api::router(control.clone());
        let keeping = Keeper::run(control.clone());
        let parents = zone_keys::watch_parents(&control);
        let driver = Driver::new(control.clone());
        tracing::info!(address = %listener.local_addr()?, "control listens");
        tokio::select! {
            served = mashines_fleet::rpc::serve(listener, app, tls, Limits::default(), common.stopped()) => served?,
            () = driver.run() => {}
            () = keeping => {}
            () = parents => {}
        }
        Ok(())
    })
}
