//! How a method looks: the same in every plot.
//!
//! The colours are those of Okabe and Ito, which colour-blind people can tell apart; their yellow is too
//! faint on white, grey stands for it. Marker and dashes tell methods apart where there is no colour.

use super::super::super::case::Method;

/// The mark of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Marker {
    /// A full circle.
    Circle,
    /// A circle that is white inside.
    Ring,
    /// A square.
    Square,
    /// A square that is white inside.
    Frame,
    /// A square on its corner.
    Diamond,
    /// A triangle that points up.
    Up,
    /// A triangle that points down.
    Down,
    /// A cross of two strokes.
    Cross,
}

/// The look of a line and its points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// `#rrggbb`.
    pub colour: &'static str,
    /// The mark of its points.
    pub marker: Marker,
    /// As SVG has it; empty of an unbroken line.
    pub dashes: &'static str,
    /// The line's width.
    pub width: f64,
}

const fn style(colour: &'static str, marker: Marker, dashes: &'static str, width: f64) -> Style {
    Style {
        colour,
        marker,
        dashes,
        width,
    }
}

/// The look of a method.
#[must_use]
pub const fn of_method(method: Method) -> Style {
    match method {
        Method::Plain => style("#000000", Marker::Square, "", 1.5),
        Method::StockLive => style("#0072b2", Marker::Up, "7 3", 1.5),
        Method::MigratedPipe => style("#56b4e9", Marker::Diamond, "4 3", 1.5),
        Method::MigratedTcp => style("#009e73", Marker::Down, "9 3 2 3", 1.5),
        Method::Migration => style("#cc79a7", Marker::Frame, "2 2.5", 1.5),
        Method::Live => style("#e69f00", Marker::Ring, "12 4", 1.8),
        Method::Improved => style("#d55e00", Marker::Circle, "", 2.4),
        Method::Increment => style("#666666", Marker::Cross, "6 2 2 2", 1.8),
    }
}

/// What a method is called where there is little room.
#[must_use]
pub const fn short(method: Method) -> &'static str {
    match method {
        Method::Plain => "plain",
        Method::StockLive => "stock",
        Method::MigratedPipe => "pipe",
        Method::MigratedTcp => "TCP",
        Method::Migration => "migration",
        Method::Live => "live",
        Method::Improved => "improved",
        Method::Increment => "increment",
    }
}

/// The look of the lines of a plot whose lines are steps of one thing (caps, say): from dark to light,
/// so that their order is seen without colour too.
#[must_use]
pub fn of_step(step: usize, steps: usize) -> Style {
    const COLOURS: [&str; 11] = [
        "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70",
        "#7ad151", "#a8c61f", "#c0b400",
    ];
    const MARKERS: [Marker; 7] = [
        Marker::Circle,
        Marker::Square,
        Marker::Up,
        Marker::Diamond,
        Marker::Ring,
        Marker::Down,
        Marker::Frame,
    ];
    const DASHES: [&str; 4] = ["", "7 3", "3 2.5", "9 3 2 3"];
    let last = COLOURS.len() - 1;
    let at = (step * last) / steps.saturating_sub(1).max(1);
    let marker = MARKERS[step % MARKERS.len()];
    style(
        COLOURS[at.min(last)],
        marker,
        DASHES[step % DASHES.len()],
        1.6,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn methods_differ_in_colour_and_marker() {
        let styles = Method::ALL.map(of_method);
        let colours: BTreeSet<_> = styles.iter().map(|s| s.colour).collect();
        let markers: BTreeSet<_> = styles.iter().map(|s| s.marker).collect();
        assert_eq!((colours.len(), markers.len()), (8, 8));
    }

    #[test]
    fn steps_go_from_dark_to_light_whatever_their_number() {
        assert_eq!(of_step(0, 1).colour, "#440154");
        assert_eq!(of_step(3, 4).colour, "#c0b400");
        assert_eq!(of_step(30, 4).colour, "#c0b400");
    }
}
