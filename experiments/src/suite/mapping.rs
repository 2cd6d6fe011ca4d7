//! What it costs to map a guest's pages and to copy them, by the size of a batch: the part of the
//! copier's work that is Xen's. `snapshot/benches` has the others.

use super::table::{align, median};
use super::{Bench, Kind, Test};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use xen_sys::{DomainId, Protection, Xen};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.asked("mapping", mapping)]
}

/// Pages a batch.
const BATCHES: [usize; 6] = [1, 16, 128, 1024, 4096, 16_384];
/// Mapped and copied in all, for each size of batch: from 64 MiB on, where the guest's ring is.
const PAGES: u64 = 16_384;
const FIRST: u64 = 16_384;
/// Of the smallest batches not all: they take too long.
const MOST_CALLS: u64 = 512;
const PAGE_SIZE: usize = 4096;

/// Per page, in microseconds.
struct Cost {
    map: f64,
    copy: f64,
    unmap: f64,
}

/// One pass over the pages in batches of that size.
fn pass(xen: &Xen, id: DomainId, batch: usize) -> Result<Cost> {
    let (mut map, mut copy, mut unmap) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut errors = vec![0; batch];
    let mut page = [0; PAGE_SIZE];
    let calls = (PAGES / batch as u64).clamp(1, MOST_CALLS);
    for call in 0..calls {
        let first = FIRST + call * batch as u64;
        let pfns: Vec<u64> = (first..first + batch as u64).collect();
        let began = Instant::now();
        let mapping = xen.map(id, Protection::Read, &pfns, &mut errors[..])?;
        let mapped = Instant::now();
        for (index, pfn) in pfns.iter().enumerate() {
            let there = mapping.copy_page(index, &mut page);
            ensure!(there, "page {pfn} is not mapped");
        }
        let copied = Instant::now();
        drop(mapping);
        map += mapped - began;
        copy += copied - mapped;
        unmap += copied.elapsed();
    }
    let pages = (calls * batch as u64) as f64;
    let us = |time: Duration| 1e6 * time.as_secs_f64() / pages;
    Ok(Cost {
        map: us(map),
        copy: us(copy),
        unmap: us(unmap),
    })
}

fn mapping(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.rate("100"))?;
    let xen = Xen::open()?;
    let id = DomainId::new(guest.domid).context("domain number out of range")?;
    let heads = [
        "batch",
        "map us/page",
        "copy",
        "unmap",
        "all",
        "beside 1024",
    ];
    let mut costs: Vec<(usize, [f64; 3])> = Vec::new();
    for batch in BATCHES {
        let passes = (0..bench.repeats).map(|_| pass(&xen, id, batch));
        let passes = passes.collect::<Result<Vec<_>>>()?;
        let of = |part: fn(&Cost) -> f64| median(&passes.iter().map(part).collect::<Vec<_>>());
        costs.push((batch, [of(|c| c.map), of(|c| c.copy), of(|c| c.unmap)]));
    }
    let all = |parts: &[f64; 3]| parts.iter().sum::<f64>();
    let engine = costs.iter().find(|(batch, _)| *batch == 1024);
    let engine = engine.map_or(0.0, |(_, parts)| all(parts));
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (batch, parts) in &costs {
        let mut row = vec![batch.to_string()];
        row.extend(parts.iter().map(|part| format!("{part:.1}")));
        row.push(format!("{:.1}", all(parts)));
        row.push(format!("{:.2}", all(parts) / engine));
        rows.push(row);
    }
    let table = align(&rows);
    std::fs::write(bench.results.join("mapping.txt"), &table)?;
    println!("\n{table}");
    Ok(format!("medians of {}", bench.repeats))
}
