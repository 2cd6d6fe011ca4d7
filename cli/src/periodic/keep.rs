//! Which images of a guest are kept: a pure function of their moments and the rules.
//!
//! It is the rule of restic's `forget`: every rule for itself goes over the images from the latest
//! to the oldest and keeps the latest of each hour (day, week, month) until it has kept as many as
//! it may; where it has not reached that number at the end, it keeps the oldest image too, so that
//! the time covered grows to what was asked for. What any rule keeps stays.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How many images each rule keeps; 0: there is no such rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The latest.
    pub last: u32,
    /// One for an hour.
    pub hourly: u32,
    /// One for a day.
    pub daily: u32,
    /// One for an ISO week, which begins on Monday.
    pub weekly: u32,
    /// One for a month.
    pub monthly: u32,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Of the latest.
    Last,
    /// The latest of its hour.
    Hourly,
    /// The latest of its day.
    Daily,
    /// The latest of its week.
    Weekly,
    /// The latest of its month.
    Monthly,
}

/// Why an image is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// By a rule.
    By(Rule),
    /// It is the oldest, and that rule could keep more than there are.
    Oldest(Rule),
    /// It is the latest good image of its guest.
    Latest,
    /// An image that is kept is built on it.
    Base,
}

impl Rule {
    const ALL: [Self; 5] = [
        Self::Last,
        Self::Hourly,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    fn count(self, rules: &Rules) -> u32 {
        match self {
            Self::Last => rules.last,
            Self::Hourly => rules.hourly,
            Self::Daily => rules.daily,
            Self::Weekly => rules.weekly,
            Self::Monthly => rules.monthly,
        }
    }

    /// What the images have in common of which the rule keeps the latest.
    fn bucket(self, cut: Timestamp, zone: &TimeZone, index: usize) -> (i64, i64, i64) {
        let at = cut.to_zoned(zone.clone());
        let (year, month, day) = (at.year().into(), at.month().into(), at.day().into());
        match self {
            Self::Last => (index as i64, 0, 0),
            // With the offset: where clocks are put back, an hour of the day comes twice.
            Self::Hourly => {
                let days = year * 366 + i64::from(at.day_of_year());
                (days, at.hour().into(), at.offset().seconds().into())
            }
            Self::Daily => (year, month, day),
            Self::Weekly => {
                let week = at.date().iso_week_date();
                (week.year().into(), week.week().into(), 0)
            }
            Self::Monthly => (year, month, 0),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::By(rule) => f.write_str(rule.name()),
            Self::Oldest(rule) => write!(f, "{} (the oldest)", rule.name()),
            Self::Latest => f.write_str("the last good image"),
            Self::Base => f.write_str("an increment is built on it"),
        }
    }
}

/// Why each image is kept, in the order given; one without a reason is to be removed. Hours, days,
/// weeks and months are those of `zone`. The latest image always has a reason.
pub fn decide(cuts: &[Timestamp], rules: &Rules, zone: &TimeZone) -> Vec<Vec<Reason>> {
    let mut order: Vec<usize> = (0..cuts.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(cuts[index]), index));
    let mut reasons = vec![vec![]; cuts.len()];
    for rule in Rule::ALL {
        let mut left = rule.count(rules);
        let mut last = None;
        for &index in &order {
            if left == 0 {
                break;
            }
            let bucket = rule.bucket(cuts[index], zone, index);
            if last != Some(bucket) {
                last = Some(bucket);
                left -= 1;
                reasons[index].push(Reason::By(rule));
            } else if Some(&index) == order.last() {
                reasons[index].push(Reason::Oldest(rule));
            }
        }
    }
    if let Some(&latest) = order.first()
        && reasons[latest].is_empty()
    {
        reasons[latest].push(Reason::Latest);
    }
    reasons
}

#[cfg(test)]
mod tests;
