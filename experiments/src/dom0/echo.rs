//! The far end of a guest's network traffic: sends every datagram back.

use crate::workload::devices::ECHO_ADDRESS;
use anyhow::{Context, Result};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Starts the service, once; it runs until the process ends.
pub fn start() -> Result<()> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let socket =
        UdpSocket::bind(ECHO_ADDRESS).with_context(|| format!("echo service on {ECHO_ADDRESS}"))?;
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        loop {
            // Errors are the peer's (it may be gone); the next one may be well.
            if let Ok((len, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..len], from);
            }
        }
    });
    STARTED.store(true, Ordering::Relaxed);
    Ok(())
}
