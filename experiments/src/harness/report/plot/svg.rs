//! Just enough of a writer of SVG.

use super::style::{Marker, Style};
use std::fmt::Write;

/// Fonts without serifs, whatever the machine has.
const FONTS: &str = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif";

/// A drawing that is being made.
pub struct Svg {
    text: String,
}

/// Where a text is held.
#[derive(Clone, Copy)]
pub enum Anchor {
    /// At its beginning.
    Start,
    /// In its middle.
    Middle,
    /// At its end.
    End,
}

impl Svg {
    /// Begins a drawing on white. The id tells it from the others of a page.
    #[must_use]
    pub fn new(id: &str, width: f64, height: f64, title: &str, describe: &str) -> Self {
        let id = escape(id);
        let (w, h) = (n(width), n(height));
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
             height=\"{h}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\" \
             font-family=\"{FONTS}\" font-size=\"12\">\n"
        );
        // A String takes all that is written to it.
        let _ = writeln!(text, "<title id=\"{id}-title\">{}</title>", escape(title));
        let _ = writeln!(text, "<desc id=\"{id}-desc\">{}</desc>", escape(describe));
        let _ = writeln!(
            text,
            "<rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>"
        );
        Self { text }
    }

    /// Ends it.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let _ = writeln!(
            self.text,
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{colour}\" stroke-width=\"{}\"/>",
            n(from.0),
            n(from.1),
            n(to.0),
            n(to.1),
            n(width)
        );
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], style: &Style, opacity: f64) {
        if points.len() < 2 {
            return;
        }
        let dashes = match style.dashes {
            "" => String::new(),
            dashes => format!(" stroke-dasharray=\"{dashes}\""),
        };
        let _ = writeln!(
            self.text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" \
             stroke-linejoin=\"round\"{dashes}{}/>",
            list(points),
            style.colour,
            n(style.width),
            faint(opacity)
        );
    }

    /// An area.
    pub fn area(&mut self, points: &[(f64, f64)], fill: &str) {
        let points = list(points);
        let _ = writeln!(self.text, "<polygon points=\"{points}\" fill=\"{fill}\"/>");
    }

    /// A small dot.
    pub fn dot(&mut self, at: (f64, f64), colour: &str, opacity: f64) {
        let _ = writeln!(
            self.text,
            "<circle cx=\"{}\" cy=\"{}\" r=\"1.8\" fill=\"{colour}\"{}/>",
            n(at.0),
            n(at.1),
            faint(opacity)
        );
    }

    /// The mark of a point.
    pub fn marker(&mut self, at: (f64, f64), style: &Style, size: f64) {
        let (x, y, r) = (at.0, at.1, size);
        let colour = style.colour;
        // A white rim keeps marks apart that lie on each other.
        let full = format!("fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"0.7\"");
        let open = format!("fill=\"#ffffff\" stroke=\"{colour}\" stroke-width=\"1.8\"");
        let polygon = |points: &[(f64, f64)]| {
            let points: Vec<_> = points
                .iter()
                .map(|(dx, dy)| (x + dx * r, y + dy * r))
                .collect();
            format!("<polygon points=\"{}\" {full}/>", list(&points))
        };
        let square = |half: f64, look: &str| {
            let (x, y, side) = (n(x - half), n(y - half), n(2.0 * half));
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" {look}/>")
        };
        let circle = |r: f64, look: &str| {
            let (x, y, r) = (n(x), n(y), n(r));
            format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{r}\" {look}/>")
        };
        let mark = match style.marker {
            Marker::Circle => circle(r, &full),
            Marker::Ring => circle(r * 0.85, &open),
            Marker::Square => square(r * 0.9, &full),
            Marker::Frame => square(r * 0.75, &open),
            Marker::Diamond => polygon(&[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)]),
            Marker::Up => polygon(&[(0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)]),
            Marker::Down => polygon(&[(0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)]),
            Marker::Cross => {
                let (left, right) = (n(x - r * 0.85), n(x + r * 0.85));
                let (top, bottom) = (n(y - r * 0.85), n(y + r * 0.85));
                format!(
                    "<path d=\"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}\" \
                     stroke=\"{colour}\" stroke-width=\"2\"/>"
                )
            }
        };
        self.text.push_str(&mark);
        self.text.push('\n');
    }

    /// A text. `look` is further attributes.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, text: &str, look: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let space = if look.is_empty() { "" } else { " " };
        let _ = writeln!(
            self.text,
            "<text x=\"{}\" y=\"{}\"{anchor}{space}{look}>{}</text>",
            n(at.0),
            n(at.1),
            escape(text)
        );
    }

    /// A text that is read from below.
    pub fn text_upwards(&mut self, at: (f64, f64), text: &str) {
        let turn = format!("transform=\"rotate(-90 {} {})\"", n(at.0), n(at.1));
        self.text(at, Anchor::Middle, text, &turn);
    }
}

/// About the width of a text: fonts differ, so it is that of a wide one.
#[must_use]
pub fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' => 0.33,
        ' ' | '\u{a0}' | '(' | ')' | '[' | ']' | 'f' | 't' | 'r' | '-' => 0.4,
        'm' | 'w' | 'M' | 'W' | '%' => 0.95,
        c if c.is_uppercase() => 0.72,
        _ => 0.62,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// Breaks a text into lines of at most that width.
#[must_use]
pub fn wrap(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A text as XML has it. What XML cannot have at all is left out.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// A length: a tenth is fine enough.
fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn list(points: &[(f64, f64)]) -> String {
    let points: Vec<_> = points
        .iter()
        .map(|(x, y)| format!("{},{}", n(*x), n(*y)))
        .collect();
    points.join(" ")
}

fn faint(opacity: f64) -> String {
    if opacity < 1.0 {
        format!(" opacity=\"{opacity}\"")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        let mut svg = Svg::new("a", 10.0, 10.0, "a < b & c", "\"quoted\" \u{1}");
        svg.text((1.0, 2.25), Anchor::End, "x > y", "");
        let svg = svg.finish();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let text = |tag: &str| {
            let mut nodes = document.descendants();
            let node = nodes.find(|node| node.has_tag_name(tag)).unwrap();
            node.text().unwrap().to_owned()
        };
        assert_eq!(text("title"), "a < b & c");
        assert_eq!(text("desc"), "\"quoted\" ");
        assert_eq!(text("text"), "x > y");
    }

    #[test]
    fn long_texts_are_broken() {
        let lines = wrap("one two three four five", 10.0, 60.0);
        assert!(lines.len() > 1);
        assert_eq!(lines.join(" "), "one two three four five");
    }
}
