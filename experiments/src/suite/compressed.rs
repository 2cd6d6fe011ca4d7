//! A compressed image: a standard zstd file, whose content is what stock tools take.

use super::saves::restored_is_right;
use super::{Bench, Kind, Test};
use crate::dom0::image;
use crate::dom0::process::check;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Enough for zstd on an image here.
const LIMIT: Duration = Duration::from_secs(120);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Medium.core("compressed_save_restores", |bench| {
        restores(bench, |spec| spec.medium().rate("5000"))
    })]
}

/// Saved while it writes; `zstd -t`, livesave's own check and Xen's accept the
/// image, and stock `xl restore` brings back what `zstd -dc` makes of it.
pub(super) fn restores(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let mut guest = bench.guest(change)?;
    let before = guest.verify_clean().context("before the save")?.seq;
    let path = bench.image("image.xl.zst");
    guest.take_gap()?;
    let more = ["--compress", "zstd"];
    let (report, took) = bench.livesave.save(&guest.spec.name, &path, &more)?;
    let gap = guest.take_gap()?;
    bench.must_be_unharmed(&guest)?;
    let after = guest.verify_clean().context("after the save")?.seq;
    bench.keep("report.json", &report)?;
    bench.must_hold_only(&bench.images, &["image.xl.zst"])?;
    let size = image::size(&path)?;
    if size.bytes != report.image_bytes {
        bail!(
            "the report says {} bytes, the file has {}",
            report.image_bytes,
            size.bytes
        );
    }
    check(Command::new("zstd").arg("-tq").arg(&path), LIMIT).context("zstd -t")?;
    let mut verify = bench.livesave.command(&["verify"]);
    check(verify.arg(&path), LIMIT).context("livesave verify")?;
    guest.destroy()?;

    let stream = bench.image("stream.xl");
    decompress(&path, &stream)?;
    image::stock_verify(&stream)?;
    std::fs::remove_file(&path)?;
    restored_is_right(&mut guest, &stream, before, after)?;
    Ok(format!(
        "gap {:.3} s, {:.1} s in all, {} MB for {} MB",
        gap.as_secs_f64(),
        took.as_secs_f64(),
        size.bytes / 1_000_000,
        image::size(&stream)?.bytes / 1_000_000
    ))
}

/// `zstd -dc IMAGE > STREAM`.
fn decompress(image: &Path, stream: &Path) -> Result<()> {
    let out = File::create(stream).with_context(|| format!("{}", stream.display()))?;
    let status = Command::new("zstd")
        .arg("-dcq")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(out)
        .status()
        .context("zstd does not run")?;
    if !status.success() {
        bail!("zstd -dc: {status}");
    }
    Ok(())
}
