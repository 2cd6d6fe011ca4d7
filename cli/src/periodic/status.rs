//! `livesave status`: a monitoring plugin.
//!
//! One line, `LIVESAVE STATUS - text | performance data`, and an exit code, as the Monitoring
//! Plugins Development Guidelines have it.

use std::process::ExitCode;

use jiff::Timestamp;
use snapshot::units::Bytes;

use super::directory::{Image, Listing, SaveState, scan};
use super::name::encode;
use super::prune::{by_guest, is_meant};
use crate::args::StatusArgs;
use crate::out::{line, span};

/// A cut may lie so far in the future: clocks differ.
const AHEAD_S: f64 = 120.0;

/// The words and numbers of the guidelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

/// The exit code for what cannot be judged, a wrong command line for one.
pub const UNKNOWN: u8 = State::Unknown as u8;

/// What is asked, in seconds.
struct Limits {
    max_s: f64,
    warn_s: Option<f64>,
}

/// Judges a directory.
pub fn run(args: &StatusArgs) -> ExitCode {
    let limits = Limits {
        max_s: args.max_age.as_secs_f64(),
        warn_s: args.warn_age.map(|age| age.as_secs_f64()),
    };
    let (state, text) = match scan(&args.dir) {
        Ok(listing) => judge(&listing, &limits, args.domain.as_deref(), Timestamp::now()),
        Err(error) => (State::Unknown, plain(&format!("{error:#}"))),
    };
    let word = match state {
        State::Ok => "OK",
        State::Warning => "WARNING",
        State::Critical => "CRITICAL",
        State::Unknown => "UNKNOWN",
    };
    line(&format!("LIVESAVE {word} - {text}"));
    ExitCode::from(state as u8)
}

/// The state, and the text with its performance data.
fn judge(
    listing: &Listing,
    limits: &Limits,
    wanted: Option<&str>,
    now: Timestamp,
) -> (State, String) {
    let mut guests = by_guest(&listing.images);
    guests.retain(|images| wanted.is_none_or(|wanted| is_meant(images, wanted)));
    let (mut state, mut texts, mut data) = (State::Ok, vec![], vec![]);
    if guests.is_empty() {
        state = State::Critical;
        texts.push(match wanted {
            Some(name) => format!("no image of {}", plain(name)),
            None => "no image".to_owned(),
        });
    }
    for images in &guests {
        let Some(latest) = images.last() else {
            continue;
        };
        let age = seconds_since(latest.cut, now);
        let (of_guest, text) = judge_age(&plain(&latest.guest.name), age, limits);
        state = state.max(of_guest);
        texts.push(text);
        data.extend(performance(images, &guests, age, limits));
    }
    for text in oddities(listing, wanted, &guests) {
        state = state.max(State::Warning);
        texts.push(text);
    }
    let data = if data.is_empty() {
        String::new()
    } else {
        format!(" | {}", data.join(" "))
    };
    (state, format!("{}{data}", texts.join("; ")))
}

fn seconds_since(cut: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(cut).as_secs_f64()
}

fn judge_age(name: &str, age: f64, limits: &Limits) -> (State, String) {
    if age < -AHEAD_S {
        return (
            State::Warning,
            format!("{name} has an image of {} in the future", span(-age)),
        );
    }
    let old = span(age.max(0.0));
    if age > limits.max_s {
        let limit = span(limits.max_s);
        return (
            State::Critical,
            format!("{name} {old} old, more than {limit}"),
        );
    }
    if let Some(warn) = limits.warn_s.filter(|&warn| age > warn) {
        return (
            State::Warning,
            format!("{name} {old} old, more than {}", span(warn)),
        );
    }
    (State::Ok, format!("{name} {old} old"))
}

/// Age, number and allocated size of a guest's images.
fn performance(images: &[Image], all: &[Vec<Image>], age: f64, limits: &Limits) -> [String; 3] {
    let Some(latest) = images.last() else {
        return Default::default();
    };
    let same_name = |other: &&Vec<Image>| {
        other
            .last()
            .is_some_and(|other| other.guest.name == latest.guest.name)
    };
    let mut name = latest.guest.name.clone();
    if all.iter().filter(same_name).count() > 1 {
        name = format!("{name} {}", latest.guest.uuid);
    }
    // What a label cannot hold.
    let name = plain(&name).replace('=', "_").replace('\'', "''");
    let warn = limits
        .warn_s
        .map_or_else(String::new, |warn| format!("{warn:.0}"));
    let mut allocated = Bytes(0);
    images.iter().for_each(|image| allocated += image.allocated);
    [
        format!("'{name}'={:.0}s;{warn};{:.0};0", age.max(0.0), limits.max_s),
        format!("'{name} images'={};;;0", images.len()),
        format!("'{name} size'={}B;;;0", allocated.0),
    ]
}

/// What is not as it should be beside the images' age.
fn oddities(listing: &Listing, wanted: Option<&str>, guests: &[Vec<Image>]) -> Vec<String> {
    // Whose a damaged file is, only its name still tells.
    let prefixes: Option<Vec<String>> = wanted.map(|_| {
        let images = guests.iter().flatten();
        images
            .map(|image| format!("{}-", encode(&image.guest)))
            .collect()
    });
    let concerns = |file: &str| match &prefixes {
        Some(prefixes) => {
            let file = file.trim_start_matches('.');
            prefixes
                .iter()
                .any(|prefix| file.starts_with(prefix.as_str()))
        }
        None => true,
    };
    let names = |paths: Vec<&std::path::PathBuf>| -> Vec<String> {
        let names = paths.into_iter().filter_map(|path| path.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names
            .filter(|name| concerns(name))
            .map(|name| plain(&name))
            .collect()
    };
    let damaged = names(listing.damaged.iter().map(|other| &other.path).collect());
    let dead = listing
        .unfinished
        .iter()
        .filter(|file| file.save == SaveState::Dead);
    let dead = names(dead.map(|file| &file.path).collect());
    let mut texts = vec![];
    if !damaged.is_empty() {
        texts.push(format!("damaged: {}", damaged.join(", ")));
    }
    if !dead.is_empty() {
        texts.push(format!("left by killed saves: {}", dead.join(", ")));
    }
    texts
}

/// Fit for one line in which `|` begins the performance data.
fn plain(text: &str) -> String {
    text.escape_debug()
        .to_string()
        .replace('|', "_")
        .replace("\\'", "'")
}

#[cfg(test)]
mod tests;
