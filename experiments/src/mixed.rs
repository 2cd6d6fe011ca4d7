//! Memory as guests have it, for measuring compression: of 100 pages 40 are zero, 35 come from the
//! libraries and programs of this machine, 15 from its text files, 10 do not compress.
//!
//! Which page is of which kind is drawn by a fixed seed in runs of 1 to 64 pages, as allocations
//! lie; files are taken one after the other, page by page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use snapshot::PAGE_SIZE;

use crate::kills::rng::Rng;

/// Where libraries and programs, and where texts are.
const CODE: [&str; 3] = ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib"];
const TEXT: [&str; 3] = ["/usr/share/doc", "/usr/share/perl", "/usr/share"];
/// Bytes taken of each kind; more pages than these make begin anew, farther apart than any level
/// below 20 looks back.
const POOL: usize = 192 << 20;

/// Hands out pages.
pub struct Mixed {
    code: Vec<u8>,
    text: Vec<u8>,
    at: [usize; 2],
    rng: Rng,
    kind: u64,
    run: u64,
}

impl Mixed {
    /// Reads the files.
    ///
    /// # Errors
    /// Where the machine has too few of them.
    pub fn new(seed: u64) -> Result<Self> {
        let (code, text) = (pool(&CODE, true), pool(&TEXT, false));
        ensure!(
            code.len() > 16 << 20 && text.len() > 4 << 20,
            "This machine has too few files to make memory of"
        );
        Ok(Self {
            code,
            text,
            at: [0; 2],
            rng: Rng::new(seed, 0),
            kind: 0,
            run: 0,
        })
    }

    /// The next page.
    pub fn fill(&mut self, page: &mut [u8; PAGE_SIZE]) {
        if self.run == 0 {
            self.kind = self.rng.throw() % 100;
            self.run = 1 + self.rng.throw() % 64;
        }
        self.run -= 1;
        match self.kind {
            0..40 => page.fill(0),
            40..75 => copy(&self.code, &mut self.at[0], page),
            75..90 => copy(&self.text, &mut self.at[1], page),
            _ => {
                for word in page.as_chunks_mut::<8>().0 {
                    *word = self.rng.throw().to_le_bytes();
                }
            }
        }
    }
}

fn copy(pool: &[u8], at: &mut usize, page: &mut [u8; PAGE_SIZE]) {
    if *at + PAGE_SIZE > pool.len() {
        *at = 0;
    }
    page.copy_from_slice(&pool[*at..*at + PAGE_SIZE]);
    *at += PAGE_SIZE;
}

/// The content of the files below some directories, one after the other.
fn pool(directories: &[&str], code: bool) -> Vec<u8> {
    let mut pool = Vec::new();
    let mut todo: Vec<PathBuf> = directories.iter().rev().map(PathBuf::from).collect();
    while let Some(path) = todo.pop() {
        if pool.len() >= POOL {
            break;
        }
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        if found.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            let mut entries: Vec<_> = entries.map(|entry| entry.path()).collect();
            entries.sort();
            todo.extend(entries.into_iter().rev());
        } else if found.is_file() && found.len() < 64 << 20 {
            take(&path, code, &mut pool);
        }
    }
    pool
}

fn take(path: &Path, code: bool, pool: &mut Vec<u8>) {
    let Ok(bytes) = fs::read(path) else { return };
    let fits = if code {
        bytes.starts_with(b"\x7fELF")
    } else {
        std::str::from_utf8(&bytes).is_ok()
    };
    if fits {
        pool.extend_from_slice(&bytes);
    }
}
