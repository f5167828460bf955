//! A transfer as messages (RFC 5936 §2.2, RFC 1995 §4): as many as it takes, each signed when the request was.

use std::sync::Arc;

use super::copy::{Place, Wire, ZoneCopy};
use crate::message::{HEADER, Message};
use crate::tsig::Conversation;

/// What a message is filled to, bytes. There is room above for a signature, and for a single record that is longer.
const FILL: usize = 16 * 1024;

/// A transfer under way.
#[derive(Debug)]
pub struct Transfer {
    rest: Rest,
    copy: Arc<ZoneCopy>,
    /// How the next message begins.
    head: Vec<u8>,
    conversation: Option<Conversation>,
}

/// What is still to be sent.
#[derive(Debug)]
enum Rest {
    /// The first SOA, and what follows.
    Begin(Body),
    /// What follows it, and the SOA again.
    Body(Body),
    End,
}

#[derive(Debug)]
enum Body {
    /// All records behind a place.
    All(Option<Place>),
    /// These.
    These(std::vec::IntoIter<Wire>),
}

impl Transfer {
    /// The whole zone.
    pub fn all(copy: Arc<ZoneCopy>, request: &Message<'_>, conversation: Option<Conversation>) -> Self {
        Self::new(Rest::Begin(Body::All(None)), copy, request, conversation)
    }

    /// What changed since: the records of [`Since::Changes`](super::journal::Since).
    pub fn changes(
        copy: Arc<ZoneCopy>,
        records: Vec<Wire>,
        request: &Message<'_>,
        conversation: Option<Conversation>,
    ) -> Self {
        Self::new(Rest::Begin(Body::These(records.into_iter())), copy, request, conversation)
    }

    /// Nothing but the SOA: there is nothing new, or it does not go over UDP.
    pub fn soa(copy: Arc<ZoneCopy>, request: &Message<'_>, conversation: Option<Conversation>) -> Self {
        // What is said at the end of every other one is all there is to say.
        Self::new(Rest::Body(Body::These(Vec::new().into_iter())), copy, request, conversation)
    }

    fn new(
        rest: Rest,
        copy: Arc<ZoneCopy>,
        request: &Message<'_>,
        conversation: Option<Conversation>,
    ) -> Self {
        Self { rest, copy, head: request.reply(0, true), conversation }
    }

    /// The next message; none after the last.
    pub fn next_message(&mut self, now: u64) -> Option<Vec<u8>> {
        if matches!(self.rest, Rest::End) {
            return None;
        }
        let mut message = std::mem::take(&mut self.head);
        // Later messages need no question (RFC 5936 §2.2.1).
        self.head = message.get(..HEADER).unwrap_or_default().to_vec();
        if let Some(counts) = self.head.get_mut(4..) {
            counts.fill(0);
        }
        let mut count: u16 = 0;
        while message.len() < FILL {
            let Some(record) = self.next_record() else { break };
            message.extend_from_slice(&record);
            count += 1;
        }
        if let Some(place) = message.get_mut(6..8) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        if let Some(conversation) = &mut self.conversation {
            conversation.sign(&mut message, now);
        }
        Some(message)
    }

    fn next_record(&mut self) -> Option<Wire> {
        match std::mem::replace(&mut self.rest, Rest::End) {
            Rest::End => None,
            Rest::Begin(body) => {
                self.rest = Rest::Body(body);
                self.copy.soa().cloned()
            }
            Rest::Body(Body::All(place)) => match self.copy.after(place.as_ref()) {
                Some((next, record)) => {
                    self.rest = Rest::Body(Body::All(Some(next)));
                    Some(Arc::clone(record))
                }
                None => self.copy.soa().cloned(),
            },
            Rest::Body(Body::These(mut records)) => match records.next() {
                Some(record) => {
                    self.rest = Rest::Body(Body::These(records));
                    Some(record)
                }
                None => self.copy.soa().cloned(),
            },
        }
    }
}
