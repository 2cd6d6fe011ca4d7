//! Which plots a study gets.

use super::super::super::case::Method;
use super::super::super::record::Run;
use super::super::axis::{Axis, Part, X};
use super::super::group::{Panel, Study};
use super::super::measure::{self, Measure};
use super::super::studies::dirty_per_round;
use super::scale::Scale;
use super::{Across, At, Plot, Point, Series, style};

/// What points, bars and lines are.
const MARKS: &str = "Marks are medians, bars quartiles, dots single runs.";

/// The edges of the band within which a forecast is held to be good.
const BAND: (f64, f64) = (0.8, 1.25);

/// The plots of a study.
#[must_use]
pub fn of_study(study: &Study<'_>) -> Vec<Plot> {
    let plain = |slug: &str, title: &str, measure: Measure| along(study, slug, title, measure);
    let by = study.axis.name();
    match study.name {
        "targets" => targets(study),
        "increments" => {
            let mut plots = plain("time", "Time of a save against dirty share", measure::TOTAL);
            let size = "Size of an image against dirty share";
            plots.extend(plain("size", size, measure::IMAGE));
            plots
        }
        "caps" => {
            let mut plots = plain("gap", "Gap against CPU cap", measure::GAP_S);
            plots.extend(plain("total", "Total time against CPU cap", measure::TOTAL));
            plots.extend(plain("pages", "Pages sent against CPU cap", measure::PAGES));
            let time = "Mean round time against CPU cap";
            plots.extend(plain("round-time", time, measure::ROUND_TIME));
            let rounds = "Number of rounds against CPU cap";
            plots.extend(plain("rounds", rounds, measure::ROUNDS));
            plots.extend(dirty(study));
            plots
        }
        _ => plain("gap", &format!("Gap against {by}"), measure::GAP_S),
    }
}

/// Forecasts of pauses against the pauses, over all studies; `None` if nothing was forecast.
#[must_use]
pub fn forecasts(runs: &[Run]) -> Option<Plot> {
    let mut series = Vec::new();
    let mut all = Vec::new();
    for method in Method::ALL {
        let of = runs.iter().filter(|run| run.planned.case.method == method);
        let points: Vec<_> = of
            .filter_map(|run| {
                let run = run.good()?;
                let predicted = measure::PREDICTED.of(run)?;
                let pause = measure::PAUSE.of(run)?;
                all.extend([predicted, pause]);
                Some(Point {
                    at: At::On(predicted),
                    values: vec![pause],
                })
            })
            .collect();
        if !points.is_empty() {
            series.push(Series {
                label: format!("{} ({} runs)", method.title(), points.len()),
                short: String::new(),
                style: style::of_method(method),
                points,
                joined: false,
            });
        }
    }
    let scale = Scale::of_values(&all)?;
    Some(Plot {
        slug: "forecasts".into(),
        study: String::new(),
        title: "Forecast of the pause against the pause".into(),
        subtitle: format!(
            "All good runs that forecast it, one mark each. The line is where both are equal; in the \
             band the pause is {} to {} of its forecast.",
            BAND.0, BAND.1
        ),
        x: Across {
            title: "pause that was forecast when it began (ms)".into(),
            ticks: scale.ticks(),
            scale: Some(scale),
            ..Across::default()
        },
        y: ("pause as measured (ms)".into(), scale),
        series,
        diagonal: true,
        band: Some(BAND),
    })
}

/// A measure along the study's axis, a line for each method; the plots of the panels have one scale.
fn along(study: &Study<'_>, slug: &str, title: &str, measure: Measure) -> Vec<Plot> {
    let mut all = Vec::new();
    let panels: Vec<_> = study
        .panels
        .iter()
        .map(|panel| methods(panel, measure, &mut all))
        .collect();
    let Some(scale) = Scale::of_values(&all) else {
        return Vec::new();
    };
    let places = study.panels.iter().flat_map(Panel::places);
    let x = across(study.axis, places);
    let panels = study.panels.iter().zip(panels);
    let mut plots = Vec::new();
    for (panel, series) in panels.filter(|(_, series)| !series.is_empty()) {
        let series = series.into_iter().map(|(method, points)| Series {
            label: method.title().into(),
            short: style::short(method).into(),
            style: style::of_method(method),
            points: place(&x, points),
            joined: !study.axis.is_of_names(),
        });
        plots.push(Plot {
            slug: slug_of(&[study.name, slug, &panel.title]),
            study: study.name.into(),
            title: titled(title, &panel.title),
            subtitle: subtitle(study, &all, scale),
            x: x.clone(),
            y: (measure.header(), scale),
            series: series.collect(),
            diagonal: false,
            band: None,
        });
    }
    plots
}

/// The pauses that were asked for against those that came, and the line where they are equal.
fn targets(study: &Study<'_>) -> Vec<Plot> {
    let mut plots = along(
        study,
        "pause",
        "Target against achieved pause",
        measure::PAUSE,
    );
    for plot in &mut plots {
        if let Some(scale) = plot.x.scale {
            let mut ends = vec![scale.lo, scale.hi];
            let points = plot.series.iter().flat_map(|series| &series.points);
            ends.extend(points.flat_map(|point| &point.values));
            // A line of equal values is straight if both axes are of one kind.
            let positive: Vec<_> = ends.iter().copied().filter(|v| *v > 0.0).collect();
            let log = scale.log || plot.y.1.log;
            let values: &[f64] = if log { &positive } else { &ends };
            if let Some(mut both) = Scale::of_values(values)
                && both.log == log
            {
                // Of a linear axis both begin at 0.
                both.lo = if log { both.lo } else { 0.0 };
                (plot.x.scale, plot.y.1) = (Some(both), both);
            }
        }
        plot.y.0 = "pause as measured (ms)".into();
        let line = " On the line the pause is the target.";
        plot.subtitle.push_str(line);
        plot.diagonal = true;
    }
    plots
}

/// Pages dirty at the end of each round, a line for each place on the axis; a plot for each method that
/// tells of rounds.
fn dirty(study: &Study<'_>) -> Vec<Plot> {
    let mut all = Vec::new();
    let mut most = 0;
    let mut found = Vec::new();
    for panel in &study.panels {
        for method in panel.methods() {
            let places = panel.places();
            let steps = places.len();
            let lines = places.into_iter().enumerate().filter_map(|(step, x)| {
                let cell = panel.cell(x, method)?;
                let rounds = dirty_per_round(&cell.good);
                most = most.max(rounds.len());
                let point = |(index, _): (usize, _)| {
                    let round = |run: &&_| measure::dirty_after(run, index);
                    let values: Vec<_> = cell.good.iter().filter_map(round).collect();
                    all.extend(&values);
                    Point {
                        at: At::On(index as f64 + 1.0),
                        values,
                    }
                };
                let points: Vec<_> = rounds.iter().enumerate().map(point).collect();
                let label = match x.part {
                    Part::On => format!("{} {}", study.axis.name(), x.label),
                    _ => x.label.clone(),
                };
                (!points.is_empty()).then(|| Series {
                    label,
                    short: x.label.clone(),
                    style: style::of_step(step, steps),
                    points,
                    joined: true,
                })
            });
            let lines: Vec<_> = lines.collect();
            if !lines.is_empty() {
                found.push((panel, method, lines));
            }
        }
    }
    let rounds: Vec<_> = (1..=most).map(|round| round as f64).collect();
    let Some(scale) = Scale::of_values(&all) else {
        return Vec::new();
    };
    let x = Scale {
        log: false,
        lo: 0.5,
        hi: most.max(1) as f64 + 0.5,
    };
    let plot = |(panel, method, series): (&Panel<'_>, Method, Vec<Series>)| Plot {
        slug: slug_of(&[study.name, "dirty", method.key(), &panel.title]),
        study: study.name.into(),
        title: titled(
            &format!("Pages dirty after each round, {method}"),
            &panel.title,
        ),
        subtitle: subtitle(study, &all, scale),
        x: Across {
            title: "round".into(),
            scale: Some(x),
            ticks: rounds.iter().map(|r| (*r, r.to_string())).collect(),
            ..Across::default()
        },
        y: ("pages dirty at the end of the round".into(), scale),
        series,
        diagonal: false,
        band: None,
    };
    found.into_iter().map(plot).collect()
}

type Placed = Vec<(X, Vec<f64>)>;

/// The values of each method of a panel, which are added to all values.
fn methods(panel: &Panel<'_>, measure: Measure, all: &mut Vec<f64>) -> Vec<(Method, Placed)> {
    let values = |method| {
        let cells = panel.cells().filter(move |(_, of, _)| *of == method);
        let points = cells.filter_map(|(x, _, cell)| {
            let values = cell.good.iter().filter_map(|run| measure.of(run));
            let values: Vec<_> = values.filter(|v| v.is_finite()).collect();
            (!values.is_empty()).then(|| (x.clone(), values))
        });
        (method, points.collect::<Placed>())
    };
    let methods: Vec<_> = panel.methods().into_iter().map(values).collect();
    let values = methods.iter().flat_map(|(_, points)| points);
    all.extend(values.flat_map(|(_, values)| values));
    // A method of which nothing is known has no line.
    let known = |(_, points): &(_, Placed)| {
        let mut values = points.iter().flat_map(|(_, values)| values);
        values.any(|v| *v != 0.0)
    };
    methods.into_iter().filter(known).collect()
}

/// The axis below with all places of a study's panels.
fn across<'a>(axis: Axis, places: impl Iterator<Item = &'a X>) -> Across {
    let mut places: Vec<_> = places.collect();
    places.sort();
    places.dedup();
    let labels = |part| {
        let of = places.iter().filter(move |x| x.part == part);
        of.map(|x| x.label.clone()).collect()
    };
    let on = places.iter().filter(|x| x.part == Part::On);
    // The unit is in the title.
    let tick = |x: &&X| (x.value as f64, x.value.to_string());
    let ticks: Vec<_> = on.map(tick).collect();
    let values: Vec<_> = ticks.iter().map(|(value, _)| *value).collect();
    Across {
        title: axis.title().into(),
        before: labels(Part::First),
        scale: Scale::of_settings(&values, axis.log_from()),
        ticks,
        after: labels(Part::Last),
    }
}

fn place(across: &Across, points: Placed) -> Vec<Point> {
    let point = |(x, values): (X, Vec<f64>)| {
        let index = |labels: &[String]| labels.iter().position(|label| *label == x.label);
        let at = match x.part {
            Part::First => At::Before(index(&across.before)?),
            Part::On => At::On(x.value as f64),
            Part::Last => At::After(index(&across.after)?),
        };
        Some(Point { at, values })
    };
    points.into_iter().filter_map(point).collect()
}

fn titled(title: &str, panel: &str) -> String {
    if panel.is_empty() {
        title.into()
    } else {
        format!("{title}, {panel}")
    }
}

fn subtitle(study: &Study<'_>, values: &[f64], scale: Scale) -> String {
    let nothing = scale.log && values.contains(&0.0);
    let nothing = if nothing {
        " What is 0 stands at the lower edge."
    } else {
        ""
    };
    format!("{}. {MARKS}{nothing}", study.common)
}

/// A name for a file.
fn slug_of(parts: &[&str]) -> String {
    let mut slug = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.push_str(part);
    }
    let word = |c: char| c.is_ascii_alphanumeric();
    let slug = slug.to_lowercase();
    let words: Vec<_> = slug.split(|c| !word(c)).filter(|w| !w.is_empty()).collect();
    words.join("-")
}

#[cfg(test)]
mod tests {
    use super::super::super::{group, sample};
    use super::super::draw::draw;
    use super::*;
    use std::collections::BTreeSet;

    fn all(runs: &[Run]) -> Vec<Plot> {
        let studies = group::studies(runs);
        let mut plots: Vec<_> = studies.iter().flat_map(of_study).collect();
        plots.extend(forecasts(runs));
        plots
    }

    #[test]
    fn every_study_yields_its_plots() {
        let plots = all(&sample::runs());
        let slugs: BTreeSet<_> = plots.iter().map(|plot| plot.slug.as_str()).collect();
        assert_eq!(slugs.len(), plots.len(), "two plots have one name");
        for slug in [
            "rates-gap",
            "caps-gap-256-mib",
            "caps-gap-1024-mib",
            "caps-total-256-mib",
            "caps-pages-1024-mib",
            "caps-round-time-256-mib",
            "caps-rounds-256-mib",
            "caps-dirty-live-256-mib",
            "caps-dirty-improved-1024-mib",
            "targets-pause-20000-pages-s-written-at-random",
            "memory-gap",
            "vcpus-gap",
            "increments-time",
            "increments-size",
            "patterns-gap",
            "forecasts",
        ] {
            assert!(slugs.contains(slug), "{slug} is not in {slugs:?}");
        }
    }

    #[test]
    fn a_study_without_runs_has_no_plots() {
        let mut runs = sample::runs();
        runs.retain(|run| run.planned.case.study == "memory");
        let plots = all(&runs);
        let studies: BTreeSet<_> = plots.iter().map(|plot| plot.study.as_str()).collect();
        assert_eq!(studies.into_iter().collect::<Vec<_>>(), ["", "memory"]);
        assert!(all(&[]).is_empty());
    }

    #[test]
    fn panels_of_a_study_can_be_compared() {
        let plots = all(&sample::runs());
        let scales: Vec<_> = plots
            .iter()
            .filter(|plot| plot.slug.starts_with("caps-gap"))
            .map(|plot| (plot.y.1, plot.x.scale))
            .collect();
        assert_eq!(scales.len(), 2);
        assert_eq!(scales[0], scales[1]);
    }

    #[test]
    fn drawings_are_xml_and_nothing_lies_outside_of_them() {
        for plot in all(&sample::runs()) {
            let text = draw(&plot);
            let document = roxmltree::Document::parse(&text).unwrap();
            let svg = document.root_element();
            let number = |node: roxmltree::Node<'_, '_>, name: &str| {
                node.attribute(name).and_then(|v| v.parse::<f64>().ok())
            };
            let height = number(svg, "height").unwrap();
            let width = number(svg, "width").unwrap();
            assert!(svg.descendants().any(|node| node.has_tag_name("desc")));
            for node in svg.descendants().filter(|n| n.has_tag_name("text")) {
                let (x, y) = (number(node, "x").unwrap(), number(node, "y").unwrap());
                let room = super::super::svg::width(node.text().unwrap_or(""), 11.0);
                let end = match node.attribute("text-anchor") {
                    None => x + room,
                    Some("middle") if node.attribute("transform").is_none() => x + room / 2.0,
                    _ => x,
                };
                assert!(
                    end <= width && (0.0..=height).contains(&y),
                    "{}: {node:?}",
                    plot.slug
                );
            }
        }
    }

    #[test]
    fn runs_that_are_not_good_are_not_plotted() {
        let mut runs = sample::runs();
        runs.retain(|run| run.good().is_none());
        assert!(!runs.is_empty());
        assert!(all(&runs).is_empty());
    }
}
