//! The toolstack's stream around the hypervisor's (`docs/specs/libxl-migration-stream.pandoc` of
//! Xen): a big-endian header of 16 bytes, then records.

/// The size of the stream header.
pub const HEADER: u64 = 16;

const IDENT: u64 = 0x4c69_6278_6c46_6d74; // "LibxlFmt"
const VERSION: u32 = 2;

/// Record types (`libxl_sr_stream_format.h`).
pub mod record {
    /// The end of the stream.
    pub const END: u32 = 0;
    /// A libxc image follows.
    pub const LIBXC_CONTEXT: u32 = 1;
    /// Keys of the emulator in xenstore.
    pub const EMULATOR_XENSTORE_DATA: u32 = 2;
    /// The emulator's device state.
    pub const EMULATOR_CONTEXT: u32 = 3;
}

/// Appends the stream header.
pub fn encode_header(out: &mut Vec<u8>) {
    out.extend_from_slice(&IDENT.to_be_bytes());
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes());
}

/// Checks a stream header.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode_header(header: &[u8; HEADER as usize]) -> Result<(), &'static str> {
    let mut want = Vec::with_capacity(HEADER as usize);
    encode_header(&mut want);
    if header[..8] != want[..8] {
        return Err("the libxl stream's identification is missing");
    }
    if header[8..] != want[8..] {
        return Err("the libxl stream is not version 2, little-endian");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_specified_one() {
        let mut out = vec![];
        encode_header(&mut out);
        assert_eq!(&out, b"LibxlFmt\0\0\0\x02\0\0\0\0");
        let header: [u8; 16] = out.try_into().expect("16 bytes");
        assert_eq!(decode_header(&header), Ok(()));
        for at in 0..16 {
            let mut bad = header;
            bad[at] ^= 1;
            assert!(decode_header(&bad).is_err(), "byte {at}");
        }
    }
}
