//! A command line as words, for images that have no shell to split it.
//!
//! Quotes and backslashes mean what they mean to a shell (POSIX, XCU 2.2); nothing else is special, and what only a shell could do
//! (variables, pipes, redirections) is passed on as it stands.

/// The words of a line.
///
/// # Errors
/// When a quote is not closed.
pub fn split(line: &str) -> Result<Vec<String>, OpenQuote> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => quoted(&mut rest, '\'', word.get_or_insert_default())?,
            '"' => quoted(&mut rest, '"', word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(rest.next().ok_or(OpenQuote('\\'))?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// A line that ends inside a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command line ends inside a quote that {0} began")]
pub struct OpenQuote(char);

fn quoted(rest: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Result<(), OpenQuote> {
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match rest.next().ok_or(OpenQuote(quote))? {
                escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            c => word.push(c),
        }
    }
    Err(OpenQuote(quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_a_shell_would() {
        let words = split(r#"  /app 'a b' "c \"d\" \e" f\ g '' 'it'\''s'"#).unwrap();
        assert_eq!(words, ["/app", "a b", r#"c "d" \e"#, "f g", "", "it's"]);
        assert!(split("").unwrap().is_empty());
    }

    #[test]
    fn a_quote_without_an_end_is_an_error() {
        assert_eq!(split("a 'b"), Err(OpenQuote('\'')));
        assert!(split("a \\").is_err());
    }
}
