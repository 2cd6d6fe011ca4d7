//! The report as a page that needs nothing else: no scripts, no other files, nothing from a network.

use super::super::case::Method;
use super::super::manifest::Manifest;
use super::super::record::Run;
use super::csv::outcome;
use super::group::Study;
use super::plot::Plot;
use super::plot::svg::escape;
use super::studies::LOST;
use super::tables::Table;
use super::{count, guide};
use std::collections::BTreeSet;

const STYLE: &str = include_str!("report.css");

/// The whole page.
#[must_use]
pub fn page(
    runs: &[Run],
    manifests: &[Manifest],
    studies: &[(&Study<'_>, Vec<Table>)],
    plots: &[(&Plot, String)],
) -> String {
    let mut page = Page::default();
    page.add("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">");
    page.add("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    page.add("<title>livesave: measurements</title>");
    page.add(&format!("<style>\n{STYLE}</style>\n</head>\n<body>"));
    page.add("<header>\n<h1>livesave: measurements</h1>");
    page.add(&format!("<p class=\"soft\">{}</p>", escape(&count(runs))));
    if manifests.iter().any(|manifest| manifest.machine.emulated) {
        page.add(&format!("<p><strong>{}</strong></p>", guide::EMULATED));
    }
    page.add("</header>");
    let across = plots.iter().any(|(plot, _)| plot.study.is_empty());
    page.contents(studies, across);
    for (study, tables) in studies {
        let of = plots.iter().filter(|(plot, _)| plot.study == study.name);
        page.study(study, tables, of.map(|(_, svg)| svg.as_str()));
    }
    if across {
        page.add("<section>\n<h2 id=\"forecasts\">Forecasts</h2>");
        let of = plots.iter().filter(|(plot, _)| plot.study.is_empty());
        page.plots(of.map(|(_, svg)| svg.as_str()));
        page.add("</section>");
    }
    page.not_good(runs);
    page.guide(runs);
    page.manifests(manifests);
    page.add("</body>\n</html>");
    page.text
}

/// A page that is being made.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn add(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn contents(&mut self, studies: &[(&Study<'_>, Vec<Table>)], across: bool) {
        self.add("<nav aria-label=\"Contents\">\n<ul>");
        let mut links = vec![];
        for (study, _) in studies {
            links.push((id(study.name), heading(study.name)));
        }
        if across {
            links.push(("forecasts".into(), "Forecasts".into()));
        }
        links.push(("not-good".into(), "Failed, refused and spoilt runs".into()));
        links.push(("guide".into(), "How to read this".into()));
        links.push(("made-with".into(), "Made with".into()));
        for (id, title) in links {
            let (id, title) = (escape(&id), escape(&title));
            self.add(&format!("<li><a href=\"#{id}\">{title}</a></li>"));
        }
        self.add("</ul>\n</nav>");
    }

    fn guide(&mut self, runs: &[Run]) {
        self.add("<section>\n<h2 id=\"guide\">How to read this</h2>");
        self.add(&format!("<p>{}</p>", escape(guide::NUMBERS)));
        self.add("<h3>Methods</h3>\n<dl>");
        let used: BTreeSet<_> = runs.iter().map(|run| run.planned.case.method).collect();
        for method in Method::ALL.into_iter().filter(|m| used.contains(m)) {
            self.term(method.title(), guide::method(method));
        }
        self.add("</dl>\n<h3>Measures</h3>\n<dl>");
        for (term, meaning) in guide::TERMS {
            self.term(term, meaning);
        }
        self.add("</dl>\n</section>");
    }

    fn term(&mut self, term: &str, meaning: &str) {
        let (term, meaning) = (escape(term), escape(meaning));
        self.add(&format!("<dt>{term}</dt><dd>{meaning}</dd>"));
    }

    fn manifests(&mut self, manifests: &[Manifest]) {
        self.add("<section>\n<h2 id=\"made-with\">Made with</h2>");
        if manifests.is_empty() {
            self.add("<p>There is no manifest with these runs.</p>");
        }
        for manifest in manifests {
            let Manifest {
                livesave,
                commit,
                arguments,
                plan: _,
                began,
                machine,
            } = manifest;
            let cpus = match machine.cpus {
                1 => "1 CPU".to_owned(),
                cpus => format!("{cpus} CPUs"),
            };
            let began = i64::try_from(*began).ok();
            let began = began.and_then(|s| jiff::Timestamp::from_second(s).ok());
            let emulated = if machine.emulated { ", emulated" } else { "" };
            let facts = [
                ("began", began.map_or_else(String::new, |at| at.to_string())),
                ("livesave", livesave.clone()),
                (
                    "commit",
                    commit.clone().unwrap_or_else(|| "not known".into()),
                ),
                ("arguments", arguments.join(" ")),
                (
                    "machine",
                    format!(
                        "{}, {cpus}, {} MiB{emulated}",
                        machine.cpu, machine.memory_mib
                    ),
                ),
                ("kernel", machine.kernel.clone()),
                ("Xen", machine.xen.clone().unwrap_or_else(|| "none".into())),
            ];
            self.add("<div class=\"wide\"><table class=\"facts\"><tbody>");
            for (name, value) in facts {
                // Names of programs and what was typed are shown as they are.
                let value = match name {
                    "arguments" | "commit" => format!("<code>{}</code>", escape(&value)),
                    _ => escape(&value),
                };
                self.add(&format!(
                    "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>"
                ));
            }
            self.add("</tbody></table></div>");
        }
        // One for all, where a sweep was interrupted and went on.
        let plans: BTreeSet<_> = manifests.iter().map(|manifest| &manifest.plan).collect();
        for plan in plans {
            let plan = escape(plan);
            self.add(&format!(
                "<h3>Plan</h3>\n<pre class=\"wide\"><code>{plan}</code></pre>"
            ));
        }
        self.add("</section>");
    }

    fn study<'a>(
        &mut self,
        study: &Study<'_>,
        tables: &[Table],
        plots: impl Iterator<Item = &'a str>,
    ) {
        let (id, title) = (escape(&id(study.name)), escape(&heading(study.name)));
        self.add(&format!("<section>\n<h2 id=\"{id}\">{title}</h2>"));
        self.add(&format!("<p class=\"soft\">{}.</p>", escape(&study.common)));
        self.plots(plots);
        for table in tables {
            self.table(table);
        }
        self.add("</section>");
    }

    fn plots<'a>(&mut self, plots: impl Iterator<Item = &'a str>) {
        let mut plots = plots.peekable();
        if plots.peek().is_none() {
            return;
        }
        self.add("<div class=\"plots\">");
        for plot in plots {
            self.add(&format!("<figure>\n{plot}</figure>"));
        }
        self.add("</div>");
    }

    fn table(&mut self, table: &Table) {
        // The study is named by the heading above.
        let title = table
            .title
            .split_once(": ")
            .map_or(&*table.title, |(_, t)| t);
        self.add(&format!("<h3>{}</h3>", escape(title)));
        if !table.note.is_empty() {
            self.add(&format!("<p class=\"note\">{}</p>", escape(&table.note)));
        }
        let kind = if table.names > 1 { "down" } else { "across" };
        self.add(&format!(
            "<div class=\"wide\" tabindex=\"0\"><table class=\"{kind}\">\n<thead><tr>"
        ));
        let class = |column: usize| match column < table.names {
            true => " class=\"name\"",
            false => "",
        };
        for (column, head) in table.head.iter().enumerate() {
            let class = class(column);
            self.add(&format!("<th scope=\"col\"{class}>{}</th>", escape(head)));
        }
        self.add("</tr></thead>\n<tbody>");
        for row in &table.rows {
            // Of rows that belong together the first is ruled off, and so is the sum.
            let mut line = String::from(match row.first().map(String::as_str) {
                Some(LOST) => "<tr class=\"sum\">",
                Some(name) if table.names > 1 && !name.is_empty() => "<tr class=\"first\">",
                _ => "<tr>",
            });
            for (column, cell) in row.iter().enumerate() {
                let class = class(column);
                line.push_str(&format!("<td{class}>{}</td>", escape(cell)));
            }
            self.add(&format!("{line}</tr>"));
        }
        self.add("</tbody></table></div>");
    }

    fn not_good(&mut self, runs: &[Run]) {
        self.add("<section>\n<h2 id=\"not-good\">Failed, refused and spoilt runs</h2>");
        let runs: Vec<_> = runs.iter().filter(|run| run.good().is_none()).collect();
        if runs.is_empty() {
            self.add("<p>There are none.</p>\n</section>");
            return;
        }
        self.add("<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr>");
        for head in ["outcome", "run", "attempt", "why"] {
            self.add(&format!("<th scope=\"col\" class=\"name\">{head}</th>"));
        }
        self.add("</tr></thead>\n<tbody>");
        for run in runs {
            let (outcome, why) = match outcome(run) {
                ("good", _) => ("failed", "it has no measurement"),
                known => known,
            };
            self.add(&format!(
                "<tr><td class=\"name\">{outcome}</td><td class=\"name\"><code>{}</code></td>\
                 <td>{}</td><td class=\"why\">{}</td></tr>",
                escape(&run.id),
                run.attempt,
                escape(why)
            ));
        }
        self.add("</tbody></table></div>\n</section>");
    }
}

/// What a study is called above its part.
fn heading(study: &str) -> String {
    let known = match study {
        "rates" => "Methods and dirty rates",
        "caps" => "Methods and CPU caps",
        "targets" => "Targets of the pause",
        "memory" => "Memory sizes",
        "vcpus" => "Virtual CPUs",
        "types" => "Types of guests",
        "increments" => "Increments",
        other => return format!("Study \u{201c}{other}\u{201d}"),
    };
    known.into()
}

/// Where a study is in the page.
fn id(study: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("study-{}", study.chars().map(word).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::super::record::Outcome;
    use super::super::super::record::tests::run;
    use super::super::{group, sample, studies};
    use super::*;

    fn of(runs: &[Run]) -> String {
        let studies = group::studies(runs);
        let tables: Vec<_> = studies.iter().map(|s| (s, studies::tables(s))).collect();
        page(runs, &[sample::manifest()], &tables, &[])
    }

    #[test]
    fn a_page_stands_alone() {
        let page = of(&sample::runs());
        for outside in ["<script", "<link", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("2025-11-24T16:00:00Z"));
        assert!(page.contains("emulated"));
    }

    #[test]
    fn what_is_opened_is_closed() {
        let page = of(&sample::runs());
        for tag in [
            "section", "table", "tbody", "tr", "td", "th", "dl", "div", "p", "h3",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count();
            let opened = opened + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn failed_runs_are_listed_and_their_reasons_are_text() {
        let mut failed = run(Method::Plain, "100", 0, 4.0);
        failed.outcome = Outcome::Method("<script>alert(1)</script>".into());
        let page = of(&[failed.clone()]);
        assert!(page.contains("&lt;script&gt;"));
        assert!(page.contains(&failed.id));
        assert!(!page.contains("There are none."));
        assert!(of(&[run(Method::Plain, "100", 0, 4.0)]).contains("There are none."));
    }
}
