//! Looking at image files, with stock tools and by their bytes.

use super::harm::Harm;
use super::process::check;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Sizes of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    /// Length.
    pub bytes: u64,
    /// What the file system has allocated for it.
    pub allocated: u64,
}

/// The sizes of a file.
pub fn size(path: &Path) -> Result<Size> {
    let meta = path
        .metadata()
        .with_context(|| format!("{}", path.display()))?;
    Ok(Size {
        bytes: meta.len(),
        allocated: meta.blocks() * 512,
    })
}

/// Xen's own checker must accept the image. It is a Python script: minutes on a
/// busy machine.
pub fn stock_verify(path: &Path) -> Result<()> {
    check(
        Command::new("verify-stream-v2")
            .args(["-f", "xl", "-i"])
            .arg(path),
        Duration::from_secs(300),
    )
    .context(Harm)?;
    Ok(())
}

/// How many 4 KiB blocks of the file are not all zero.
pub fn nonzero_blocks(path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    let zero = [0; 4096];
    let mut count = 0;
    loop {
        let mut len = 0;
        // Whole blocks only, but for the file's end.
        while len < buffer.len() {
            match file.read(&mut buffer[len..])? {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 {
            return Ok(count);
        }
        let blocks = buffer[..len].chunks(4096);
        count += blocks.filter(|b| **b != zero[..b.len()]).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blocks_with_anything_in_them() {
        let path = std::env::temp_dir().join(format!("livesave-blocks-{}", std::process::id()));
        let mut bytes = vec![0; 5 * 4096 + 100];
        bytes[4096] = 1;
        bytes[3 * 4096 - 1] = 1;
        bytes[5 * 4096 + 99] = 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(nonzero_blocks(&path).unwrap(), 3);
        assert_eq!(size(&path).unwrap().bytes, bytes.len() as u64);
        std::fs::remove_file(&path).unwrap();
    }
}
