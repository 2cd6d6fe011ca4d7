//! `livesave plan DOMAIN`: what a save would be like.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use snapshot::engine::sample;
use snapshot::plan::{Outlook, Sample, foretell};
use snapshot::policy::{Goal, StopReason};
use snapshot::ports::{Domain, Identity};
use snapshot::units::CpuPercent;
use snapshot::xen::{Guarding, XenDomain};

use crate::args::PlanArgs;
use crate::disks;
use crate::out::{line, note, span, warn};
use crate::save::{OWN_PROGRAM, history, limits};
use crate::signals;

/// The caps foretold for, as shares of what the guest uses.
const SHARES: [f64; 3] = [0.75, 0.5, 0.25];
/// Nothing is suspended by a plan, but the guardian has a limit for it.
const NO_SUSPEND: Duration = Duration::from_secs(60);

/// Watches the domain and prints what a save would be like.
pub fn run(args: &PlanArgs) -> Result<()> {
    let cancel = signals::cancel_on_signals()?;
    let mut domain = XenDomain::open(&args.domain, &disks::CARE, &cancel)?;
    domain.on_notice(Box::new(note));
    // Its dirty tracking is switched off whatever becomes of this process.
    domain.guarded(Guarding {
        program: PathBuf::from(OWN_PROGRAM),
        partial: None,
        suspend_timeout: NO_SUSPEND,
        silence: NO_SUSPEND,
        stall: NO_SUSPEND,
        disks: String::new(),
    })?;
    let identity = domain.identity().clone();
    let now = domain.circumstances(true);
    let past = history().of(&identity.uuid, now.kind);
    let sample = sample(&mut domain, args.watch, &cancel, &mut |warning| {
        warn(warning);
    })?;
    let goal = goal(args, &sample);
    let free = Goal {
        min_limit: None,
        ..goal
    };
    let limits = limits();
    let as_it_is = foretell(&sample, &past, &now, &limits, &goal, None);
    let mut outlooks = vec![foretell(&sample, &past, &now, &limits, &free, None)];
    for share in SHARES {
        let cap = CpuPercent((sample.cpu_percent * share).round() as u32);
        if cap.0 > 0 {
            outlooks.push(foretell(&sample, &past, &now, &limits, &free, Some(cap)));
        }
    }
    if args.json {
        let plan = json!({
            "domain": identity,
            "sample": sample,
            "learned_from_saves": past.len(),
            "max_downtime_s": args.max_downtime.as_secs_f64(),
            "save": as_it_is,
            "outlooks": outlooks,
        });
        line(&serde_json::to_string(&plan).context("Failed to encode the plan")?);
        return Ok(());
    }
    line(&about(&identity, &sample));
    line(&table(&outlooks));
    line(&verdict(&as_it_is, args.max_downtime));
    Ok(())
}

fn goal(args: &PlanArgs, sample: &Sample) -> Goal {
    let lowest = CpuPercent(sample.vcpus * args.min_cap);
    let possible = sample.no_throttle.is_none() && sample.own_cap.is_none_or(|own| lowest < own);
    Goal {
        max_window_s: args.max_downtime.as_secs_f64(),
        best_effort: true,
        min_limit: possible.then_some(lowest),
    }
}

fn about(identity: &Identity, sample: &Sample) -> String {
    let watched: f64 = sample.points.iter().map(|point| point.seconds).sum();
    let cap = sample.own_cap.map_or_else(String::new, |cap| {
        format!(", capped at {cap} of a CPU by its administrator")
    });
    format!(
        "Domain {} ({}): {} of memory, about {:.0} % of it zero; {}, using {:.0} % of a CPU{cap}\n\
         dirties {:.0} pages/s at first, {} within {} (watched for {})\n\
         image: {}, about {} of it on disk",
        identity.domid,
        identity.name,
        sample.pages.bytes(),
        100.0 * sample.zero_share,
        match sample.vcpus {
            1 => "1 vCPU".to_owned(),
            more => format!("{more} vCPUs"),
        },
        sample.cpu_percent,
        sample.rate(),
        sample
            .points
            .last()
            .map_or_else(String::new, |p| p.pages.to_string()),
        span(sample.points.last().map_or(0.0, |p| p.seconds)),
        span(watched),
        sample.image_bytes,
        snapshot::Bytes((sample.pages.bytes().0 as f64 * (1.0 - sample.zero_share)) as u64),
    )
}

fn table(outlooks: &[Outlook]) -> String {
    let mut text = format!(
        "\n{:<12} {:>10} {:>7} {:>10}  rounds end because\n",
        "CPU cap", "pause", "rounds", "total"
    );
    for outlook in outlooks {
        let cap = outlook
            .cap
            .map_or_else(|| "none".to_owned(), |cap| cap.to_string());
        text.push_str(&format!(
            "{cap:<12} {:>10} {:>7} {:>10}  {}\n",
            span(outlook.window_s),
            outlook.rounds,
            span(outlook.total_s),
            because(outlook.stop),
        ));
    }
    text
}

fn because(stop: StopReason) -> &'static str {
    match stop {
        StopReason::SmallEnough => "little is left",
        StopReason::NoGain => "a further one would not help",
        StopReason::OnTarget => "the pause is short enough",
        StopReason::LowestLimit => "it is throttled as far as allowed",
        StopReason::MaxRounds => "there were as many as allowed",
        StopReason::Plain => "none are wanted",
    }
}

fn verdict(outlook: &Outlook, wanted: Duration) -> String {
    let met = if outlook.window_s <= wanted.as_secs_f64() {
        "within"
    } else {
        "longer than"
    };
    let how = outlook.throttled_to.map_or_else(
        || "without throttling the guest".to_owned(),
        |to| format!("throttling the guest to {to} of a CPU for a moment"),
    );
    let grain = outlook.doubt.map_or_else(String::new, |doubt| {
        format!("\nThat is no good forecast: {doubt}.")
    });
    format!(
        "`livesave` would pause it for about {}, {met} the {} asked for, {how}.{grain}",
        span(outlook.window_s),
        span(wanted.as_secs_f64()),
    )
}
