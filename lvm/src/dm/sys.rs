//! The ioctls of device-mapper (linux/dm-ioctl.h, interface version 4).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{Device, Target};

/// `DM_DEV_SUSPEND_CMD`: holds a device, or lets it go.
pub const DEV_SUSPEND: u8 = 6;
/// `DM_DEV_STATUS_CMD`.
pub const DEV_STATUS: u8 = 7;
/// `DM_TABLE_CLEAR_CMD`.
pub const TABLE_CLEAR: u8 = 10;
/// `DM_TABLE_LOAD_CMD`.
const TABLE_LOAD: u8 = 9;
/// `DM_TABLE_STATUS_CMD`.
const TABLE_STATUS: u8 = 12;
/// `DM_TARGET_MSG_CMD`.
const TARGET_MSG: u8 = 14;

/// `DM_STATUS_TABLE_FLAG`.
const STATUS_TABLE: u32 = 1 << 4;
/// `DM_BUFFER_FULL_FLAG`.
const BUFFER_FULL: u32 = 1 << 8;
/// `DM_SUSPEND_FLAG`.
pub const SUSPENDED: u32 = 1 << 1;
/// `DM_INACTIVE_PRESENT_FLAG`.
pub const INACTIVE_PRESENT: u32 = 1 << 6;

/// `DM_IOCTL`.
const TYPE: u64 = 0xfd;
/// The interface that all kernels since 2.6 have.
const VERSION: [u32; 3] = [4, 0, 0];

/// `struct dm_ioctl`.
#[repr(C)]
struct Request {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const SIZE: usize = size_of::<Request>();
const _: () = assert!(SIZE == 312);

/// A request with a message: `struct dm_target_msg` follows.
#[repr(C)]
struct Message {
    head: Request,
    sector: u64,
    /// With a zero at its end.
    text: [u8; 128],
}

/// A request with a table: `struct dm_target_spec`s with their parameters follow.
#[repr(C)]
struct Table {
    head: Request,
    room: [u8; 4096],
}

/// `struct dm_target_spec`: start and length in sectors (u64), status (i32), offset of the next
/// (u32), type (16 bytes).
const SPEC: usize = 40;

impl Table {
    fn new(device: &Device, flags: u32) -> io::Result<Self> {
        Ok(Self {
            head: Request::new(device, flags, size_of::<Self>())?,
            room: [0; 4096],
        })
    }

    fn exchange(&mut self, control: &File, command: u8) -> io::Result<()> {
        // SAFETY: `self` is a whole `struct dm_ioctl` that says how long it is with the room behind
        // it; the kernel reads it and writes no more than that length back to it.
        let done =
            unsafe { libc::ioctl(control.as_raw_fd(), number(command) as _, &raw mut *self) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        if self.head.flags & BUFFER_FULL != 0 {
            return Err(io::Error::other("its table is too long"));
        }
        Ok(())
    }
}

/// The table of a device.
pub fn table(control: &File, device: &Device) -> io::Result<Vec<Target>> {
    let mut table = Table::new(device, STATUS_TABLE)?;
    table.exchange(control, TABLE_STATUS)?;
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let start = (table.head.data_start as usize).checked_sub(SIZE);
    let specs = start.and_then(|start| table.room.get(start..));
    parse(specs.ok_or_else(bad)?, table.head.target_count).ok_or_else(bad)
}

/// Offsets are from the first target on.
fn parse(specs: &[u8], count: u32) -> Option<Vec<Target>> {
    let (mut targets, mut at) = (vec![], 0);
    for _ in 0..count {
        let spec = specs.get(at..)?;
        let number = |at: usize| Some(u64::from_ne_bytes(spec.get(at..at + 8)?.try_into().ok()?));
        targets.push(Target {
            start: number(0)?,
            length: number(8)?,
            kind: text(spec.get(24..SPEC)?)?,
            parameters: text(spec.get(SPEC..)?)?,
        });
        at = u32::from_ne_bytes(spec.get(20..24)?.try_into().ok()?) as usize;
    }
    Some(targets)
}

/// Up to the zero at its end.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(str::from_utf8(&bytes[..end]).ok()?.to_owned())
}

/// Loads a table of one target, which applies when the device is let go.
pub fn load(control: &File, device: &Device, target: &Target) -> io::Result<()> {
    let mut table = Table::new(device, 0)?;
    table.head.target_count = 1;
    table.room[..8].copy_from_slice(&target.start.to_ne_bytes());
    table.room[8..16].copy_from_slice(&target.length.to_ne_bytes());
    put(&mut table.room[24..SPEC], &target.kind)?;
    if !target.parameters.is_empty() {
        put(&mut table.room[SPEC..], &target.parameters)?;
    }
    table.exchange(control, TABLE_LOAD)
}

impl Request {
    fn new(device: &Device, flags: u32, size: usize) -> io::Result<Self> {
        let mut request = Self {
            version: VERSION,
            data_size: size as u32,
            data_start: SIZE as u32,
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        };
        match device {
            Device::Uuid(uuid) => put(&mut request.uuid, uuid)?,
            Device::Name(name) => put(&mut request.name, name)?,
        }
        Ok(request)
    }
}

/// With a zero at its end; never cut short.
fn put(field: &mut [u8], text: &str) -> io::Result<()> {
    match field.get_mut(..=text.len()) {
        Some([room @ .., end]) if !text.is_empty() => {
            room.copy_from_slice(text.as_bytes());
            *end = 0;
            Ok(())
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// `_IOWR(TYPE, command, struct dm_ioctl)`
fn number(command: u8) -> u64 {
    3 << 30 | (SIZE as u64) << 16 | TYPE << 8 | u64::from(command)
}

/// Makes a call on a device; returns the flags that the kernel answers.
pub fn call(control: &File, command: u8, device: &Device, flags: u32) -> io::Result<u32> {
    let mut request = Request::new(device, flags, SIZE)?;
    // SAFETY: `request` is a whole `struct dm_ioctl` that says how long it is; the kernel reads it
    // and writes no more than that length back to it.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), number(command) as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request.flags)
}

/// Sends a message to the target of a device that has one only.
pub fn message(control: &File, device: &Device, text: &str) -> io::Result<()> {
    let mut message = Message {
        head: Request::new(device, 0, size_of::<Message>())?,
        sector: 0,
        text: [0; 128],
    };
    put(&mut message.text, text)?;
    // SAFETY: `message` is a whole `struct dm_ioctl` that says how long it is with the
    // `struct dm_target_msg` behind it, whose text ends by a zero; the kernel reads it and writes no
    // more than that length back to it.
    let done = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            number(TARGET_MSG) as _,
            &raw mut message,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_fit_is_not_cut_short() {
        let file = tempfile::tempfile().expect("file");
        let call = |device: Device| call(&file, DEV_STATUS, &device, 0).expect_err("refused");
        for device in [
            Device::Uuid(String::new()),
            Device::Uuid("x".repeat(129)),
            Device::Name("x".repeat(128)),
        ] {
            assert_eq!(call(device).kind(), io::ErrorKind::InvalidInput);
        }
        // A file is no device-mapper.
        for device in [Device::Uuid("x".repeat(128)), Device::Name("x".repeat(127))] {
            assert_eq!(call(device).raw_os_error(), Some(libc::ENOTTY));
        }
        assert!(table(&file, &Device::Name("x".into())).is_err());
        let device = Device::Name("x".into());
        for (text, want) in [
            ("x".repeat(128), None),
            ("x".repeat(127), Some(libc::ENOTTY)),
        ] {
            let error = message(&file, &device, &text).expect_err("refused");
            assert_eq!(error.raw_os_error(), want);
        }
    }

    #[test]
    fn a_table_is_read_target_by_target() {
        let mut specs = vec![0; 200];
        for (at, next, kind, parameters) in
            [(0, 64u32, "linear", "8:0 2048"), (64, 136, "error", "")]
        {
            specs[at..at + 8].copy_from_slice(&(at as u64).to_ne_bytes());
            specs[at + 8..at + 16].copy_from_slice(&64u64.to_ne_bytes());
            specs[at + 20..at + 24].copy_from_slice(&next.to_ne_bytes());
            specs[at + 24..at + 24 + kind.len()].copy_from_slice(kind.as_bytes());
            let at = at + SPEC;
            specs[at..at + parameters.len()].copy_from_slice(parameters.as_bytes());
        }
        let target = |start, kind: &str, parameters: &str| Target {
            start,
            length: 64,
            kind: kind.into(),
            parameters: parameters.into(),
        };
        let want = [target(0, "linear", "8:0 2048"), target(64, "error", "")];
        assert_eq!(parse(&specs, 2).as_deref(), Some(&want[..]));
        assert_eq!(parse(&specs[..100], 2), None);
        assert_eq!(parse(&[1; 200], 1), None);
    }
}
