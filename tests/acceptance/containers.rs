//! `git push` of a Dockerfile and of a compose file: built by podman inside the machine, served by name, replaced without a failed request, and
//! there after a move and after a boot. The images are made of one static program, so that nothing has to be fetched.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::Fleet;
use mashines_tests::deploy::{Checkout, Requests, get, pushed};
use mashines_tests::person::Door;
use mashines_tests::run::wait_for;

const SLUG: &str = "keen-stork";

/// A server of files, whose page is made while the image is built.
const DOCKERFILE: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "mkdir", "-p", "/www"]
COPY page /www/page
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox cat /www/page > /www/index.html; echo built in a container >> /www/index.html"]
CMD ["/bin/busybox", "sh", "-c", "exec /bin/busybox httpd -f -p $PORT -h /www"]
"#;

/// Two services that know each other by name; the one outside asks the one inside for each page.
const COMPOSE: &str = r#"services:
  web:
    build: .
    command: ["/bin/busybox", "sh", "-c", "while :; do /bin/busybox wget -q -O /www/index.html http://words:8080/page; /bin/busybox sleep 1; done & exec /bin/busybox httpd -f -p 8080 -h /www"]
    ports: ["${PORT:-8080}:8080"]
  words:
    build: .
    command: ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"#;

#[test]
fn containers_are_built_in_the_machine_and_move_with_it() -> Result<()> {
    let fleet = Fleet::up("containers", &mut |step| eprintln!("{step}"))?;
    let words = ["launch", "--name", SLUG, "--vcpu", "2", "--memory", "768M", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    let url = format!("http://[{}]/", machine.ipv6);
    let busybox = std::fs::read("/bin/busybox").context("the lab has no busybox")?;
    let checkout = Checkout::new(&fleet.topology, &fleet.person, "containers")?;
    checkout.put("busybox", &busybox, 0o755)?;

    checkout.commit(&[("Dockerfile", DOCKERFILE), ("page", "one\n")])?;
    accepted(&checkout, "dockerfile")?;
    serves(&fleet, &url, "one\nbuilt in a container\n")?;

    let requests = Requests::begin(&fleet.topology, &url);
    checkout.commit(&[("page", "two\n")])?;
    accepted(&checkout, "dockerfile")?;
    serves(&fleet, &url, "two\nbuilt in a container\n")?;
    let migration = fleet.migrate(SLUG)?;
    ensure!(migration.step == MigrationStep::Completed, "{migration:?}");
    let answered = requests.end()?;
    eprintln!("{answered} requests were answered through a push and a move");

    checkout.commit(&[
        ("compose.yaml", COMPOSE),
        ("page", "three\n"),
        ("mashine.toml", "kind = \"compose\"\n"),
    ])?;
    accepted(&checkout, "compose")?;
    serves(&fleet, &url, "three\n")?;
    let containers = fleet.person.sh(SLUG, Door::Ipv6, "podman ps --format '{{.Names}}' | sort")?;
    ensure!(containers == "app_web_1\napp_words_1\n", "the containers are {containers:?}");

    let _: serde_json::Value = fleet.ask(&["stop", SLUG, "--wait"])?;
    let _: serde_json::Value = fleet.ask(&["start", SLUG, "--wait"])?;
    serves(&fleet, &url, "three\n")
}

fn accepted(checkout: &Checkout, kind: &str) -> Result<()> {
    let (accepted, told) = pushed(checkout.push(SLUG)?)?;
    eprintln!("{told}");
    ensure!(accepted && told.contains(&format!("recognised as {kind}")), "a push of a {kind}: {told}");
    Ok(())
}

fn serves(fleet: &Fleet, url: &str, wanted: &str) -> Result<()> {
    wait_for("the release", Duration::from_secs(120), Duration::from_millis(500), || {
        let seen = get(&fleet.topology, url)?;
        ensure!(seen == wanted, "{url} is {seen:?}, not {wanted:?}");
        Ok(())
    })
}
