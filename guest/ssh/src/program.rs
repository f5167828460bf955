//! What a session runs, and with which environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mashines_guest::words;

use crate::access::USER;

/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A shell.
    Shell,
    /// One command line.
    Exec(Vec<u8>),
    /// Files.
    Sftp,
}

/// Something that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub file: PathBuf,
    /// The name it is told to have.
    pub name: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Root, as the image knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The home directory.
    pub home: PathBuf,
    /// The shell; none when the image has none.
    pub shell: Option<PathBuf>,
}

impl Account {
    /// Read anew for each session: a machine's user may change both.
    pub fn of_root() -> Self {
        Self::from_passwd(&fs::read_to_string("/etc/passwd").unwrap_or_default(), is_program)
    }

    fn from_passwd(passwd: &str, is_program: impl Fn(&Path) -> bool) -> Self {
        let root =
            passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&USER));
        let field = |n: usize| root.as_ref().and_then(|fields| fields.get(n)).copied().unwrap_or_default();
        let home = if field(5).starts_with('/') { field(5) } else { "/root" };
        // An image that keeps people out of root's shell has no other way in than this one.
        let usable = |path: &&Path| {
            is_program(path) && !path.ends_with("nologin") && !path.ends_with("false") && path.is_absolute()
        };
        let shell = [Path::new(field(6)), Path::new("/bin/sh")].into_iter().find(usable);
        Self { home: home.into(), shell: shell.map(Path::to_path_buf) }
    }
}

/// The program for a request.
///
/// # Errors
/// What the image lacks, in words for the person.
pub fn find(request: &Request, account: &Account) -> Result<Program, String> {
    match (request, &account.shell) {
        (Request::Sftp, _) => Ok(Program {
            file: "/proc/self/exe".into(),
            name: "mashines-guest-ssh".into(),
            arguments: vec!["sftp".into()],
        }),
        (Request::Shell, Some(shell)) => {
            let mut name = OsString::from("-");
            name.push(shell.file_name().unwrap_or(shell.as_os_str()));
            Ok(Program { file: shell.clone(), name, arguments: Vec::new() })
        }
        (Request::Exec(line), Some(shell)) => Ok(Program {
            file: shell.clone(),
            name: shell.file_name().unwrap_or(shell.as_os_str()).to_owned(),
            arguments: vec!["-c".into(), OsStr::from_bytes(line).to_owned()],
        }),
        (Request::Shell, None) => Err(
            "this machine's image has no shell. Run one of its programs, by its path and with words for arguments: \
             ssh … /path/of/program argument; files go by sftp and scp"
                .to_owned(),
        ),
        (Request::Exec(line), None) => without_shell(line),
    }
}

fn without_shell(line: &[u8]) -> Result<Program, String> {
    let line = std::str::from_utf8(line)
        .map_err(|_| "the command is no UTF-8, and the image has no shell".to_owned())?;
    let mut words =
        words::split(line).map_err(|error| format!("{error}; the image has no shell"))?.into_iter();
    let name = words.next().ok_or("the command is empty")?;
    let file = if name.contains('/') {
        PathBuf::from(&name)
    } else {
        let mut places = PATH.split(':').map(|folder| Path::new(folder).join(&name));
        places
            .find(|path| is_program(path))
            .ok_or_else(|| format!("the image has no program {name}, and no shell either"))?
    };
    Ok(Program { file, name: name.into(), arguments: words.map(OsString::from).collect() })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether a client may set that variable: its language, as Debian's sshd has it (`AcceptEnv LANG LC_*`), its terminal's colours, and the
/// version of git's protocol, which git itself sends.
pub fn may_set(name: &str) -> bool {
    matches!(name, "LANG" | "COLORTERM" | "GIT_PROTOCOL") || name.starts_with("LC_")
}

/// The environment: the account's, the machine's, then the client's.
pub fn environment<'a>(
    account: &Account,
    machine: &'a BTreeMap<String, String>,
    client: &'a [(String, OsString)],
) -> BTreeMap<&'a str, OsString> {
    let mut all: BTreeMap<&str, OsString> = BTreeMap::new();
    all.insert("PATH", PATH.into());
    all.insert("HOME", account.home.clone().into());
    all.insert("USER", USER.into());
    all.insert("LOGNAME", USER.into());
    if let Some(shell) = &account.shell {
        all.insert("SHELL", shell.clone().into());
    }
    all.extend(machine.iter().map(|(name, value)| (name.as_str(), OsString::from(value))));
    all.extend(client.iter().map(|(name, value)| (name.as_str(), value.clone())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(passwd: &str, programs: &[&str]) -> Account {
        Account::from_passwd(passwd, |path| programs.iter().any(|program| Path::new(program) == path))
    }

    #[test]
    fn roots_shell_is_that_of_passwd_then_sh_then_none() {
        let passwd = "daemon:x:1:1::/:/bin/no\nroot:x:0:0:root:/home:/bin/zsh\n";
        let zsh = account(passwd, &["/bin/zsh", "/bin/sh"]);
        assert_eq!((zsh.shell, zsh.home), (Some("/bin/zsh".into()), "/home".into()));
        assert_eq!(account(passwd, &["/bin/sh"]).shell, Some("/bin/sh".into()));
        assert_eq!(
            account("", &["/bin/sh"]),
            Account { home: "/root".into(), shell: Some("/bin/sh".into()) }
        );
        assert_eq!(account(passwd, &[]).shell, None);
        let closed = "root:x:0:0::/root:/usr/sbin/nologin";
        assert_eq!(account(closed, &["/usr/sbin/nologin", "/bin/sh"]).shell, Some("/bin/sh".into()));
    }

    #[test]
    fn a_shell_is_a_login_shell_and_a_command_its_argument() {
        let account = Account { home: "/root".into(), shell: Some("/bin/ash".into()) };
        assert_eq!(find(&Request::Shell, &account).unwrap().name, "-ash");
        let exec = find(&Request::Exec(b"echo \xff".to_vec()), &account).unwrap();
        assert_eq!(exec.arguments, ["-c".into(), OsStr::from_bytes(b"echo \xff").to_owned()]);
    }

    #[test]
    fn without_a_shell_a_command_is_split_and_a_shell_is_refused_with_what_to_do() {
        let account = Account { home: "/root".into(), shell: None };
        let exec = find(&Request::Exec(b"/app --name 'a b'".to_vec()), &account).unwrap();
        assert_eq!((exec.file, exec.arguments), ("/app".into(), vec!["--name".into(), "a b".into()]));
        assert!(find(&Request::Shell, &account).unwrap_err().contains("/path/of/program"));
        assert!(find(&Request::Exec(b"no-such-program".to_vec()), &account).is_err());
        assert!(find(&Request::Exec(b" ".to_vec()), &account).is_err());
        assert!(find(&Request::Sftp, &account).is_ok());
    }

    #[test]
    fn a_client_sets_its_language_and_no_loader() {
        assert!(may_set("LC_ALL") && may_set("LANG"));
        assert!(!may_set("LD_PRELOAD") && !may_set("PATH"));
    }
}
