//! Many datagrams a system call: `recvmmsg` and `sendmmsg`.
//!
//! The only `unsafe` of this crate. Nothing of the kernel's outlives a call: the arrays that point into the buffers are made for each
//! call from buffers that this module owns.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;

/// Datagrams a call.
pub const BATCH: usize = 32;

/// Longer questions than this are cut, and then malformed: a question is a name and a few options.
const MAX_QUESTION: usize = 4096;

/// Room for a batch of questions, where they came from, and their answers.
pub struct Batch {
    questions: Vec<[u8; MAX_QUESTION]>,
    lengths: [usize; BATCH],
    peers: Vec<libc::sockaddr_storage>,
    peer_lengths: [libc::socklen_t; BATCH],
    answers: Vec<Vec<u8>>,
    /// To which peer each answer goes.
    to: Vec<usize>,
}

impl Batch {
    /// Empty.
    pub fn new() -> Self {
        // SAFETY: `sockaddr_storage` consists of integers; all zeroes is a value of it (an address of no family).
        let nowhere: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            questions: vec![[0; MAX_QUESTION]; BATCH],
            lengths: [0; BATCH],
            peers: vec![nowhere; BATCH],
            peer_lengths: [0; BATCH],
            answers: vec![Vec::new(); BATCH],
            to: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for at least one question and takes as many as there are.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when its time-out passed.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| libc::iovec {
            iov_base: self.questions.get_mut(at).map_or(std::ptr::null_mut(), |q| q.as_mut_ptr().cast()),
            iov_len: MAX_QUESTION,
        });
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|at| {
            let peer = self.peers.get_mut(at).map_or(std::ptr::null_mut(), std::ptr::from_mut);
            header(peer.cast(), size_of::<libc::sockaddr_storage>(), vectors.get_mut(at))
        });
        self.to.clear();
        // SAFETY: `headers` has BATCH elements; each points to a buffer of MAX_QUESTION bytes and an address of the size given,
        // both owned by `self` and not touched otherwise until the call returns. No time-out is passed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH_U32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for ((length, peer_length), header) in
            self.lengths.iter_mut().zip(&mut self.peer_lengths).zip(headers.iter().take(received))
        {
            *length = usize::try_from(header.msg_len).unwrap_or(0);
            *peer_length = header.msg_hdr.msg_namelen;
        }
        Ok(received)
    }

    /// The question with that number, where it came from, and where its answer is to be written. The answer goes out
    /// with [`Batch::send`] when [`Batch::keep`] was called for it.
    pub fn question(&mut self, at: usize) -> Option<(&[u8], IpAddr, &mut Vec<u8>)> {
        let address = address_of(self.peers.get(at)?)?;
        let question = self.questions.get(at)?.get(..*self.lengths.get(at)?)?;
        Some((question, address, self.answers.get_mut(at)?))
    }

    /// Where the question with that number came from, with its port.
    pub fn peer(&self, at: usize) -> Option<SocketAddr> {
        socket_address_of(self.peers.get(at)?)
    }

    /// The answer of that number is to be sent.
    pub fn keep(&mut self, at: usize) {
        self.to.push(at);
    }

    /// Sends what was kept. An answer that the kernel does not take is lost: its client asks again, and nobody else waits.
    pub fn send(&mut self, socket: &UdpSocket) {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| {
            let answer = self.to.get(at).and_then(|at| self.answers.get_mut(*at));
            let (base, length) = answer.map_or((std::ptr::null_mut(), 0), |a| (a.as_mut_ptr(), a.len()));
            libc::iovec { iov_base: base.cast(), iov_len: length }
        });
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|at| {
            let index = self.to.get(at).copied().unwrap_or(0);
            let length = self.peer_lengths.get(index).and_then(|length| usize::try_from(*length).ok());
            let peer = self.peers.get_mut(index).map_or(std::ptr::null_mut(), std::ptr::from_mut);
            header(peer.cast(), length.unwrap_or(0), vectors.get_mut(at))
        });
        let mut rest = headers.get_mut(..self.to.len().min(BATCH)).unwrap_or_default();
        while !rest.is_empty() {
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            // SAFETY: `rest` has `count` elements; each points to an answer's initialized bytes and to the address that its question came
            // from with its length as the kernel gave it, all owned by `self` and not touched until the call returns.
            let sent =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
            // The first of the rest failed: it is given up, and the others are tried.
            let done = usize::try_from(sent).unwrap_or(0).max(1);
            rest = rest.get_mut(done..).unwrap_or_default();
        }
    }
}

const BATCH_U32: libc::c_uint = 32;
const _: () = assert!(BATCH == 32);

fn header(peer: *mut libc::c_void, peer_length: usize, vector: Option<&mut libc::iovec>) -> libc::mmsghdr {
    // SAFETY: both structures consist of integers and pointers; all zeroes is a value of them (no name, no data, no control).
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = peer;
    header.msg_hdr.msg_namelen = libc::socklen_t::try_from(peer_length).unwrap_or(0);
    header.msg_hdr.msg_iov = vector.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    header.msg_hdr.msg_iovlen = 1;
    header
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<IpAddr> {
    socket_address_of(storage).map(|address| address.ip().to_canonical())
}

fn socket_address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage = std::ptr::from_ref(storage);
    // SAFETY: the reference that `storage` was made of is to memory at least as large and as aligned as each of the two kinds of address, which
    // consist of integers; which kind it is is read first.
    unsafe {
        match libc::c_int::from((*storage).ss_family) {
            libc::AF_INET => {
                let address = &*storage.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address = &*storage.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn datagrams_come_in_batches_and_their_answers_go_back_to_whom_they_are_for() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(local).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut batch = Batch::new();
            assert_eq!(batch.receive(&server).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let clients: Vec<UdpSocket> = (0..5).map(|_| UdpSocket::bind(local).unwrap()).collect();
            for (at, client) in clients.iter().enumerate() {
                client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                client.send_to(&[u8::try_from(at).unwrap()], server.local_addr().unwrap()).unwrap();
            }
            let mut seen = 0;
            while seen < clients.len() {
                let received = batch.receive(&server).unwrap();
                for at in 0..received {
                    let (question, address, answer) = batch.question(at).unwrap();
                    assert!(address.is_loopback());
                    answer.clear();
                    answer.extend_from_slice(&[question[0], 7]);
                    // The third is not answered.
                    if question[0] != 2 {
                        batch.keep(at);
                    }
                }
                batch.send(&server);
                seen += received;
            }
            for (at, client) in clients.iter().enumerate().filter(|(at, _)| *at != 2) {
                let mut answer = [0; 10];
                let length = client.recv(&mut answer).unwrap();
                assert_eq!(answer[..length], [u8::try_from(at).unwrap(), 7]);
            }
        }
    }
}
