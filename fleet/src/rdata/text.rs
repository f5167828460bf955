//! Zone file text (RFC 1035 §5.1) of one record's data: words, quoted strings, `\X` and `\DDD`, names.

/// One word or quoted string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it says, escapes undone.
    pub bytes: Vec<u8>,
    /// As it was written, without the quotes: names undo their escapes themselves, since `\.` is no end of a label.
    pub source: String,
}

/// The words and quoted strings of a line.
pub fn tokens(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (source, after) = match first {
            '"' => {
                let inner = &rest[1..];
                let end = end_of(inner, |c| c == '"').ok_or("a quote is not closed")?;
                (&inner[..end], &inner[end + 1..])
            }
            ';' => return Err("a comment is no data: put `;` in quotes"),
            '(' | ')' => return Err("parentheses join lines, and this is one line: put them in quotes"),
            _ => {
                let end = end_of(rest, |c| c.is_whitespace() || c == '"' || c == ';').unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
        };
        tokens.push(Token { bytes: unescaped(source)?, source: source.to_owned() });
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// Where the first character is that ends a token, escaped ones passed over.
fn end_of(text: &str, ends: impl Fn(char) -> bool) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (escaped, c) {
            (true, _) => escaped = false,
            (false, '\\') => escaped = true,
            (false, c) if ends(c) => return Some(at),
            (false, _) => {}
        }
    }
    None
}

/// Undoes `\X` and `\DDD`. Characters outside of ASCII are their UTF-8 bytes; control characters are to be escaped.
fn unescaped(source: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => {
                let (byte, after) = escape(after)?;
                bytes.extend(byte);
                after
            }
            c if c.is_control() => return Err("control characters are written as \\DDD"),
            c => {
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                after
            }
        };
    }
    Ok(bytes)
}

/// What follows a backslash: three decimal digits, or any character for itself.
fn escape(text: &str) -> Result<(Vec<u8>, &str), &'static str> {
    let first = text.chars().next().ok_or("a backslash escapes nothing")?;
    if first.is_ascii_digit() {
        let digits = text.get(..3).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let value = digits.and_then(|digits| digits.parse::<u8>().ok());
        return value.map(|value| (vec![value], &text[3..])).ok_or("\\DDD is of three digits, at most \\255");
    }
    let length = first.len_utf8();
    Ok((text.as_bytes()[..length].to_vec(), &text[length..]))
}

/// A name in wire form (RFC 1035 §3.1), lower case (RFC 4034 §6.2). It must be whole: without the dot at its end, some would take it for a name below another.
pub fn name(source: &str) -> Result<Vec<u8>, String> {
    let told = || short(source);
    if !source.is_ascii() {
        return Err(format!("{:?} is not ASCII: write its `xn--` form", told()));
    }
    if source == "." {
        return Ok(vec![0]);
    }
    let mut wire = Vec::with_capacity(source.len() + 2);
    let mut label = Vec::new();
    let mut whole = false;
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        whole = false;
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '.' => {
                let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
                let length = length.ok_or_else(|| format!("{:?}: a label has 1 to 63 bytes", told()))?;
                wire.push(length);
                wire.append(&mut label);
                whole = true;
                after
            }
            '\\' => {
                let (bytes, after) = escape(after)?;
                label.extend(bytes.to_ascii_lowercase());
                after
            }
            c if c.is_ascii_graphic() => {
                label.push(u8::try_from(c).unwrap_or_default().to_ascii_lowercase());
                after
            }
            _ => return Err(format!("{:?} is no name", told())),
        };
    }
    if !whole {
        return Err(format!("end the name with a dot: {:?}", format!("{}.", told())));
    }
    wire.push(0);
    if wire.len() > 255 {
        return Err("a name has at most 255 bytes".to_owned());
    }
    Ok(wire)
}

/// In quotes, with quotes, backslashes and everything outside of printable ASCII escaped.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            0x20..=0x7e => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\{byte:03}")),
        }
    }
    text.push('"');
    text
}

/// The beginning of a text, for errors.
pub fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
