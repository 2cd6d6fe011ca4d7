//! The outermost header: what `xl` writes before the stream (`tools/xl/xl.h`,
//! `struct save_file_header`), with the guest's configuration in it.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 32 | magic |
//! | 32 | 4 | byte order, 0x01020304 in native order |
//! | 36 | 4 | mandatory flags: JSON configuration 1, stream version 2 = 2; livesave's increments 0x80000000 |
//! | 40 | 4 | optional flags, 0 |
//! | 44 | 4 | length of the optional data that follows |
//! | 48 | 4 | length of the configuration, its NUL included |
//! | 52 | n | configuration, padded with blanks before the NUL |

use crate::page::PAGE_SIZE;

/// The first 32 bytes of the file.
pub const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// The size before the configuration.
pub const FIXED: u64 = 52;

const BYTE_ORDER: u32 = 0x0102_0304;
const MANDATORY: u32 = 3;
/// Unknown to stock tools, which therefore refuse the file: it is no guest without its chain.
const INCREMENT: u32 = 1 << 31;
/// No configuration is that long; a reader does not allocate more for it.
const MAX_CONFIG: u32 = 16 << 20;

/// The header with a configuration that is padded so that header and a `following` number of bytes
/// together end at a multiple of the page size, and the stream starts at a multiple of 8.
#[must_use]
pub fn encode(config: &[u8], following: u64, increment: bool) -> Vec<u8> {
    let bare = FIXED + config.len() as u64 + 1;
    let total = (bare + following).next_multiple_of(PAGE_SIZE as u64) - following;
    let config_len = (total - FIXED) as u32;
    let mut out = Vec::with_capacity(total as usize);
    out.extend_from_slice(MAGIC);
    let flags = if increment {
        MANDATORY | INCREMENT
    } else {
        MANDATORY
    };
    for field in [BYTE_ORDER, flags, 0, config_len + 4, config_len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(config);
    out.resize(total as usize - 1, b' ');
    out.push(0);
    out
}

/// What the fixed part says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The length of the configuration.
    pub config_len: u32,
    /// Whether the file is an increment.
    pub increment: bool,
}

/// Reads the fixed part, or says what is wrong.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode(fixed: &[u8; FIXED as usize]) -> Result<Fixed, &'static str> {
    if &fixed[..32] != MAGIC {
        return Err("the file does not start as an xl save file does");
    }
    let field =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    if field(32) != BYTE_ORDER {
        return Err("the file was written on a machine of another byte order");
    }
    if field(36) & !INCREMENT != MANDATORY {
        return Err("the file's mandatory flags are not those of a version 2 stream");
    }
    let config_len = field(48);
    if config_len == 0 || config_len > MAX_CONFIG || field(44) != config_len + 4 {
        return Err("the length of the configuration is out of bounds");
    }
    Ok(Fixed {
        config_len,
        increment: field(36) & INCREMENT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; FIXED as usize] {
        encode(b"{}", 0, false)[..FIXED as usize]
            .try_into()
            .expect("the fixed part")
    }

    #[test]
    fn what_is_written_is_read() {
        let out = encode(b"{\"a\":1}", 100, false);
        assert_eq!((out.len() + 100) % PAGE_SIZE, 0);
        let fixed = decode(&out[..52].try_into().expect("52 bytes")).expect("a good header");
        assert_eq!(out.len() as u64, FIXED + u64::from(fixed.config_len));
        assert!(!fixed.increment);
        assert_eq!(out.last(), Some(&0));
        let text = std::str::from_utf8(&out[52..out.len() - 1]).expect("text");
        assert_eq!(text.trim_end(), "{\"a\":1}");
    }

    #[test]
    fn an_increment_has_a_flag_that_stock_tools_do_not_know() {
        let out = encode(b"{}", 0, true);
        // `XL_MANDATORY_FLAG_ALL` of xl.h.
        assert_ne!(
            u32::from_le_bytes([out[36], out[37], out[38], out[39]]) & !3,
            0
        );
        let fixed = decode(&out[..52].try_into().expect("52 bytes")).expect("a good header");
        assert!(fixed.increment);
    }

    #[test]
    fn each_wrong_field_is_refused() {
        assert!(decode(&header()).is_ok());
        for at in [0, 31, 32, 36, 44, 48] {
            let mut bad = header();
            bad[at] ^= 0x40;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        let mut huge = header();
        huge[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
        huge[44..48].copy_from_slice(&3u32.to_le_bytes());
        assert!(decode(&huge).is_err());
    }
}
