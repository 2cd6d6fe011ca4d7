//! The entry points of the fuzzers, run on damaged images for a bounded time: two seconds each, or
//! `LIVESAVE_FUZZ_SECONDS`. What made one fail is kept in the temporary directory. With
//! `LIVESAVE_FUZZ_CORPUS=DIR` the undamaged inputs are written there, for cargo-fuzz to begin with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::verify::{Course, verify_bytes};
use snapshot::image::{
    AnyImage, Compression, GuestType, Preamble, Record, Tail, fuzzing, libxc, samples,
};
use snapshot::lineage::{ImageId, Parent};
use snapshot::page::{PageBytes, PageKind};
use snapshot::ports::{Cancel, ImageSink};
use snapshot::{GuestPage, PAGE_SIZE, PageCount, PageSet, Pfn};

/// xorshift64*; the seed is the same in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }
}

fn image(guest: GuestType, compression: Option<Compression>, increment: bool) -> Vec<u8> {
    let pv = guest == GuestType::Pv;
    let of_pv = |kinds: &[(u32, usize)]| {
        let record = |&(kind, length)| Record::new(kind, vec![8; length]);
        let records: Vec<_> = kinds.iter().filter(|_| pv).map(record).collect();
        records.into_iter()
    };
    let dir = tempfile::tempdir().expect("directory");
    let path: &Path = &dir.path().join("image");
    let image = AnyImage::create(path, Existing::Keep, compression, &Cancel::new());
    let mut image = image.expect("created");
    let mut pages = PageSet::new(PageCount(20));
    pages.insert_range(0..6);
    pages.insert_range(17..20);
    let preamble = Preamble {
        guest,
        static_data: of_pv(&[(libxc::record::X86_PV_INFO, 8)])
            .chain([Record::new(libxc::record::X86_MSR_POLICY, vec![3; 20])])
            .collect(),
        before_memory: of_pv(&[(libxc::record::X86_PV_P2M_FRAMES, 16)]).collect(),
        increment,
        ..samples::preamble()
    };
    image.begin(&preamble, &pages).expect("begun");
    for fill in [3, 0] {
        let page = PageBytes([fill; PAGE_SIZE]);
        let batch = pages.iter().filter(|pfn| fill == 3 || pfn.0 % 3 == 0);
        let kind = |pfn: Pfn| PageKind::of_bits(if pv { pfn.0 as u8 % 5 } else { 0 });
        let batch: Vec<_> = batch
            .map(|pfn| {
                (
                    pfn,
                    GuestPage::of(&page).of_kind(kind(pfn).expect("a kind")),
                )
            })
            .collect();
        image.write(&batch).expect("written");
    }
    let facts = Facts {
        memory_pages: pages.count(),
        zero_pages: image.zero_pages(),
        parent: increment.then(|| Parent {
            id: ImageId::random().expect("random"),
            file: "full.xl".into(),
            cut: "2026-11-20T10:00:00Z".into(),
            depth: 1,
        }),
        held_pages: increment.then(|| image.held_pages()),
        ..samples::facts()
    };
    let tail = Tail {
        libxc: if pv {
            let records = [
                (libxc::record::SHARED_INFO, PAGE_SIZE),
                (libxc::record::X86_PV_VCPU_BASIC, 61),
            ];
            of_pv(&records).collect()
        } else {
            vec![Record::new(libxc::record::HVM_CONTEXT, vec![7; 61])]
        },
        libxl: vec![],
    };
    image.finish(&tail, &facts).expect("finished");
    image.commit().expect("committed");
    std::fs::read(path).expect("read")
}

/// Flips, overwrites, cuts, doubles and sets lengths.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(6) {
        let length = bytes.len();
        // Heads and ends are where the structure is.
        let at = match rng.below(4) {
            0 => rng.below(length.min(400)),
            1 => length - 1 - rng.below(length.min(400)),
            _ => rng.below(length),
        };
        let extreme = [0, 1, 7, 8, 0x7f, 0x80, 0xfe, 0xff][rng.below(8)];
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = extreme,
            2 => bytes[at] = rng.below(256) as u8,
            3 => {
                let end = (at + 4).min(length);
                bytes[at..end].fill(extreme);
            }
            4 => {
                let end = (at + 1 + rng.below(64)).min(length);
                let piece = bytes[at..end].to_vec();
                let to = rng.below(length);
                bytes.splice(to..to, piece);
            }
            5 if length > 64 => {
                let end = (at + 1 + rng.below(64)).min(length);
                bytes.drain(at..end);
            }
            _ if length > 64 && rng.below(8) == 0 => bytes.truncate(at.max(1)),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

fn run(name: &str, seeds: &[Vec<u8>], target: fn(&[u8])) {
    if let Some(corpus) = std::env::var_os("LIVESAVE_FUZZ_CORPUS") {
        let directory = Path::new(&corpus).join(name);
        std::fs::create_dir_all(&directory).expect("created");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed).expect("kept");
        }
    }
    let seconds = std::env::var("LIVESAVE_FUZZ_SECONDS");
    let seconds = seconds.ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut runs = 0u64;
    while Instant::now() < until {
        let mut bytes = seeds[rng.below(seeds.len())].clone();
        damage(&mut bytes, &mut rng);
        let began = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_ok();
        if !passed || began.elapsed() > Duration::from_secs(10) {
            let kept = format!("fuzz-{name}-{runs}.bin");
            let path = std::env::temp_dir().join(kept);
            std::fs::write(&path, &bytes).expect("kept");
            panic!("{name} fails on {}", path.display());
        }
        runs += 1;
    }
    println!("{name}: {runs} damaged inputs in {seconds} s");
    assert!(runs > 10, "only {runs} runs");
}

fn images() -> Vec<Vec<u8>> {
    let compression = Compression {
        level: 1,
        threads: 1,
    };
    vec![
        image(GuestType::Hvm, None, false),
        image(GuestType::Hvm, Some(compression), false),
        image(GuestType::Hvm, Some(compression), true),
        image(GuestType::Pv, None, false),
        image(GuestType::Pv, Some(compression), false),
    ]
}

#[test]
fn headers() {
    let seeds: Vec<_> = images()
        .iter()
        .flat_map(|image| {
            [
                image[..200].to_vec(),
                image[image.len().min(4000)..image.len().min(4096)].to_vec(),
            ]
        })
        .filter(|seed| !seed.is_empty())
        .collect();
    run("headers", &seeds, fuzzing::headers);
}

#[test]
fn whole_images() {
    run("image", &images(), fuzzing::image);
}

#[test]
fn trailers() {
    let mut seeds = vec![];
    for image in images() {
        let ends = image.len().saturating_sub(900);
        seeds.push(image[ends..].to_vec());
        // From the magic on.
        let found = image.windows(8).rposition(|window| window == b"LIVESAVE");
        seeds.push(image[found.expect("a trailer")..].to_vec());
    }
    run("trailers", &seeds, fuzzing::trailers);
}

#[test]
fn undamaged_images_are_good() {
    for image in images() {
        let course = Course {
            threads: 1,
            progress: &|_| {},
            cancel: &Cancel::new(),
        };
        let verified = verify_bytes(image, &course).expect("looked at");
        assert_eq!(verified.problems, []);
    }
}
