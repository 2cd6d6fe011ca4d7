//! `livesave generate`: man pages and shell completions, from the definitions of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::Roff;

use crate::args::{Cli, GenerateCommand};

/// Generates it.
pub fn run(what: &GenerateCommand) -> Result<()> {
    match what {
        GenerateCommand::Man { dir } => man_pages(dir),
        GenerateCommand::Completions { shell } => {
            // The generators panic where they cannot write; a buffer always can be written to.
            let mut text = vec![];
            clap_complete::generate(*shell, &mut Cli::command(), "livesave", &mut text);
            io::stdout()
                .write_all(&text)
                .context("Failed to write the completions")
        }
    }
}

fn man_pages(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("Failed to make {}", dir.display()))?;
    for command in documented() {
        let page = page(&command).context("Failed to make a man page")?;
        let path = dir.join(format!("{}.1", page_name(&command)));
        fs::write(&path, page).with_context(|| format!("Failed to write {}", path.display()))?;
    }
    Ok(())
}

/// livesave itself and its subcommands, but for the hidden ones.
fn documented() -> Vec<clap::Command> {
    let mut root = Cli::command().disable_help_subcommand(true);
    // Gives the subcommands their names in full.
    root.build();
    let visible = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let visible: Vec<_> = visible.cloned().collect();
    std::iter::once(root).chain(visible).collect()
}

fn page_name(command: &clap::Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let command = command.clone().version(env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).manual("livesave");
    let mut out = vec![];
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command
        .get_subcommands()
        .any(|command| !command.is_hide_set())
    {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(text) = command.get_after_help() {
        let mut roff = Roff::default();
        roff.control("SH", ["EXIT STATUS"]);
        // As it stands: it is a table.
        roff.control("nf", []);
        for line in text.to_string().lines() {
            roff.text([line.into()]);
        }
        roff.control("fi", []);
        roff.to_writer(&mut out)?;
    }
    man.render_version_section(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    /// The long options that a command's help shows.
    fn options(command: &clap::Command) -> Vec<String> {
        let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let long = visible.filter_map(|arg| arg.get_long());
        long.map(|name| format!("--{name}")).collect()
    }

    #[test]
    fn each_visible_subcommand_has_a_page_with_each_of_its_options() {
        let dir = tempfile::tempdir().expect("directory");
        man_pages(dir.path()).expect("generated");
        let commands = documented();
        assert!(commands.len() > 7, "only {} pages", commands.len());
        for command in &commands {
            let name = page_name(command);
            let page = fs::read_to_string(dir.path().join(format!("{name}.1"))).expect(&name);
            let plain = page
                .replace("\\-", "-")
                .replace("\\fB", "")
                .replace("\\fR", "");
            assert!(plain.contains(".TH livesave"), "{name}: {plain}");
            for option in options(command) {
                assert!(plain.contains(&option), "{name} does not tell of {option}");
            }
            for hidden in command.get_arguments().filter(|arg| arg.is_hide_set()) {
                let option = format!("--{}", hidden.get_long().unwrap_or("?"));
                assert!(!plain.contains(&option), "{name} tells of {option}");
            }
        }
        let root = fs::read_to_string(dir.path().join("livesave.1")).expect("a page");
        for command in &commands[1..] {
            let name = page_name(command).replace('-', "\\-");
            assert!(root.contains(&name), "{name} is not in livesave.1");
        }
        assert!(root.contains("EXIT STATUS") && !root.contains("guardian(1)"));
    }

    #[test]
    fn each_shell_completes_each_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "livesave", &mut text);
            let text = String::from_utf8(text).expect("text");
            for command in documented() {
                for option in options(&command) {
                    let name = option.trim_start_matches('-');
                    assert!(text.contains(name), "{shell}: {option}");
                }
            }
        }
    }
}
