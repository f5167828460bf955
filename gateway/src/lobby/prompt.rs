//! The lobby's prompt: a line editor (pure), and the loop that reads, runs and listens for Ctrl-C meanwhile.

use std::future::Future;

use mashines_cli::{Session, complete};
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncWriteExt as _, BufReader, DuplexStream};

use super::terminal::MAX_LINE;
use super::{INTERRUPTED, Lobby, Size, run_line, sized};
use crate::control::Caller;

/// Lines that the arrows bring back.
const HISTORY: usize = 100;

/// What a key led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Enter.
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D on an empty line.
    End,
    /// Tab.
    Complete,
}

/// Where an escape sequence stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

/// A line being typed. It is edited at its end only; what a key changes on the screen is in [`Editor::echo`].
#[derive(Debug, Default)]
pub struct Editor {
    prompt: &'static str,
    line: Vec<u8>,
    escape: Escape,
    history: Vec<String>,
    /// How far back the arrows have gone; 0 is the line itself.
    back: usize,
    last_was_return: bool,
    echo: Vec<u8>,
}

impl Editor {
    /// Takes one byte; its effect on the screen is added to the echo.
    pub fn key(&mut self, byte: u8) -> Option<Event> {
        // Return is `\r`; a client that sends `\r\n` means one line.
        let after_return = std::mem::replace(&mut self.last_was_return, byte == b'\r');
        match (self.escape, byte) {
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Sequence,
            (Escape::Begun, _) => self.escape = Escape::None,
            (Escape::Sequence, b'A') => self.recall(self.back + 1),
            (Escape::Sequence, b'B') => self.recall(self.back.saturating_sub(1)),
            (Escape::Sequence, 0x40..=0x7e) => self.escape = Escape::None,
            (Escape::Sequence, _) => (),
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::None, b'\n') if after_return => (),
            (Escape::None, b'\r' | b'\n') => return Some(Event::Line(self.enter())),
            (Escape::None, 0x03) => {
                self.echo.extend(b"^C\r\n");
                self.line.clear();
                self.back = 0;
                return Some(Event::Interrupt);
            }
            (Escape::None, 0x04) if self.line.is_empty() => return Some(Event::End),
            (Escape::None, b'\t') => return Some(Event::Complete),
            (Escape::None, 0x7f | 0x08) => self.rub_out(),
            (Escape::None, 0x15) => self.replace(Vec::new()),
            (Escape::None, 0x17) => self.rub_out_word(),
            (Escape::None, 0x00..0x20) => (),
            (Escape::None, _) if self.line.len() < MAX_LINE => {
                self.line.push(byte);
                self.echo.push(byte);
            }
            (Escape::None, _) => (),
        }
        None
    }

    /// What is to be sent to the screen; it is taken.
    pub fn echo(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.echo)
    }

    /// Shows the prompt on a fresh line.
    fn ask(&mut self, prompt: &'static str) {
        self.prompt = prompt;
        self.redraw();
    }

    /// The line as far as it is typed.
    fn typed(&self) -> String {
        String::from_utf8_lossy(&self.line).into_owned()
    }

    /// Puts `words` to the line's last word: the only one completes it, several are shown.
    fn complete(&mut self, words: &[String]) {
        let typed = self.typed();
        let begun = typed.rsplit(char::is_whitespace).next().unwrap_or_default().len();
        let common = common_prefix(words);
        if let Some(more) = common.get(begun..).filter(|more| !more.is_empty()) {
            self.line.extend(more.as_bytes());
        }
        match words {
            [_only] => self.line.push(b' '),
            [] => (),
            several => {
                self.echo.extend(b"\r\n");
                self.echo.extend(several.join("  ").as_bytes());
                self.echo.extend(b"\r\n");
            }
        }
        self.redraw();
    }

    fn enter(&mut self) -> String {
        self.echo.extend(b"\r\n");
        self.back = 0;
        let line = self.typed();
        self.line.clear();
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
            if self.history.len() > HISTORY {
                self.history.remove(0);
            }
        }
        line
    }

    fn recall(&mut self, back: usize) {
        self.escape = Escape::None;
        if back > self.history.len() {
            return;
        }
        self.back = back;
        let line = match self.history.len().checked_sub(back) {
            Some(at) if back > 0 => self.history.get(at).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        self.replace(line.into_bytes());
    }

    fn rub_out(&mut self) {
        // One character: its continuation bytes (10xxxxxx) and its first.
        while self.line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
        self.redraw();
    }

    fn rub_out_word(&mut self) {
        let typed = self.typed();
        let kept = typed.trim_end().rfind(char::is_whitespace).map_or(0, |at| at + 1);
        self.replace(typed.get(..kept).unwrap_or_default().as_bytes().to_vec());
    }

    fn replace(&mut self, line: Vec<u8>) {
        self.line = line;
        self.redraw();
    }

    fn redraw(&mut self) {
        self.echo.extend(b"\r\x1b[K");
        self.echo.extend(self.prompt.as_bytes());
        self.echo.extend(&self.line);
    }
}

fn common_prefix(words: &[String]) -> String {
    let Some(first) = words.first() else { return String::new() };
    let length = words.iter().fold(first.len(), |length, word| {
        let same = first.bytes().zip(word.bytes()).take_while(|(a, b)| a == b).count();
        length.min(same)
    });
    first.get(..length).unwrap_or_default().to_owned()
}

/// Reads and runs lines until the person leaves; the last command's exit code.
pub async fn run(
    lobby: &Lobby,
    caller: &Caller,
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    mut size: Size,
) -> u8 {
    let mut editor = Editor::default();
    let mut code = 0;
    let greeting = format!(
        "This is {}, as {}. Try `ls`, `launch` or `help`; `exit` or Ctrl-D leaves.\r\n",
        lobby.gateway(),
        caller.account
    );
    if to.data_bytes(greeting.into_bytes()).await.is_err() {
        return code;
    }
    loop {
        editor.ask("mashines> ");
        let line = match read_line(from, to, &mut editor, &mut size).await {
            Some(Event::Line(line)) => line,
            Some(Event::Interrupt | Event::Complete) => continue,
            Some(Event::End) | None => return code,
        };
        if matches!(line.trim(), "exit" | "quit" | "logout") {
            return code;
        }
        let mut session = lobby.session(caller, to, Some(size));
        let typed = typed_into(&mut session);
        code = attend(run_line(caller, &line, &mut session), from, to, &mut editor, Some(typed)).await;
    }
}

/// A command's standard input: what is written to the other end.
pub fn typed_into(session: &mut Session) -> DuplexStream {
    let (typed, stdin) = tokio::io::duplex(MAX_LINE);
    session.stdin = Some(Box::new(BufReader::new(stdin)));
    typed
}

/// The next line or signal; `None` when the client is gone.
async fn read_line(
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    editor: &mut Editor,
    size: &mut Size,
) -> Option<Event> {
    to.data_bytes(editor.echo()).await.ok()?;
    loop {
        match from.wait().await? {
            ChannelMsg::Data { data } => {
                // What was typed ahead of a command's end is lost with it, as in a shell that flushes its input.
                for byte in data {
                    match editor.key(byte) {
                        Some(Event::Complete) => {
                            let words = complete(&editor.typed());
                            editor.complete(&words);
                        }
                        Some(event) => {
                            to.data_bytes(editor.echo()).await.ok()?;
                            return Some(event);
                        }
                        None => (),
                    }
                }
                to.data_bytes(editor.echo()).await.ok()?;
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => *size = sized((col_width, row_height)),
            ChannelMsg::Eof => return Some(Event::End),
            ChannelMsg::Close => return None,
            _ => (),
        }
    }
}

/// Runs `command` while the keyboard stays live: Ctrl-C ends it, lines go to its standard input.
pub async fn attend(
    command: impl Future<Output = u8>,
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    editor: &mut Editor,
    stdin: Option<DuplexStream>,
) -> u8 {
    editor.prompt = "";
    tokio::select! {
        code = command => code,
        () = listen(from, to, editor, stdin) => INTERRUPTED,
    }
}

/// Returns when the command is to end: Ctrl-C, or the client is gone.
async fn listen(
    from: &mut ChannelReadHalf,
    to: &ChannelWriteHalf<Msg>,
    editor: &mut Editor,
    mut stdin: Option<DuplexStream>,
) {
    while let Some(message) = from.wait().await {
        let data = match message {
            ChannelMsg::Data { data } => data,
            ChannelMsg::Close => return,
            ChannelMsg::Eof => {
                stdin = None;
                continue;
            }
            _ => continue,
        };
        for byte in data {
            let event = editor.key(byte);
            if to.data_bytes(editor.echo()).await.is_err() {
                return;
            }
            match event {
                Some(Event::Interrupt) => return,
                Some(Event::Line(line)) => {
                    if let Some(stdin) = &mut stdin {
                        let _unread = stdin.write_all(format!("{line}\n").as_bytes()).await;
                    }
                }
                Some(Event::End) => stdin = None,
                Some(Event::Complete) | None => (),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(editor: &mut Editor, keys: &[u8]) -> Vec<Event> {
        keys.iter().filter_map(|key| editor.key(*key)).collect()
    }

    fn line(text: &str) -> Event {
        Event::Line(text.to_owned())
    }

    #[test]
    fn lines_are_edited_at_their_end() {
        let mut editor = Editor::default();
        assert_eq!(typed(&mut editor, b"lx\x7fs\r"), [line("ls")]);
        assert_eq!(typed(&mut editor, "é\x7f\x7fshow web\x17db\r".as_bytes()), [line("show db")]);
        assert_eq!(typed(&mut editor, b"junk\x15ls\r\n"), [line("ls")], "one line for CR LF");
        assert_eq!(typed(&mut editor, b"rm\x03\x04"), [Event::Interrupt, Event::End]);
        assert_eq!(typed(&mut editor, b"a\x04\r"), [line("a")], "Ctrl-D is nothing within a line");
    }

    #[test]
    fn arrows_go_through_the_history_and_other_sequences_do_nothing() {
        let mut editor = Editor::default();
        typed(&mut editor, b"one\rtwo\r");
        assert_eq!(typed(&mut editor, b"\x1b[A\x1b[A\x1b[A\r"), [line("one")]);
        assert_eq!(typed(&mut editor, b"\x1b[A\x1b[B\x1b[3~\x1b[1;5Cx\r"), [line("x")]);
    }

    #[test]
    fn tab_completes_what_is_common_and_shows_the_rest() {
        let mut editor = Editor::default();
        typed(&mut editor, b"st");
        editor.complete(&["start".into(), "stop".into()]);
        assert!(String::from_utf8(editor.echo()).unwrap().contains("start  stop"));
        typed(&mut editor, b"a");
        editor.complete(&["start".into()]);
        assert_eq!(typed(&mut editor, b"web\r"), [line("start web")]);
    }

    #[test]
    fn no_bytes_make_the_editor_grow_or_fail() {
        let mut editor = Editor::default();
        for n in 0..200_000u32 {
            let byte = n.wrapping_mul(2_654_435_761).to_be_bytes()[0];
            editor.key(byte);
            assert!(editor.line.len() <= MAX_LINE && editor.history.len() <= HISTORY);
        }
    }
}
