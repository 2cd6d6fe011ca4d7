//! Traffic on the disk and the network, so that the front-ends are really
//! connected, and visibly go on (or not) after a save or a restore.

use super::faults::run;
use super::output::Output;
use super::pattern::{Page, Stamp};
use super::writer::area_seed;
use std::fs::OpenOptions;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Where the suite in dom0 echoes datagrams.
pub const ECHO_ADDRESS: &str = "10.77.0.1:7777";

/// Blocks of 4 KiB that are written in turn.
const BLOCKS: u64 = 256;

/// What the devices have done so far.
#[derive(Default)]
pub struct Traffic {
    /// Blocks written to the disk and read back right.
    pub disk_ok: AtomicU64,
    /// Blocks that failed or came back wrong.
    pub disk_bad: AtomicU64,
    /// Datagrams sent.
    pub net_sent: AtomicU64,
    /// Datagrams that came back.
    pub net_back: AtomicU64,
}

/// Starts writing to and reading from xvda, past the page cache. The blocks are
/// raw: a restored guest that finds a newer disk is not upset by it.
pub fn use_disk(traffic: &Arc<Traffic>, seed: u64, out: &Output) -> io::Result<()> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open("/dev/xvda")?;
    let (traffic, out) = (Arc::clone(traffic), out.clone());
    thread::spawn(move || {
        // One page of aligned memory for O_DIRECT, as bytes for the file.
        let mut page = Page::zero();
        for seq in 1.. {
            let stamp = Stamp {
                seed: area_seed(seed, 1000),
                page: seq % BLOCKS,
                seq,
                body: seq,
            };
            page.fill(stamp);
            let at = stamp.page * 4096;
            let done = disk
                .write_all_at(page.as_bytes(), at)
                .and_then(|()| disk.sync_data())
                .and_then(|()| disk.read_exact_at(page.as_bytes_mut(), at));
            let right = done.is_ok() && page.check(stamp).is_ok();
            if right {
                traffic.disk_ok.fetch_add(1, Ordering::Relaxed);
            } else if traffic.disk_bad.fetch_add(1, Ordering::Relaxed) < 3 {
                out.error("disk", format_args!("block {}: {done:?}", stamp.page));
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    Ok(())
}

/// Brings up eth0 and sends datagrams to the echo service in dom0.
pub fn use_net(traffic: &Arc<Traffic>, address: &str, out: &Output) -> io::Result<()> {
    run(
        "ip",
        &["addr", "add", &format!("{address}/24"), "dev", "eth0"],
    )?;
    run("ip", &["link", "set", "eth0", "up"])?;
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let (traffic, out) = (Arc::clone(traffic), out.clone());
    thread::spawn(move || {
        let mut errors = 0;
        for seq in 1_u64.. {
            let sent = seq.to_le_bytes();
            match socket.send_to(&sent, ECHO_ADDRESS) {
                Ok(_) => {
                    traffic.net_sent.fetch_add(1, Ordering::Relaxed);
                    let mut back = [0; 8];
                    // Late answers to earlier datagrams are read, not counted.
                    while let Ok(8) = socket.recv(&mut back) {
                        if back == sent {
                            traffic.net_back.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                    }
                }
                Err(err) if errors < 3 => {
                    errors += 1;
                    out.error("net", err);
                }
                Err(_) => {}
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    Ok(())
}
