//! Plots, as SVG.
//!
//! [`figures`] says what is plotted, [`draw`] lays it out, [`svg`] writes it.

pub mod draw;
pub mod figures;
pub mod scale;
pub mod style;
pub mod svg;

use scale::Scale;
use style::Style;

/// A plot that is to be drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    /// The name of its file, and its identifier in a page.
    pub slug: String,
    /// The study it belongs to; empty of one over all studies.
    pub study: String,
    /// What it shows.
    pub title: String,
    /// Of which guest, and what points, bars and lines are.
    pub subtitle: String,
    /// The axis below.
    pub x: Across,
    /// The axis to the left: its title and its scale.
    pub y: (String, Scale),
    /// Lines and points.
    pub series: Vec<Series>,
    /// Whether there is a line where both axes say the same.
    pub diagonal: bool,
    /// A band beside it, by the ratios of its edges to the value below.
    pub band: Option<(f64, f64)>,
}

/// The axis below: places without a number stand beside its scale.
#[derive(Clone, Debug, Default)]
pub struct Across {
    /// Its title, with the unit.
    pub title: String,
    /// Places before the scale.
    pub before: Vec<String>,
    /// The scale, where there are numbers.
    pub scale: Option<Scale>,
    /// Marks on the scale; those whose label has no room lose it.
    pub ticks: Vec<(f64, String)>,
    /// Places after the scale.
    pub after: Vec<String>,
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub label: String,
    /// At the end of its line; empty if there is to be none.
    pub short: String,
    /// Its look.
    pub style: Style,
    /// In the order of the axis.
    pub points: Vec<Point>,
    /// Whether a line goes through them.
    pub joined: bool,
}

/// Where a point stands across.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// At a place before the scale.
    Before(usize),
    /// On the scale.
    On(f64),
    /// At a place after the scale.
    After(usize),
}

/// Repeats at one place.
#[derive(Clone, Debug)]
pub struct Point {
    /// The place.
    pub at: At,
    /// What was measured.
    pub values: Vec<f64>,
}
