//! What git asks a server to run: `git-receive-pack '/web.git'` (`git help receive-pack`, and `gitprotocol-pack`, "SSH Transport").

use mashines_cli::words;
use mashines_fleet::id::Slug;

/// The services of git's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// A push.
    ReceivePack,
    /// A fetch or a clone.
    UploadPack,
    /// `git archive --remote`.
    UploadArchive,
}

impl Service {
    /// As git names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReceivePack => "receive-pack",
            Self::UploadPack => "upload-pack",
            Self::UploadArchive => "upload-archive",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::ReceivePack, Self::UploadPack, Self::UploadArchive]
            .into_iter()
            .find(|service| word.strip_prefix("git-") == Some(service.name()))
    }
}

/// A service and the machine whose repository it is asked of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitCommand {
    /// The service.
    pub service: Service,
    /// The machine's name. There may be none of that name yet.
    pub machine: Slug,
}

/// What `command` asks of git; none when it is none of git's.
///
/// # Errors
/// A command of git's that names no machine, in words for whoever typed it.
pub fn parse(command: &str) -> Option<Result<GitCommand, String>> {
    let (first, _) = command.split_once([' ', '\t'])?;
    // `git receive-pack` is what a client is told to send by `--receive-pack="git receive-pack"`.
    let joined = match first {
        "git" => command.replacen("git ", "git-", 1),
        _ => command.to_owned(),
    };
    let (first, _) = joined.split_once([' ', '\t'])?;
    let service = Service::of(first)?;
    let words = match words::split(&joined) {
        Ok(words) => words,
        Err(error) => return Some(Err(error.human().trim().to_owned())),
    };
    let [_, path] = words.as_slice() else {
        return Some(Err(format!("git-{} takes one repository", service.name())));
    };
    let name = path.trim_start_matches("~/").trim_matches('/');
    let name = name.strip_suffix(".git").unwrap_or(name);
    let named = name.parse().map(|machine| GitCommand { service, machine });
    Some(named.map_err(|error| {
        format!("a repository is named by its machine, as in git@…:web, and {path:?} names none: {error}")
    }))
}

/// The client's `GIT_PROTOCOL`, when it is one: `version=2`, or several such parts with colons between them.
pub fn protocol(value: &str) -> Option<&str> {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"=:._-".contains(&byte);
    (value.len() <= 100 && !value.is_empty() && value.bytes().all(usual)).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(command: &str) -> Option<String> {
        Some(match parse(command)? {
            Ok(GitCommand { service, machine }) => format!("{} {machine}", service.name()),
            Err(why) => format!("error: {why}"),
        })
    }

    #[test]
    fn a_repository_is_named_by_its_machine_in_every_way_git_writes_it() {
        for path in ["'web'", "'/web'", "'web.git'", "'/web.git'", "'~/web'", "'/web/'", "web", "\"web\""] {
            assert_eq!(
                parsed(&format!("git-receive-pack {path}")).as_deref(),
                Some("receive-pack web"),
                "{path}"
            );
        }
        assert_eq!(parsed("git-upload-pack '/web'").as_deref(), Some("upload-pack web"));
        assert_eq!(parsed("git upload-archive 'web'").as_deref(), Some("upload-archive web"));
    }

    #[test]
    fn other_commands_are_not_gits_and_bad_names_are_told() {
        for command in
            ["ls", "git", "git status", "git-lfs-authenticate web download", "git-receive-packs 'web'", ""]
        {
            assert_eq!(parsed(command), None, "{command}");
        }
        for command in [
            "git-receive-pack '../etc'",
            "git-receive-pack 'a/b'",
            "git-receive-pack ''",
            "git-receive-pack 'we b'",
        ] {
            assert!(parsed(command).unwrap().contains("names none"), "{command}");
        }
        assert!(parsed("git-receive-pack a b").unwrap().contains("takes one repository"));
        assert!(parsed("git-receive-pack 'web").unwrap().starts_with("error"));
    }

    #[test]
    fn a_protocol_is_passed_on_and_nothing_else() {
        assert_eq!(protocol("version=2"), Some("version=2"));
        for value in ["", "version=2; rm -rf /", "a b", "$(id)", &"a".repeat(101)] {
            assert_eq!(protocol(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_judged_and_a_machine_is_always_a_name(line in "git[- ](receive|upload)-pack \\PC{0,40}") {
            if let Some(Ok(command)) = parse(&line) {
                prop_assert!(command.machine.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
            }
        }
    }
}
