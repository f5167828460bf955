//! A command line as a person types it, into words, and back: the lobby's prompt and `ssh gateway 'ls --json'`.
//!
//! The quoting is the POSIX shell's (2.2 Quoting) without expansions: blanks part words; `\` keeps the next character; `'…'` keeps all;
//! `"…"` keeps all but `\"`, `\\`, `\$` and `` \` ``.

use crate::error::CliError;

/// Parts a line into words. An open quote or a final backslash is an error.
pub fn split(line: &str) -> Result<Vec<String>, CliError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\\' => {
                let kept = chars.next().ok_or_else(|| open("a backslash at its end"))?;
                word.get_or_insert_default().push(kept);
            }
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Quotes a word so that [`split`] and a shell read it back as it was.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Quotes words and joins them.
pub fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), CliError> {
    loop {
        match chars.next().ok_or_else(|| open("an open '"))? {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), CliError> {
    loop {
        match chars.next().ok_or_else(|| open("an open \""))? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or_else(|| open("an open \""))? {
                kept @ ('"' | '\\' | '$' | '`') => word.push(kept),
                other => word.extend(['\\', other]),
            },
            c => word.push(c),
        }
    }
}

fn open(what: &str) -> CliError {
    CliError::usage(format!("cannot read the command line: it has {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_and_backslashes_read_as_in_a_shell() {
        assert_eq!(
            split(r#" exec web --  sh -c 'echo "a b"' "x\"y\n" a\ b '' "#).unwrap(),
            ["exec", "web", "--", "sh", "-c", "echo \"a b\"", "x\"y\\n", "a b", ""]
        );
        for open in ["'", "\"", "a\\", "\"\\"] {
            assert!(split(open).is_err(), "{open:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_quoted_reads_back(words in proptest::collection::vec(".*", 0..5)) {
            prop_assert_eq!(split(&join(words.iter().map(String::as_str))).unwrap(), words);
        }

        #[test]
        fn no_line_panics(line in ".*") {
            let _ = split(&line);
        }
    }
}
