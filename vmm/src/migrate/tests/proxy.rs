//! A link that can be cut after a given TLS record, or swallow everything from it on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Where and how it cuts.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Records that still pass, …
    pub after: usize,
    /// … counted in this direction, over all connections.
    pub towards_destination: bool,
    /// All connections close; otherwise they stay open and silent.
    pub close: bool,
}

pub struct Proxy {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    cut: Cut,
    passed: AtomicUsize,
    is_cut: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn new(to: SocketAddr, cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            cut,
            passed: AtomicUsize::new(0),
            is_cut: AtomicBool::new(false),
            sockets: Mutex::default(),
        });
        let accepting = Arc::clone(&inner);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(to) else { return };
                if accepting.is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                accepting
                    .sockets
                    .lock()
                    .unwrap()
                    .extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (there, back) = (Arc::clone(&accepting), Arc::clone(&accepting));
                std::thread::spawn(move || there.pass(near, far, true));
                std::thread::spawn(move || back.pass(far2, near2, false));
            }
        });
        Self { address, inner }
    }

    pub fn was_cut(&self) -> bool {
        self.inner.is_cut.load(Ordering::SeqCst)
    }

    /// From now on nothing passes, and nobody is told.
    pub fn swallow(&self) {
        self.inner.is_cut.store(true, Ordering::SeqCst);
    }

    /// Closes everything, as a link that is repaired shows to both ends that the other is gone.
    pub fn close(&self) {
        self.inner.is_cut.store(true, Ordering::SeqCst);
        for socket in self.inner.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Inner {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream, towards_destination: bool) {
        let _ = to.set_nodelay(true);
        loop {
            let mut record = vec![0; 5];
            if from.read_exact(&mut record).is_err() {
                break;
            }
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            if from.read_exact(&mut record[5..]).is_err() {
                break;
            }
            if towards_destination == self.cut.towards_destination
                && self.passed.fetch_add(1, Ordering::SeqCst) >= self.cut.after
            {
                self.is_cut.store(true, Ordering::SeqCst);
                if self.cut.close {
                    for socket in self.sockets.lock().unwrap().drain(..) {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                }
            }
            if !self.is_cut.load(Ordering::SeqCst) && to.write_all(&record).is_err() {
                break;
            }
        }
        if !self.is_cut.load(Ordering::SeqCst) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}
