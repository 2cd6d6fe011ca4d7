//! Lays a plot out: titles above, the data in the middle, the legend below it.

use super::super::stats::Summary;
use super::style::Style;
use super::svg::{Anchor, Svg, width, wrap};
use super::{At, Plot, Series};

/// The width of a plot; all its lengths are in these units.
const WIDTH: f64 = 560.0;
/// The height of its data.
const HEIGHT: f64 = 260.0;
/// The same where both axes show the same measure.
const SQUARE: f64 = 360.0;
/// The width of a place beside the scale.
const PLACE: f64 = 54.0;
const INK: &str = "#222222";
const SOFT: &str = "#555555";
const GRID: &str = "#e4e4e4";

/// Draws a plot.
#[must_use]
pub fn draw(plot: &Plot) -> String {
    let title = wrap(&plot.title, 16.0, WIDTH - 24.0);
    let subtitle = wrap(&plot.subtitle, 12.0, WIDTH - 24.0);
    let top = 16.0 + 20.0 * title.len() as f64 + 15.0 * subtitle.len() as f64 + 8.0;
    let labels = Labels::of(plot);
    let frame = Frame::of(plot, top, labels.room);
    let legend = Legend::of(plot);
    let legend_top = frame.bottom + 56.0;
    let height = legend_top + legend.height + 6.0;
    let mut svg = Svg::new(&plot.slug, WIDTH, height, &plot.title, &describe(plot));

    for (row, line) in title.iter().enumerate() {
        let at = (12.0, 26.0 + 20.0 * row as f64);
        let look = format!("font-size=\"16\" font-weight=\"bold\" fill=\"{INK}\"");
        svg.text(at, Anchor::Start, line, &look);
    }
    for (row, line) in subtitle.iter().enumerate() {
        let y = 26.0 + 20.0 * title.len() as f64 + 15.0 * row as f64;
        let look = format!("fill=\"{SOFT}\"");
        svg.text((12.0, y), Anchor::Start, line, &look);
    }
    frame.draw(plot, &mut svg);
    for (index, series) in plot.series.iter().enumerate() {
        frame.bars(plot, index, series, &mut svg);
    }
    // Marks lie above all lines and bars.
    for (index, series) in plot.series.iter().enumerate() {
        frame.marks(plot, index, series, &mut svg);
    }
    labels.draw(plot, &frame, &mut svg);
    legend.draw(legend_top, &mut svg);
    svg.finish()
}

/// What somebody is told who cannot see it.
fn describe(plot: &Plot) -> String {
    let names: Vec<_> = plot.series.iter().map(|s| s.label.as_str()).collect();
    format!(
        "{} Across: {}. Upwards: {}{}. Shown: {}.",
        plot.subtitle,
        plot.x.title,
        plot.y.0,
        if plot.y.1.log { ", logarithmic" } else { "" },
        names.join(", ")
    )
}

/// The area of the data.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// Where the scale begins and ends.
    scale: (f64, f64),
}

impl Frame {
    fn of(plot: &Plot, top: f64, labels: f64) -> Self {
        let ticks = plot.y.1.ticks();
        let widest = ticks.iter().map(|(_, label)| width(label, 12.0));
        let left = 38.0 + widest.fold(0.0, f64::max);
        // The last label below may stand out by half its width.
        let right = WIDTH - f64::max(20.0, 12.0 + labels);
        let height = if plot.diagonal { SQUARE } else { HEIGHT };
        let (before, after) = (plot.x.before.len() as f64, plot.x.after.len() as f64);
        // Without numbers the places have the whole width.
        let place = match plot.x.scale {
            Some(_) => PLACE,
            None => (right - left) / (before + after).max(1.0),
        };
        Self {
            left,
            right,
            top,
            bottom: top + height,
            scale: (left + before * place, right - after * place),
        }
    }

    fn x(&self, plot: &Plot, at: At) -> f64 {
        let (begin, end) = self.scale;
        let between = |from: f64, to: f64, index: usize, count: usize| {
            from + (to - from) * (index as f64 + 0.5) / count.max(1) as f64
        };
        match at {
            At::Before(index) => between(self.left, begin, index, plot.x.before.len()),
            At::After(index) => between(end, self.right, index, plot.x.after.len()),
            At::On(value) => {
                let at = plot.x.scale.map_or(0.5, |scale| scale.at(value));
                begin + (end - begin) * at
            }
        }
    }

    fn y(&self, plot: &Plot, value: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * plot.y.1.at(value)
    }

    /// Methods at one place stand a little beside each other, so that their bars can be told apart.
    fn aside(&self, plot: &Plot, index: usize, at: At) -> f64 {
        if plot.diagonal {
            return 0.0;
        }
        let step = match at {
            At::On(_) => 2.5,
            _ => 5.0,
        };
        let step = f64::min(step, PLACE * 0.8 / plot.series.len().max(1) as f64);
        (index as f64 - (plot.series.len() as f64 - 1.0) / 2.0) * step
    }

    fn point(&self, plot: &Plot, index: usize, at: At, value: f64) -> (f64, f64) {
        let x = self.x(plot, at) + self.aside(plot, index, at);
        (x, self.y(plot, value))
    }

    fn draw(&self, plot: &Plot, svg: &mut Svg) {
        let fill = format!("fill=\"{INK}\"");
        if let (Some(scale), Some((low, high))) = (plot.x.scale, plot.band) {
            self.band(plot, (scale.lo, scale.hi), (low, high), svg);
        }
        for (value, label) in plot.y.1.ticks() {
            let y = self.y(plot, value);
            if label.is_empty() {
                svg.line((self.left - 3.0, y), (self.left, y), SOFT, 1.0);
                continue;
            }
            svg.line((self.left, y), (self.right, y), GRID, 1.0);
            svg.line((self.left - 5.0, y), (self.left, y), INK, 1.0);
            let at = (self.left - 8.0, y + 4.0);
            svg.text(at, Anchor::End, &label, &fill);
        }
        self.ticks_below(plot, svg);
        let corner = (self.left, self.bottom);
        svg.line((self.left, self.top), corner, INK, 1.0);
        svg.line(corner, (self.right, self.bottom), INK, 1.0);
        let middle = f64::midpoint(self.left, self.right);
        let at = (middle, self.bottom + 40.0);
        svg.text(at, Anchor::Middle, &plot.x.title, &fill);
        svg.text_upwards((17.0, f64::midpoint(self.top, self.bottom)), &plot.y.0);
        if plot.diagonal
            && let Some(scale) = plot.x.scale
        {
            self.ray(plot, (scale.lo, scale.hi), 1.0, svg);
        }
    }

    fn ticks_below(&self, plot: &Plot, svg: &mut Svg) {
        let places = |count: usize, at: fn(usize) -> At| (0..count).map(at);
        let before = places(plot.x.before.len(), At::Before).zip(&plot.x.before);
        let on = plot.x.ticks.iter().map(|(v, label)| (At::On(*v), label));
        let after = places(plot.x.after.len(), At::After).zip(&plot.x.after);
        let mut free = 0.0;
        for (at, label) in before.chain(on).chain(after) {
            let x = self.x(plot, at);
            if label.is_empty() {
                svg.line((x, self.bottom), (x, self.bottom + 3.0), SOFT, 1.0);
                continue;
            }
            svg.line((x, self.bottom), (x, self.bottom + 5.0), INK, 1.0);
            let half = width(label, 12.0) / 2.0;
            if x - half >= free {
                let fill = format!("fill=\"{INK}\"");
                let at = (x, self.bottom + 19.0);
                svg.text(at, Anchor::Middle, label, &fill);
                free = x + half + 1.0;
            }
        }
        // The scale does not go on to the places beside it.
        if plot.x.scale.is_some() {
            let edges = [(self.scale.0, self.left), (self.scale.1, self.right)];
            for (edge, end) in edges {
                if (edge - end).abs() > 1.0 {
                    svg.line((edge, self.top), (edge, self.bottom), "#bbbbbb", 1.0);
                }
            }
        }
    }

    /// Where the value upwards is so many times the value across.
    fn ray(&self, plot: &Plot, ends: (f64, f64), ratio: f64, svg: &mut Svg) {
        let points = self.ray_points(plot, ends, ratio);
        let style = Style {
            colour: "#777777",
            marker: super::style::Marker::Circle,
            dashes: "",
            width: 1.0,
        };
        svg.path(&points, &style, 1.0);
    }

    fn band(&self, plot: &Plot, ends: (f64, f64), band: (f64, f64), svg: &mut Svg) {
        let mut area = self.ray_points(plot, ends, band.0);
        // The corner between the ends of its edges belongs to it.
        area.push((self.x(plot, At::On(ends.1)), self.y(plot, ends.1 * band.1)));
        area.extend(self.ray_points(plot, ends, band.1).into_iter().rev());
        area.push((self.x(plot, At::On(ends.0)), self.y(plot, ends.0 * band.0)));
        svg.area(&area, "#ececec");
    }

    /// A ray in pieces that are short enough for every kind of scale, as far as it is in the data.
    fn ray_points(&self, plot: &Plot, ends: (f64, f64), ratio: f64) -> Vec<(f64, f64)> {
        let (lo, hi) = (plot.y.1.lo, plot.y.1.hi);
        let from = ends.0.max(lo / ratio);
        let to = ends.1.min(hi / ratio);
        if from >= to {
            return Vec::new();
        }
        let value = |step: u32| {
            let at = f64::from(step) / 32.0;
            if from > 0.0 {
                from * (to / from).powf(at)
            } else {
                from + (to - from) * at
            }
        };
        (0..=32)
            .map(value)
            .map(|v| (self.x(plot, At::On(v)), self.y(plot, v * ratio)))
            .collect()
    }

    fn bars(&self, plot: &Plot, index: usize, series: &Series, svg: &mut Svg) {
        let colour = series.style.colour;
        let mut middles = Vec::new();
        for point in &series.points {
            let Some(summary) = Summary::of(point.values.iter().copied()) else {
                continue;
            };
            let place = |value| self.point(plot, index, point.at, value);
            middles.push((point.at, place(summary.median)));
            if summary.n < 2 {
                continue;
            }
            for value in point.values.iter().filter(|v| v.is_finite()) {
                svg.dot(place(*value), colour, 0.35);
            }
            let (low, high) = (place(summary.q1), place(summary.q3));
            svg.line(low, high, colour, 1.2);
            for (x, y) in [low, high] {
                svg.line((x - 3.0, y), (x + 3.0, y), colour, 1.2);
            }
        }
        if !series.joined {
            return;
        }
        // Lines to places that are not on the scale are faint: their slope means nothing.
        let scaled = |at: &At| matches!(at, At::On(_)) || plot.x.scale.is_none();
        let mut whole = Vec::new();
        for (position, (at, point)) in middles.iter().enumerate() {
            if scaled(at) {
                whole.push(*point);
            }
            if let Some((next, end)) = middles.get(position + 1)
                && !(scaled(at) && scaled(next))
            {
                svg.path(&[*point, *end], &series.style, 0.45);
            }
        }
        svg.path(&whole, &series.style, 1.0);
    }

    fn marks(&self, plot: &Plot, index: usize, series: &Series, svg: &mut Svg) {
        let size = if series.joined { 4.2 } else { 3.4 };
        for point in &series.points {
            if let Some(summary) = Summary::of(point.values.iter().copied()) {
                let at = self.point(plot, index, point.at, summary.median);
                svg.marker(at, &series.style, size);
            }
        }
    }
}

/// The names at the ends of the lines, where they have room.
struct Labels {
    room: f64,
}

impl Labels {
    fn of(plot: &Plot) -> Self {
        let shorts = plot.series.iter().map(|series| width(&series.short, 11.0));
        let widest = shorts.fold(0.0, f64::max);
        let named = widest > 0.0 && plot.series.len() > 1;
        Self {
            room: if named { widest + 16.0 } else { 0.0 },
        }
    }

    fn draw(&self, plot: &Plot, frame: &Frame, svg: &mut Svg) {
        if self.room <= 0.0 {
            return;
        }
        let mut ends: Vec<_> = Vec::new();
        for (index, series) in plot.series.iter().enumerate() {
            let last = series.points.last();
            let summary = last.and_then(|last| Summary::of(last.values.iter().copied()));
            if let (Some(last), Some(summary)) = (last, summary) {
                let end = frame.point(plot, index, last.at, summary.median);
                // Lines that end far from the edge are named by the legend alone.
                if !series.short.is_empty() && frame.right - end.0 < PLACE {
                    ends.push((end, series));
                }
            }
        }
        ends.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
        let wanted: Vec<_> = ends.iter().map(|(end, _)| end.1).collect();
        let placed = spread_out(&wanted, 12.5, (frame.top - 4.0, frame.bottom + 4.0));
        for (((x, y), series), at) in ends.into_iter().zip(placed) {
            let edge = frame.right + 4.0;
            svg.line((x + 6.0, y), (edge, at), "#bbbbbb", 0.7);
            let look = format!("font-size=\"11\" fill=\"{INK}\"");
            let at = (edge + 3.0, at + 4.0);
            svg.text(at, Anchor::Start, &series.short, &look);
        }
    }
}

/// Heights at least so far apart, near those that are wanted, which are sorted.
fn spread_out(wanted: &[f64], apart: f64, room: (f64, f64)) -> Vec<f64> {
    let mut placed = wanted.to_vec();
    // Neighbours that are too near push each other away, a little at a time.
    for _ in 0..200 {
        for at in 1..placed.len() {
            let short = apart - (placed[at] - placed[at - 1]);
            if short > 0.0 {
                placed[at - 1] -= short / 2.0;
                placed[at] += short / 2.0;
            }
        }
        for at in &mut placed {
            *at = at.max(room.0).min(room.1);
        }
    }
    placed
}

/// What the lines are, in rows below the data.
struct Legend {
    entries: Vec<(f64, f64, String, Style, bool)>,
    height: f64,
}

impl Legend {
    fn of(plot: &Plot) -> Self {
        let widths = plot.series.iter().map(|series| width(&series.label, 12.0));
        let column = widths.fold(0.0, f64::max) + 54.0;
        let columns = ((WIDTH - 24.0) / column).floor().max(1.0) as usize;
        let entry = |(index, series): (usize, &Series)| {
            let x = 14.0 + (index % columns) as f64 * column;
            let y = 8.0 + (index / columns) as f64 * 18.0;
            (x, y, series.label.clone(), series.style, series.joined)
        };
        Self {
            entries: plot.series.iter().enumerate().map(entry).collect(),
            height: plot.series.len().div_ceil(columns) as f64 * 18.0,
        }
    }

    fn draw(&self, top: f64, svg: &mut Svg) {
        for (x, y, label, style, joined) in &self.entries {
            let y = top + y;
            if *joined {
                svg.path(&[(*x, y), (x + 32.0, y)], style, 1.0);
            }
            svg.marker((x + 16.0, y), style, 4.2);
            let look = format!("fill=\"{INK}\"");
            svg.text((x + 38.0, y + 4.0), Anchor::Start, label, &look);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_too_near_are_moved_apart() {
        let placed = spread_out(&[10.0, 11.0, 12.0, 90.0], 12.0, (0.0, 100.0));
        assert!(placed.windows(2).all(|pair| pair[1] - pair[0] > 11.5));
        assert!(placed.iter().all(|at| (0.0..=100.0).contains(at)));
        assert!((placed[3] - 90.0).abs() < 0.1);
    }
}
