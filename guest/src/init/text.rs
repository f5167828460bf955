//! The part of a text file that is ours.
//!
//! Files like `/etc/hosts` and `authorized_keys` belong to the people in the machine; init owns one marked block in each, and
//! rewrites only that at every boot.

const BEGIN: &str = "# mashines: begin (rewritten at every boot)";
const END: &str = "# mashines: end";

/// `existing` with our block replaced by `lines`, or put first when there was none. No lines, no block.
pub fn with_block<L: AsRef<str>>(existing: &str, lines: &[L]) -> String {
    let (mut before, mut after) = (String::new(), String::new());
    let mut state = Place::Before;
    for line in existing.lines() {
        match (state, line) {
            (Place::Before, BEGIN) => state = Place::Inside,
            (Place::Inside, END) => state = Place::After,
            (Place::Inside, _) => {}
            (Place::Before, line) => push(&mut before, line),
            (Place::After, line) => push(&mut after, line),
        }
    }
    // Without a block all of the file stands behind the new one: the first match wins in most of these formats.
    if state == Place::Before {
        after = std::mem::take(&mut before);
    }
    let mut text = before;
    if !lines.is_empty() {
        push(&mut text, BEGIN);
        lines.iter().for_each(|line| push(&mut text, line.as_ref()));
        push(&mut text, END);
    }
    text.push_str(&after);
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Inside,
    After,
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays_and_our_block_is_replaced() {
        let first = with_block("theirs\n", &["ours 1"]);
        assert_eq!(first, format!("{BEGIN}\nours 1\n{END}\ntheirs\n"));
        let second = with_block(&format!("top\n{first}"), &["ours 2", "ours 3"]);
        assert_eq!(second, format!("top\n{BEGIN}\nours 2\nours 3\n{END}\ntheirs\n"));
    }

    #[test]
    fn no_lines_leave_no_block() {
        let with = with_block("theirs\n", &["ours"]);
        assert_eq!(with_block::<&str>(&with, &[]), "theirs\n");
    }

    #[test]
    fn an_unfinished_block_swallows_no_more_than_itself_twice() {
        let torn = format!("theirs\n{BEGIN}\nours\n");
        assert_eq!(with_block(&torn, &["new"]), format!("theirs\n{BEGIN}\nnew\n{END}\n"));
    }
}
