//! The ioctls of device-mapper (linux/dm-ioctl.h, interface version 4).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `DM_DEV_SUSPEND_CMD`: holds a device, or lets it go.
pub const DEV_SUSPEND: u8 = 6;
/// `DM_DEV_STATUS_CMD`.
pub const DEV_STATUS: u8 = 7;
/// `DM_TABLE_CLEAR_CMD`.
pub const TABLE_CLEAR: u8 = 10;

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

/// Makes a call on the device of that UUID; returns the flags that the kernel answers.
pub fn call(control: &File, command: u8, uuid: &str, flags: u32) -> io::Result<u32> {
    let mut request = Request {
        version: VERSION,
        data_size: SIZE as u32,
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
    // With a zero at its end.
    let room = request.uuid.get_mut(..uuid.len());
    match room {
        Some(room) if !uuid.is_empty() && uuid.len() < 129 => room.copy_from_slice(uuid.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    // _IOWR(TYPE, command, struct dm_ioctl)
    let number = 3 << 30 | (SIZE as u64) << 16 | TYPE << 8 | u64::from(command);
    // SAFETY: `request` is a whole `struct dm_ioctl` that says how long it is; the kernel reads it
    // and writes no more than that length back to it.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), number as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request.flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_that_does_not_fit_is_not_cut_short() {
        let file = tempfile::tempfile().expect("file");
        for uuid in [String::new(), "x".repeat(129)] {
            let error = call(&file, DEV_STATUS, &uuid, 0).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        // A file is no device-mapper.
        let error = call(&file, DEV_STATUS, &"x".repeat(128), 0).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
