//! What somebody reads when the edge answers in place of a machine: what happened, whose fault it is, what to do.
//!
//! One page in three forms: HTML for browsers, JSON for programs, plain text for the rest, by `Accept`.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::json;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The request's.
    Yours,
    /// The machine's: its owner can do something.
    Machines,
    /// The platform's.
    Ours,
}

impl Whose {
    fn word(self) -> &'static str {
        match self {
            Self::Yours => "request",
            Self::Machines => "machine",
            Self::Ours => "platform",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Yours => "The request is at fault: neither the machine nor the platform is.",
            Self::Machines => "The machine is at fault: the platform works, and your request was fine.",
            Self::Ours => "The platform is at fault: the machine may be fine, and your request was.",
        }
    }
}

/// An answer of the edge itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: StatusCode,
    /// Whose fault it is.
    pub whose: Whose,
    /// What happened, a sentence without its full stop.
    pub what: String,
    /// What to do, a sentence.
    pub hint: String,
    /// Seconds after which it may be different.
    pub retry_after: Option<u32>,
}

impl Page {
    /// A page.
    pub fn new(status: StatusCode, whose: Whose, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, whose, what: what.into(), hint: hint.into(), retry_after: None }
    }

    /// The request is at fault.
    pub fn yours(status: StatusCode, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(status, Whose::Yours, what, hint)
    }

    /// The machine is at fault.
    pub fn machines(status: StatusCode, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(status, Whose::Machines, what, hint)
    }

    /// The same, worth another try after so many seconds.
    pub fn again_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// As somebody who sends those headers wants it.
    pub fn render(&self, headers: &HeaderMap) -> Response<Bytes> {
        let (kind, body) = match Form::wanted(headers) {
            Form::Html => ("text/html; charset=utf-8", self.html()),
            Form::Json => ("application/json", self.json()),
            Form::Text => ("text/plain; charset=utf-8", self.text()),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
        response
    }

    fn title(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.status.canonical_reason().unwrap_or("Error"))
    }

    fn text(&self) -> String {
        format!("{}\n\n{}. {}\n{}\n", self.title(), self.what, self.hint, self.whose.sentence())
    }

    fn json(&self) -> String {
        json!({"error": self.what, "status": self.status.as_u16(), "fault": self.whose.word(), "hint": self.hint}).to_string() + "\n"
    }

    fn html(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem;\
             color-scheme:light dark}}h1{{font-size:1.4rem}}small{{opacity:.7}}</style></head><body><h1>{title}</h1>\
             <p>{what}.</p><p>{hint}</p><p><small>{whose}</small></p></body></html>\n",
            title = escape(&self.title()),
            what = escape(&self.what),
            hint = escape(&self.hint),
            whose = self.whose.sentence(),
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

impl Form {
    /// The first of the three that is named. Nobody weighs (`q`) these against each other in earnest.
    fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let kinds =
            accept.flat_map(|line| line.split(',')).map(|kind| kind.split(';').next().unwrap_or("").trim());
        for kind in kinds {
            match kind {
                "text/html" | "application/xhtml+xml" => return Self::Html,
                "text/plain" => return Self::Text,
                kind if kind == "application/json" || kind.ends_with("+json") => return Self::Json,
                _ => (),
            }
        }
        Self::Text
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(accept: Option<&'static str>) -> (String, String) {
        let page = Page::machines(
            StatusCode::BAD_GATEWAY,
            "Nothing listens on port 80 of machine <web>",
            "Start your server.",
        );
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        let response = page.again_after(3).render(&headers);
        assert_eq!(
            (response.status(), response.headers()[RETRY_AFTER].as_bytes()),
            (StatusCode::BAD_GATEWAY, &b"3"[..])
        );
        assert_eq!(response.headers()[CONTENT_LENGTH], response.body().len().to_string());
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        (kind, String::from_utf8(response.into_body().to_vec()).unwrap())
    }

    #[test]
    fn a_page_comes_in_the_form_that_is_asked_for_and_says_whose_fault_it_is() {
        let (kind, html) = rendered(Some("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(
            kind.starts_with("text/html") && html.contains("machine &lt;web&gt;") && !html.contains("<web>")
        );
        let (kind, json) = rendered(Some("application/json"));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((kind.as_str(), &json["fault"]), ("application/json", &serde_json::json!("machine")));
        for accept in [None, Some("*/*"), Some("image/png"), Some("text/plain, text/html")] {
            let (kind, text) = rendered(accept);
            assert!(kind.starts_with("text/plain") && text.contains("The machine is at fault"), "{accept:?}");
        }
    }
}
